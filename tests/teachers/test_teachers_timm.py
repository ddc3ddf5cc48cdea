"""Teachers of timm against timm's own networks, with random weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experts.errors import CorruptWeights, MalformedTeacher, PickleRefused, UnknownTeacher
from experts.teachers import timm_models
from experts.teachers.file import save_teacher
from experts.teachers.named import load_teacher

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.teachers

NETWORKS = ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "resnet10t"]
NAMES = ("wolf", "ant", "bee")


def saved(name: str, folder: Path, num_classes: int = 3) -> tuple[torch.nn.Module, Path]:
    """A network of timm, and the file timm's users would keep its state in."""
    network = timm.create_model(name, pretrained=False, num_classes=num_classes).eval()
    save_file(network.state_dict(), folder / "own.safetensors")
    (folder / "names").write_text("\n".join(NAMES))
    return network, folder / "own.safetensors"


def images_for(network: torch.nn.Module) -> torch.Tensor:
    size = network.pretrained_cfg["input_size"]
    return torch.rand(2, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_users_own_weights_give_timms_own_logits(name: str, tmp_path: Path, offline: list[object]) -> None:
    network, path = saved(name, tmp_path)
    subject = load_teacher(f"timm:{name}@{path}", classes=tmp_path / "names")
    images_BCHW = images_for(network)
    config = timm.data.resolve_data_config({}, model=network)
    mean_C, deviation_C = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        own_BC = network((images_BCHW - mean_C) / deviation_C)
    assert subject.classes == ("ant", "bee", "wolf")
    assert (subject.form.channels, subject.form.pixels) == (3, config["input_size"][1])
    assert torch.allclose(subject.logits(images_BCHW), own_BC[:, [1, 2, 0]], atol=1e-6)
    assert offline == []


@pytest.mark.parametrize("name", NETWORKS[:2])
def test_a_teacher_of_timm_becomes_a_file_that_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    network, path = saved(name, tmp_path)
    subject = load_teacher(f"timm:{name}@{path}", classes=tmp_path / "names")
    save_teacher(subject, tmp_path / "kept.safetensors")
    kept = load_teacher(f"file:{tmp_path / 'kept.safetensors'}")
    assert kept.digest == subject.digest
    assert torch.equal(kept.logits(images_for(network)), subject.logits(images_for(network)))


def test_a_thousand_classes_have_timms_names_of_imagenet(tmp_path: Path) -> None:
    _, path = saved("test_vit", tmp_path, num_classes=1000)
    subject = load_teacher(f"timm:test_vit@{path}")
    assert len(set(subject.classes)) == 1000
    assert subject.network_classes[0] == "tench, Tinca tinca"
    assert [name for name in subject.classes if "#" in name] == ["crane #134", "crane #517"]


def test_published_weights_are_the_safetensors_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = saved("test_vit", tmp_path, num_classes=1000)
    asked: list[tuple[object, ...]] = []

    def cached(repository: str, file: str, *, name: str, download: bool) -> Path:
        asked.append((repository, file, name, download))
        return path

    monkeypatch.setattr(timm_models, "hub_file", cached)
    subject = load_teacher("timm:test_vit.r160_in1k")
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors", "timm:test_vit.r160_in1k", False)]
    images_BCHW = images_for(network)
    with torch.no_grad():
        own_BC = network(subject.normalised(images_BCHW))
    rank = {name: column for column, name in enumerate(subject.network_classes)}
    assert torch.allclose(subject.logits(images_BCHW), own_BC[:, [rank[name] for name in subject.classes]], atol=1e-6)
    (tmp_path / "names").write_text("a\nb\n")
    with pytest.raises(MalformedTeacher, match="2 names for 1000 classes"):
        load_teacher("timm:test_vit", classes=tmp_path / "names")
    with pytest.raises(CorruptWeights, match="not the weights of this network"):
        load_teacher("timm:test_resnet")
    tensors = network.state_dict()
    tensors["head.bias"].fill_(torch.inf)
    save_file(tensors, path)
    with pytest.raises(CorruptWeights, match="not finite"):
        load_teacher("timm:test_vit")


def test_nothing_is_fetched_unless_asked_for(offline: list[object]) -> None:
    with pytest.raises(UnknownTeacher, match="fetching it was not asked for"):
        load_teacher("timm:test_vit.r160_in1k")
    assert offline == []
    with pytest.raises(UnknownTeacher, match="could not be fetched"):
        load_teacher("timm:test_vit.r160_in1k", download=True)
    assert offline


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, path = saved("test_vit", tmp_path)
    with pytest.raises(CorruptWeights, match=r"not \(1000"):
        load_teacher(f"timm:test_vit@{path}")
    with pytest.raises(CorruptWeights, match="missing tensors"):
        load_teacher(f"timm:test_resnet@{path}", classes=tmp_path / "names")
    for name in ("unheard-of", "hf-hub:timm/test_vit", "local-dir:/tmp"):
        with pytest.raises(UnknownTeacher, match="timm knows no model"):
            load_teacher(f"timm:{name}")
    torch.save(timm.create_model("test_vit", pretrained=False), tmp_path / "whole.safetensors")
    with pytest.raises(PickleRefused):
        load_teacher(f"timm:test_vit@{tmp_path / 'whole.safetensors'}")


def test_loading_draws_nothing_from_the_global_stream(tmp_path: Path) -> None:
    _, path = saved("test_vit", tmp_path)
    before = torch.get_rng_state()
    load_teacher(f"timm:test_vit@{path}", classes=tmp_path / "names")
    assert torch.equal(torch.get_rng_state(), before)
