"""Teachers of transformers: ``hf:FOLDER`` or ``hf:OWNER/NAME``, any classifier of images saved as safetensors.

A folder is one that ``save_pretrained`` wrote; an identifier is looked up in Hugging Face's cache on this machine.
Names of classes are the config's ``id2label``; size, mean and deviation are the image processor's. Code that comes
with a repository is never run.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from experts.errors import (
    CorruptWeights,
    ExpertsError,
    MalformedTeacher,
    PickleRefused,
    SettingOutOfRange,
    UnknownTeacher,
)
from experts.teachers.class_names import distinct_names, read_classes
from experts.teachers.hub import hub_folder
from experts.teachers.limits import no_larger_than
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.packages import imported
from experts.teachers.weights import PICKLE_SUFFIXES, path_given, refuse_pickle

__all__ = ["KIND", "build", "load_transformers_teacher"]

KIND = "transformers"
"""Config: transformers' own of the network, ``model_type`` among it, without what names classes or a version."""

_NAMES = ("id2label", "label2id", "num_labels")
"""Entries of a config that the teacher has beside it."""

_NOT_COMPUTED = frozenset(
    {
        "architectures",
        "attn_implementation",
        "auto_map",
        "dtype",
        "experts_implementation",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "trust_remote_code",
        *_NAMES,
    }
)
"""Entries that say where a model is from and how to run it, not what it computes; so does any that begins with "_".
Some name code that transformers would fetch and run: attention kernels of a repository, for one."""

_FOREIGN_LOADER = "timm_wrapper"
"""A type whose config tells timm what to fetch, or which pickle to read."""

_MAX_SIZE = 1_000_000
"""Of a whole number in a config, above every published size: transformers makes lists as long as some of them."""


_IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
"""Of a repository on the hub: OWNER/NAME."""


