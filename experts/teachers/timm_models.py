"""Teachers of timm: ``timm:NAME`` with the weights timm publishes, ``timm:NAME@X.safetensors`` with the user's own.

Published weights are the file ``model.safetensors`` of the repository that timm declares for the name, from
Hugging Face's cache on this machine. Size, mean and deviation are what timm declares for the network.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experts.errors import CorruptWeights, MalformedTeacher, UnknownTeacher
from experts.teachers.class_names import distinct_names, read_classes
from experts.teachers.hub import hub_file
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.packages import imported
from experts.teachers.weights import fit_weights, path_given, read_weights, refuse_pickle

__all__ = ["KIND", "build", "load_timm_teacher"]

KIND = "timm"
"""Config: ``{"name": ...}``, a name of `timm.list_models`."""


def build(config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
    """A network of timm, its weights not set; a `NetworkBuilder`."""
    name = config.get("name")
    if config.keys() != {"name"} or not isinstance(name, str):
        raise MalformedTeacher(KIND, reason="the config is not {'name': ...}")
    timm = _timm()
    _require_known(timm, name)
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=form.channels)
    return network


def load_timm_teacher(
    subject: str, *, name: str, classes: Path | None = None, download: bool = False
) -> NetworkTeacher:
    """The teacher that timm calls by this name.

    Args:
        subject: ``NAME``, with timm's tag of the weights or without (``resnet18.a1_in1k``), or
            ``NAME@X.safetensors``, a state of that network, of 1,000 ImageNet classes unless a classes file is given.
        name: What the user calls it by.
        classes: A classes file; None for the names timm declares.
        download: Whether published weights may be fetched where the cache has none.
    Raises:
        PackageMissing: If timm is not installed. UnknownTeacher: If timm knows no such name, publishes no weights
        for it, or they are not here. PickleRefused, CorruptWeights: On what `read_weights` and `fit_weights` refuse.
        MalformedTeacher: If the classes do not fit, or the network takes no square images.
    """
    model_name, _, file = subject.partition("@")
    path = path_given(file)
    if file:
        refuse_pickle(path)
    timm = _timm()
    _require_known(timm, model_name)
    declared = timm.get_pretrained_cfg(model_name)
    if declared is None:
        raise UnknownTeacher(name, reason="timm declares neither size nor weights for it")
    form = _form(name, declared)
    names = _names(declared) if classes is None else read_classes(classes)
    config = {"name": declared.architecture}
    with torch.random.fork_rng(devices=[]):
        if file:
            network = build(config, form, len(names))
            fit_weights(network, read_weights(path), source=file)
        else:
            if declared.num_classes != len(names):
                raise MalformedTeacher(name, reason=f"{len(names)} names for {declared.num_classes} classes")
            network = _published(timm, model_name, declared, name=name, download=download)
    return NetworkTeacher(network, name=name, architecture=KIND, config=config, classes=names, form=form)


def _published(timm: Any, model_name: str, declared: Any, *, name: str, download: bool) -> nn.Module:
    if not declared.hf_hub_id:
        raise UnknownTeacher(name, reason="timm publishes no safetensors for it; give NAME@X.safetensors")
    file = declared.hf_hub_filename or "model.safetensors"
    tensors = read_weights(hub_file(declared.hf_hub_id, file, name=name, download=download))
    # By way of timm, which renames the tensors of weights that are older than its network.
    try:
        network: nn.Module = timm.create_model(
            model_name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}
        )
    except (KeyError, RuntimeError) as exc:
        raise CorruptWeights(f"{name}: not the weights of this network: {exc}") from exc
    # timm lets any value pass.
    fit_weights(network, network.state_dict(), source=name)
    return network


def _names(declared: Any) -> tuple[str, ...]:
    for given in (declared.label_descriptions, declared.label_names):
        if given is not None:
            return distinct_names([str(given[key]) for key in given] if isinstance(given, dict) else list(given))
    data = imported("timm.data", subject="timm:")
    subset = data.infer_imagenet_subset({"num_classes": declared.num_classes})
    if subset is None:
        return tuple(f"class-{column:04}" for column in range(declared.num_classes))
    return distinct_names(data.ImageNetInfo(subset).label_descriptions())


def _form(name: str, declared: Any) -> InputForm:
    channels, height, width = declared.input_size
    if height != width:
        raise MalformedTeacher(name, reason=f"it takes images of {height} x {width}; only square ones are prepared")
    return InputForm(channels=channels, pixels=height, mean=tuple(declared.mean), deviation=tuple(declared.std))


def _require_known(timm: Any, name: str) -> None:
    # "hf-hub:" and the like, which create_model would follow, are not names of models.
    if not timm.is_model(name):
        raise UnknownTeacher(f"timm:{name}", reason="timm knows no model of this name (timm.list_models())")


def _timm() -> Any:
    return imported("timm", subject="timm:")
