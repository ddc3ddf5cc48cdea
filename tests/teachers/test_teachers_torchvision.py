"""Teachers of torchvision against its own networks, with random weights."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experts.errors import CorruptWeights, MalformedTeacher, PickleRefused, UnknownTeacher
from experts.teachers.file import save_teacher
from experts.teachers.named import load_teacher

torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.teachers

NAMES = ("wolf", "ant", "bee")


def saved(name: str, folder: Path, num_classes: int = 3) -> tuple[torch.nn.Module, Path]:
    """A network of torchvision, and its state as safetensors."""
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes).eval()
    save_file(network.state_dict(), folder / "own.safetensors")
    (folder / "names").write_text("\n".join(NAMES))
    return network, folder / "own.safetensors"


def publish(name: str, weights: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A network whose state is, in torch's cache, what torchvision published under this name of weights."""
    network = torchvision.models.get_model(name, weights=None).eval()
    (folder / "checkpoints").mkdir(parents=True)
    path = folder / "checkpoints" / "state.pth"
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path.rename(path.with_name(f"{name}-{digest}.pth"))
    declared = torchvision.models.get_model_weights(name)[weights]
    monkeypatch.setattr(declared.value, "url", f"https://example.invalid/{name}-{digest}.pth")
    return network


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_the_users_own_weights_give_torchvisions_own_logits(name: str, tmp_path: Path, offline: list[object]) -> None:
    network, path = saved(name, tmp_path)
    subject = load_teacher(f"torchvision:{name}@{path}", classes=tmp_path / "names")
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    pixels = transforms.crop_size[0]
    images_BCHW = torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    normalised_BCHW = torchvision.transforms.functional.normalize(images_BCHW, transforms.mean, transforms.std)
    with torch.no_grad():
        own_BC = network(normalised_BCHW)
    assert subject.form.pixels == pixels
    assert subject.classes == ("ant", "bee", "wolf")
    assert torch.allclose(subject.normalised(images_BCHW), normalised_BCHW, atol=1e-6)
    assert torch.allclose(subject.logits(images_BCHW), own_BC[:, [1, 2, 0]], atol=1e-5)
    assert offline == []


def test_a_teacher_of_torchvision_becomes_a_file_that_gives_the_same_logits(tmp_path: Path) -> None:
    _, path = saved("resnet18", tmp_path)
    subject = load_teacher(f"torchvision:resnet18@{path}", classes=tmp_path / "names")
    save_teacher(subject, tmp_path / "kept.safetensors")
    kept = load_teacher(f"file:{tmp_path / 'kept.safetensors'}")
    images_BCHW = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert kept.digest == subject.digest
    assert torch.equal(kept.logits(images_BCHW), subject.logits(images_BCHW))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:squeezenet1_1@IMAGENET1K_V1"])
def test_published_weights_come_from_the_cache_with_their_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[object]
) -> None:
    network = publish("squeezenet1_1", "IMAGENET1K_V1", tmp_path / "torch-hub", monkeypatch)
    subject = load_teacher(name)
    categories = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"]
    images_BCHW = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own_BC = network(subject.normalised(images_BCHW))
    assert subject.classes == tuple(sorted(categories))
    columns = [categories.index(name) for name in subject.classes]
    assert torch.allclose(subject.logits(images_BCHW), own_BC[:, columns], atol=1e-5)
    assert offline == []
    (tmp_path / "names").write_text("a\nb\n")
    with pytest.raises(MalformedTeacher, match="2 names for 1000 classes"):
        load_teacher(name, classes=tmp_path / "names")


def test_a_changed_file_in_the_cache_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("squeezenet1_1", "IMAGENET1K_V1", tmp_path / "torch-hub", monkeypatch)
    (file,) = (tmp_path / "torch-hub" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CorruptWeights, match="not the file that torchvision published"):
        load_teacher("torchvision:squeezenet1_1")


def test_nothing_is_fetched_unless_asked_for(offline: list[object]) -> None:
    with pytest.raises(UnknownTeacher, match="fetching it was not asked for"):
        load_teacher("torchvision:resnet18")
    assert offline == []
    with pytest.raises(UnknownTeacher, match="could not be fetched"):
        load_teacher("torchvision:resnet18", download=True)
    assert offline


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, path = saved("squeezenet1_1", tmp_path)
    with pytest.raises(CorruptWeights, match=r"not \(1000"):
        load_teacher(f"torchvision:squeezenet1_1@{path}")
    with pytest.raises(CorruptWeights, match="missing tensors"):
        load_teacher(f"torchvision:resnet18@{path}", classes=tmp_path / "names")
    with pytest.raises(UnknownTeacher, match="IMAGENET1K_V1"):
        load_teacher("torchvision:resnet18@unheard-of")
    for name in ("unheard-of", "deeplabv3_resnet50", "r3d_18", "fasterrcnn_resnet50_fpn"):
        with pytest.raises(UnknownTeacher, match="no classifier of images"):
            load_teacher(f"torchvision:{name}")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "state.pth")
    (tmp_path / "state.pth").rename(tmp_path / "state.safetensors")
    with pytest.raises(PickleRefused):
        load_teacher(f"torchvision:squeezenet1_1@{tmp_path / 'state.safetensors'}")