class _Logits(nn.Module):
    """A classifier of transformers as a network like any other: a tensor in, a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.model(pixel_values=x_BCHW).logits
        return logits_BC


def build(config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
    """A network of transformers, its weights not set; a `NetworkBuilder`."""
    settings = _computed(KIND, config)
    if settings != config:
        raise MalformedTeacher(KIND, reason="the config has entries that are not of what the network computes")
    transformers = _transformers()
    full = _config(transformers, settings, num_labels=num_classes)
    network: nn.Module = transformers.AutoModelForImageClassification.from_config(full, trust_remote_code=False)
    return _Logits(network)


def load_transformers_teacher(
    subject: str, *, name: str, classes: Path | None = None, download: bool = False
) -> NetworkTeacher:
    """The teacher in a folder or in Hugging Face's cache.

    Args:
        subject: A folder that exists, else an identifier on the hub.
        name: What the user calls it by.
        classes: A classes file; None for the names in the config.
        download: Whether an identifier may be fetched where the cache has none.
    Raises:
        PackageMissing: If transformers is not installed. UnknownTeacher: If it is not here, or no classifier of
        images. PickleRefused: If its weights are there as a pickle only. CorruptWeights: If they do not fit the
        config. MalformedTeacher: If the classes do not fit, or what it takes is not said or not square.
    """
    folder = path_given(subject)
    if folder.is_file():
        refuse_pickle(folder)
        raise UnknownTeacher(name, reason="it is a file; hf: takes a folder or an identifier, file: a file")
    if not folder.is_dir():
        if not _IDENTIFIER.fullmatch(subject):
            raise UnknownTeacher(name, reason=f"there is no folder {folder.absolute()}, and it is no OWNER/NAME")
        folder = hub_folder(subject, name=name, download=download)
    files = _safetensors_of(folder)
    given = _read_config(name, folder)
    transformers = _transformers()
    try:
        full = _config(transformers, _computed(name, given), **_names_in(given))
        declared = [str(full.id2label[column]) for column in range(full.num_labels)]
        with torch.random.fork_rng(devices=[]), no_larger_than(*files):
            model, report = transformers.AutoModelForImageClassification.from_pretrained(
                str(folder),
                config=full,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                # So that the report below names them.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ExpertsError:
        raise
    # What transformers raises on a config that is nonsense, or on damaged weights, only it knows.
    except Exception as exc:
        reason = shorten(f"no classifier of images in safetensors there: {type(exc).__name__}: {exc}", 300)
        raise MalformedTeacher(name, reason=reason) from exc
    wrong = sorted(map(str, [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]))
    if wrong:
        # transformers would put random weights in their place.
        raise CorruptWeights(f"{name}: tensors missing, foreign or of another shape: {', '.join(wrong[:5])}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise CorruptWeights(f"{name}: values that are not finite")
    names = distinct_names(declared) if classes is None else read_classes(classes, num_classes=len(declared))
    config = _computed(name, model.config.to_diff_dict())
    try:
        form = _form(name, _processor(name, folder), channels=getattr(model.config, "num_channels", 3))
    except (ArithmeticError, KeyError, SettingOutOfRange, TypeError) as exc:
        reason = f"preprocessor_config.json: {type(exc).__name__}: {exc}"
        raise MalformedTeacher(name, reason=reason) from exc
    return NetworkTeacher(_Logits(model), name=name, architecture=KIND, config=config, classes=names, form=form)


def _config(transformers: Any, settings: Mapping[str, object], **names: object) -> Any:
    own = {key: value for key, value in settings.items() if key != "model_type"}
    return transformers.AutoConfig.for_model(settings.get("model_type"), **own, **names)


def _read_config(name: str, folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    try:
        given: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise UnknownTeacher(name, reason=f"no classifier of images there: {path}: {exc}") from exc
    if not isinstance(given, dict):
        raise MalformedTeacher(name, reason="config.json is not an object")
    return given


def _computed(name: str, config: Mapping[str, object]) -> dict[str, object]:
    """What of a config says what the network computes, at any depth.

    Raises: MalformedTeacher: If a size is absurd, or the type is one that another library has to load.
    """
    if config.get("model_type") == _FOREIGN_LOADER:
        raise MalformedTeacher(name, reason=f"of type {_FOREIGN_LOADER}; use timm:NAME, or timm:NAME@X.safetensors")
    kept: dict[str, object] = {}
    for key, value in config.items():
        if key in _NOT_COMPUTED or key.startswith("_"):
            continue
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int) and abs(size) > _MAX_SIZE:
                raise MalformedTeacher(name, reason=f"{key} = {size} in its config, {_MAX_SIZE} allowed")
        kept[key] = _computed(name, value) if isinstance(value, dict) else value
    return kept


def _names_in(given: Mapping[str, object]) -> dict[str, object]:
    """The names of classes in a config; their number alone where there are none."""
    names = {key: given[key] for key in _NAMES if given.get(key) is not None}
    if "id2label" in names:
        names.pop("num_labels", None)
    return names


def _processor(name: str, folder: Path) -> dict[str, Any]:
    """The settings of the image processor; the processor itself would need torchvision."""
    mixin = imported("transformers.image_processing_base", subject=name).ImageProcessingMixin
    try:
        settings: dict[str, Any] = mixin.get_image_processor_dict(str(folder), local_files_only=True)[0]
    except (OSError, ValueError) as exc:
        raise MalformedTeacher(name, reason=f"no size, mean and deviation in preprocessor_config.json: {exc}") from exc
    return settings


def _form(name: str, settings: Mapping[str, Any], *, channels: int) -> InputForm:
    """What an image processor does to pixels of 0 to 255, (p f - mean) / deviation, for pixels of 0 to 1."""
    if settings.get("rescale_offset") or settings.get("include_top"):
        raise MalformedTeacher(name, reason="its image processor does more than scale and shift each channel")
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    mean, deviation = [0.0] * channels, [1.0] * channels
    if settings.get("do_normalize", True):
        mean, deviation = settings["image_mean"], settings["image_std"]
    return InputForm(
        channels=channels,
        pixels=_pixels(name, size),
        mean=tuple(value / factor for value in mean),
        deviation=tuple(value / factor for value in deviation),
    )


def _pixels(name: str, size: object) -> int:
    """The side of the square, in any of the ways an image processor says it."""
    sides = set(size.values()) if isinstance(size, dict) else {size}
    side = sides.pop() if len(sides) == 1 else None
    if type(side) is not int:
        raise MalformedTeacher(name, reason=f"the size {size} of its images is not that of a square")
    return side


def _safetensors_of(folder: Path) -> list[Path]:
    """The files of weights, none of which is a pickle."""
    for pattern in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / pattern).exists():
            files = sorted(folder.glob("*.safetensors"))
            for file in files:
                refuse_pickle(file)
            if files:
                return files
    pickles = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise PickleRefused(str(pickles[0]))
    raise UnknownTeacher(f"hf:{folder}", reason="there is no model.safetensors in it")


def _transformers() -> Any:
    return imported("transformers", subject="hf:")
