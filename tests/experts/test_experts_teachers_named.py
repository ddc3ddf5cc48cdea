"""Teachers by name: each source is found or refused in words, and no pickle is ever read."""

import sys
from pathlib import Path

import pytest
import torch
from teacher_files import PICKLE_FORMS, pickled

from experts.errors import MalformedTeacher, PackageMissing, PickleRefused, UnknownTeacher
from experts.networks.efficientnet_lite0 import IMAGENET_DEVIATION, IMAGENET_MEAN, build_layers, pretrained_tensors
from experts.teachers.class_names import distinct_names
from experts.teachers.file import save_teacher
from experts.teachers.named import load_teacher
from experts.teachers.packages import imported
from experts.teachers.weights import PICKLE_SUFFIXES


@pytest.mark.parametrize(
    "name", ["", "resnet18", "file:", ":x", "ftp:x", "package:resnet18", "package:efficientnet-lite0@31"]
)
def test_a_name_of_no_source_is_refused(name: str) -> None:
    with pytest.raises(UnknownTeacher):
        load_teacher(name)


def test_the_packaged_network_is_whole_and_has_a_thousand_numbered_classes() -> None:
    subject = load_teacher("package:efficientnet-lite0@64")
    layers = build_layers(head=True).eval()
    layers.load_state_dict(pretrained_tensors(head=True))
    images_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean_C, deviation_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
    with torch.no_grad():
        expected_BC = layers((images_BCHW - mean_C.view(3, 1, 1)) / deviation_C.view(3, 1, 1))
    assert subject.form.pixels == 64
    assert (subject.classes[0], subject.classes[-1], len(subject.classes)) == ("imagenet-0000", "imagenet-0999", 1000)
    assert torch.equal(subject.logits(images_BCHW), expected_BC)


def test_the_packaged_network_takes_names_from_a_file_and_is_saved_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("".join(f"class {999 - column:03}\n" for column in range(1000)))
    subject = load_teacher("package:efficientnet-lite0", classes=tmp_path / "names")
    assert subject.form.pixels == 224
    assert subject.network_classes[0] == subject.classes[-1] == "class 999"
    save_teacher(subject, tmp_path / "t.safetensors")
    assert load_teacher(f"file:{tmp_path / 't.safetensors'}").digest == subject.digest
    (tmp_path / "names").write_text("a\nb\n")
    with pytest.raises(MalformedTeacher, match="2 names for 1000 classes"):
        load_teacher("package:efficientnet-lite0", classes=tmp_path / "names")


@pytest.mark.parametrize("form", PICKLE_FORMS)
@pytest.mark.parametrize("name", ["t.safetensors", "t.pt", "t.PTH", "t.bin", "t.ckpt", "t.pkl"])
def test_a_pickle_is_refused_under_any_name_and_not_run(tmp_path: Path, form: str, name: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickled(form, canary))
    with pytest.raises(PickleRefused, match=r"save_file\(torch\.load\(path, weights_only=True\)"):
        load_teacher(f"file:{tmp_path / name}")
    assert not canary.exists()


@pytest.mark.parametrize("form", PICKLE_FORMS)
@pytest.mark.parametrize("source", ["timm:test_vit@{}", "torchvision:resnet18@{}", "hf:{}"])
def test_a_pickle_is_refused_before_a_library_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, form: str
) -> None:
    for package in ("timm", "torchvision", "torchvision.models", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    canary = tmp_path / "canary"
    (tmp_path / "model.safetensors").write_bytes(pickled(form, canary))
    with pytest.raises(PickleRefused):
        load_teacher(source.format(tmp_path / "model.safetensors"))
    assert not canary.exists()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_folder_whose_weights_are_a_pickle_is_refused(tmp_path: Path, file: str) -> None:
    canary = tmp_path.parent / "folder-canary"
    (tmp_path / file).write_bytes(pickled("torch", canary))
    with pytest.raises(PickleRefused, match=file):
        load_teacher(f"hf:{tmp_path}")
    assert not canary.exists()


def test_the_canaries_of_these_tests_sing(tmp_path: Path) -> None:
    import pickle  # noqa: PLC0415

    for form in PICKLE_FORMS[:6]:
        canary = tmp_path / form
        pickle.loads(pickled(form, canary))
        assert canary.exists()


def test_a_file_that_is_named_as_a_pickle_is_not_opened(tmp_path: Path) -> None:
    for suffix in sorted(PICKLE_SUFFIXES):
        (tmp_path / f"t{suffix}").mkdir()
        with pytest.raises(PickleRefused):
            load_teacher(f"file:{tmp_path / f't{suffix}'}")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("timm:resnet10t", "timm"),
        ("torchvision:resnet18", "torchvision"),
        ("hf:nobody/nothing", "huggingface_hub"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    with pytest.raises(PackageMissing, match=r"pip install 'modulemesh\[teachers\]'") as caught:
        load_teacher(name)
    assert (caught.value.package, caught.value.extra) == (package, "teachers")


def test_a_library_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mesh_unfit.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PackageMissing, match=r"does not load here \(operator nms does not exist\)"):
        imported("mesh_unfit", subject="torchvision:")


def test_one_name_for_two_columns_is_told_apart_by_column() -> None:
    assert distinct_names(["crane", "tench", "crane"]) == ("crane #0", "tench", "crane #2")
