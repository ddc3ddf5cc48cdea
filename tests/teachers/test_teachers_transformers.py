"""Teachers of transformers against its own models, with random weights, in folders that it wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from experts.errors import CorruptWeights, MalformedTeacher, PickleRefused, UnknownTeacher
from experts.teachers.file import save_teacher
from experts.teachers.named import load_teacher
from experts.trunk.images import prepare_images

transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.teachers

NAMES = {0: "wolf", 1: "ant", 2: "bee"}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}

FORM = {"channels": 3, "pixels": 32, "mean": [0.0] * 3, "deviation": [1.0] * 3}


def tiny(kind: str) -> torch.nn.Module:
    names = {"id2label": NAMES, "label2id": {name: column for column, name in NAMES.items()}}
    if kind == "vit":
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.ViTConfig(**shape, image_size=32, patch_size=8, **names)
        return transformers.ViTForImageClassification(config).eval()
    if kind == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], **names)
        return transformers.ConvNextForImageClassification(config).eval()
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], **names)
    return transformers.ResNetForImageClassification(config).eval()


def saved(kind: str, folder: Path, processor: dict[str, object] | None = None) -> torch.nn.Module:
    """A small model in a folder, as ``save_pretrained`` leaves it, with what its images are to be like."""
    model = tiny(kind)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR if processor is None else processor))
    return model


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet"])
def test_a_saved_folder_gives_transformers_own_logits(
    kind: str, tmp_path: Path, small_images: torch.Tensor, offline: list[object]
) -> None:
    model = saved(kind, tmp_path)
    subject = load_teacher(f"hf:{tmp_path}")
    mean_C, deviation_C = (torch.tensor(PROCESSOR[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        own_BC = model((small_images - mean_C) / deviation_C).logits
    assert subject.classes == ("ant", "bee", "wolf")
    assert torch.allclose(subject.logits(small_images), own_BC[:, [1, 2, 0]], atol=1e-5)
    assert offline == []


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": None}],
)
def test_prepared_images_are_normalised_as_the_librarys_image_processor_does(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    given = {name: value for name, value in {**PROCESSOR, **settings}.items() if value is not None}
    saved("vit", tmp_path, given)
    images_BHWC = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    own_BCHW = processor(images=list(images_BHWC), return_tensors="pt")["pixel_values"]
    prepared_BCHW = load_teacher(f"hf:{tmp_path}").normalised(prepare_images(images_BHWC, 3, 32))
    assert torch.allclose(prepared_BCHW, own_BCHW.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_teacher_of_transformers_becomes_a_file_that_gives_the_same_logits(
    kind: str, tmp_path: Path, small_images: torch.Tensor
) -> None:
    saved(kind, tmp_path)
    subject = load_teacher(f"hf:{tmp_path}")
    save_teacher(subject, tmp_path / "kept.safetensors")
    kept = load_teacher(f"file:{tmp_path / 'kept.safetensors'}")
    assert kept.digest == subject.digest
    assert torch.equal(kept.logits(small_images), subject.logits(small_images))


def test_a_classes_file_renames_and_has_to_be_of_the_models_length(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    (tmp_path / "names").write_text("c\nb\na\n")
    assert load_teacher(f"hf:{tmp_path}", classes=tmp_path / "names").network_classes == ("c", "b", "a")
    (tmp_path / "names").write_text("c\nb\n")
    with pytest.raises(MalformedTeacher, match="2 names for 3 classes"):
        load_teacher(f"hf:{tmp_path}", classes=tmp_path / "names")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": {"height": 32, "width": 24}}, "not that of a square"),
        ({"size": None}, "not that of a square"),
        ({"include_top": True}, "more than scale and shift"),
    ],
)
def test_images_of_a_form_that_cannot_be_prepared_are_refused(
    tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    saved("vit", tmp_path, {**PROCESSOR, **settings})
    with pytest.raises(MalformedTeacher, match=reason):
        load_teacher(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("settings", "pixels"),
    [({"size": 48}, 48), ({"size": {"shortest_edge": 40}}, 40), ({"do_center_crop": True, "crop_size": 24}, 24)],
)
def test_the_side_of_the_square_is_read_in_every_way_it_is_said(
    tmp_path: Path, settings: dict[str, object], pixels: int
) -> None:
    saved("resnet", tmp_path, {**PROCESSOR, **settings})
    assert load_teacher(f"hf:{tmp_path}").form.pixels == pixels


def test_weights_that_are_not_the_configs_are_refused_and_not_drawn_anew(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("classifier.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CorruptWeights, match=r"classifier\.weight"):
        load_teacher(f"hf:{tmp_path}")
    tensors["classifier.weight"] = torch.full((3, 16), torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CorruptWeights, match="not finite"):
        load_teacher(f"hf:{tmp_path}")
    tensors["classifier.weight"] = torch.zeros(4, 16)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CorruptWeights, match=r"classifier\.weight"):
        load_teacher(f"hf:{tmp_path}")


HOSTILE = {
    "pickle": {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "x.pth"}},
    "fetch": {"model_type": "timm_wrapper", "architecture": "hf-hub:nobody/nothing"},
    "kernel": {"model_type": "vit", "_attn_implementation": "nobody/nothing"},
    "inner": {"model_type": "clip", "vision_config": {"_attn_implementation": "nobody/nothing"}},
    "quantizer": {"model_type": "vit", "quantization_config": {"quant_method": "bitsandbytes"}},
    "code": {"model_type": "vit", "auto_map": {"AutoConfig": "nobody/nothing--x.Y"}},
    "wide": {"model_type": "vit", "hidden_size": 20_000, "num_attention_heads": 1},
    "deep": {"model_type": "vit", "num_hidden_layers": 100_000},
    "list": {"model_type": "convnext", "depths": [10**10, 1, 1, 1]},
    "negative": {"model_type": "vit", "hidden_size": -8},
    "zero": {"model_type": "vit", "patch_size": 0},
    "word": {"model_type": "vit", "hidden_size": "many"},
    "no-type": {},
    "text": {"model_type": "llama"},
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config_in_a_file_runs_fetches_and_builds_nothing(
    config: dict[str, object], tmp_path: Path, offline: list[object]
) -> None:
    declared = {"architecture": "transformers", "config": config, "classes": ["a", "b"], "form": FORM}
    save_file({"w": torch.zeros(1)}, tmp_path / "t.safetensors", metadata={"modulemesh": json.dumps(declared)})
    with pytest.raises(MalformedTeacher):
        load_teacher(f"file:{tmp_path / 't.safetensors'}")
    assert offline == []


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_folder_runs_fetches_and_builds_nothing(
    config: dict[str, object], tmp_path: Path, offline: list[object]
) -> None:
    saved("vit", tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((MalformedTeacher, CorruptWeights)):
        load_teacher(f"hf:{tmp_path}")
    assert offline == []


@pytest.mark.parametrize("settings", [{"rescale_factor": 0}, {"image_mean": None}, {"image_std": [0, 0, 0]}])
def test_a_processor_that_says_nonsense_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    saved("vit", tmp_path, {**PROCESSOR, **settings})
    with pytest.raises(MalformedTeacher, match="preprocessor_config"):
        load_teacher(f"hf:{tmp_path}")


def test_names_that_leave_a_column_out_are_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "5": "b", "6": "c"}}))
    with pytest.raises(MalformedTeacher):
        load_teacher(f"hf:{tmp_path}")


def test_a_folder_that_is_not_there_is_no_repository(tmp_path: Path, offline: list[object]) -> None:
    for name in (tmp_path / "nothing", "./nothing", "nothing"):
        with pytest.raises(UnknownTeacher, match="there is no folder"):
            load_teacher(f"hf:{name}", download=True)
    assert offline == []


def test_a_folder_with_a_pickle_alone_is_refused(tmp_path: Path) -> None:
    model = saved("vit", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(PickleRefused):
        load_teacher(f"hf:{tmp_path}")


def test_nothing_is_fetched_unless_asked_for(offline: list[object]) -> None:
    with pytest.raises(UnknownTeacher, match="fetching it was not asked for"):
        load_teacher("hf:nobody/nothing")
    assert offline == []
    with pytest.raises(UnknownTeacher, match="could not be fetched"):
        load_teacher("hf:nobody/nothing", download=True)
    assert offline


def test_an_identifier_is_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_images: torch.Tensor, offline: list[object]
) -> None:
    repository = tmp_path / "models--somebody--something"
    model = saved("resnet", repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    subject = load_teacher("hf:somebody/something")
    with torch.no_grad():
        own_BC = model(subject.normalised(small_images)).logits
    assert torch.allclose(subject.logits(small_images), own_BC[:, [1, 2, 0]], atol=1e-5)
    assert offline == []


def test_a_folder_without_a_model_or_without_its_images_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownTeacher):
        load_teacher(f"hf:{tmp_path}")
    saved("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(MalformedTeacher, match="preprocessor_config"):
        load_teacher(f"hf:{tmp_path}")


def test_loading_draws_nothing_from_the_global_stream(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    before = torch.get_rng_state()
    load_teacher(f"hf:{tmp_path}")
    assert torch.equal(torch.get_rng_state(), before)
