"""Teachers of torchvision: ``torchvision:NAME[@WEIGHTS]`` as published, ``torchvision:NAME@X.safetensors`` the user's.

Size, mean, deviation and names of classes are what torchvision declares with the weights. Published weights are a
file of torchvision's own registry in torch's cache on this machine: of the digest in its name, and read by torch's
tensors-only reader.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from experts.errors import CorruptWeights, MalformedTeacher, UnknownTeacher
from experts.teachers.class_names import distinct_names, read_classes
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.packages import imported
from experts.teachers.weights import fit_weights, path_given, read_weights, refuse_pickle

__all__ = ["KIND", "build", "load_torchvision_teacher"]

KIND = "torchvision"
"""Config: ``{"name": ...}``, a name of `torchvision.models.list_models` that classifies images."""

_DEFAULT = "DEFAULT"
"""torchvision's name of the best published weights of a network."""


def build(config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
    """A network of torchvision, its weights not set; a `NetworkBuilder`."""
    name = config.get("name")
    if config.keys() != {"name"} or not isinstance(name, str):
        raise MalformedTeacher(KIND, reason="the config is not {'name': ...}")
    if form.channels != 3:
        raise MalformedTeacher(KIND, reason="its networks take images of 3 channels")
    models = _models()
    _require_known(models, name)
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network


def load_torchvision_teacher(
    subject: str, *, name: str, classes: Path | None = None, download: bool = False
) -> NetworkTeacher:
    """The teacher that torchvision calls by this name.

    Args:
        subject: ``NAME`` for its default weights, ``NAME@IMAGENET1K_V1`` for others, or ``NAME@X.safetensors``, a
            state of that network, of 1,000 ImageNet classes unless a classes file is given.
        name: What the user calls it by.
        classes: A classes file; None for the names torchvision declares.
        download: Whether published weights may be fetched where the cache has none.
    Raises:
        PackageMissing: If torchvision is not installed, or not for this torch. UnknownTeacher: If it knows no such
        name or weights, or they are not here. PickleRefused, CorruptWeights: On what `read_weights` and
        `fit_weights` refuse. MalformedTeacher: If the classes do not fit.
    """
    model_name, _, given = subject.partition("@")
    # torchvision's names of weights have no dot; whatever has one is a file.
    file = path_given(given) if "." in given else None
    if file is not None:
        refuse_pickle(file)
    models = _models()
    _require_known(models, model_name)
    weights = _declared(models, model_name, _DEFAULT if file is not None or not given else given, name=name)
    names = distinct_names(weights.meta["categories"]) if classes is None else read_classes(classes)
    form = _form(name, weights)
    config = {"name": model_name}
    if file is None:
        if len(names) != len(weights.meta["categories"]):
            raise MalformedTeacher(name, reason=f"{len(names)} names for {len(weights.meta['categories'])} classes")
        tensors = _published(weights, name=name, download=download)
    else:
        tensors = read_weights(file)
    with torch.random.fork_rng(devices=[]):
        network = build(config, form, len(names))
    fit_weights(network, tensors, source=name)
    return NetworkTeacher(network, name=name, architecture=KIND, config=config, classes=names, form=form)


def _declared(models: Any, model_name: str, weights: str, *, name: str) -> Any:
    known = models.get_model_weights(model_name)
    if weights not in known.__members__:
        raise UnknownTeacher(name, reason=f"weights of {model_name}: {', '.join(known.__members__)}; or X.safetensors")
    return known[weights]


def _form(name: str, weights: Any) -> InputForm:
    transforms = weights.transforms()
    (pixels,) = transforms.crop_size
    return InputForm(channels=3, pixels=pixels, mean=tuple(transforms.mean), deviation=tuple(transforms.std))


def _published(weights: Any, *, name: str, download: bool) -> dict[str, torch.Tensor]:
    """From torch's cache, fetched into it if that is allowed."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(weights.url).name
    if not file.exists():
        if not download:
            raise UnknownTeacher(name, reason=f"{file} is not here, and fetching it was not asked for")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(weights.url, str(file), hash_prefix=_digest_prefix(file), progress=False)
        except (OSError, RuntimeError) as exc:
            raise UnknownTeacher(name, reason=f"{weights.url} could not be fetched: {exc}") from exc
    data = file.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(_digest_prefix(file)):
        raise CorruptWeights(f"{file} is not the file that torchvision published")
    tensors: dict[str, torch.Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return tensors


def _digest_prefix(file: Path) -> str:
    """torchvision's files are named ``resnet18-f37072fd.pth``, by the first digits of their SHA-256."""
    return file.stem.rpartition("-")[2]


def _require_known(models: Any, name: str) -> None:
    # Without a module's name, list_models also has networks for video, detection and segmentation.
    if name not in models.list_models(module=models):
        raise UnknownTeacher(f"torchvision:{name}", reason="torchvision knows no classifier of images of this name")


def _models() -> Any:
    return imported("torchvision.models", subject="torchvision:")
