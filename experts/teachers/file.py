"""A teacher in a file: weights in safetensors, and beside them what network they are of, its classes and its form.

What is declared is one JSON object, in the header of the file as `experts.checkpoint` writes it, or in a file beside
it (``X.json`` or ``X.toml`` for ``X.safetensors``), which declares weights that another program wrote:

    {"architecture": "efficientnet-lite0", "config": {}, "classes": ["ant", "bee"],
     "form": {"channels": 3, "pixels": 224, "mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}}

``classes`` are in the order of the network's columns; a classes file may give them instead. What `CnnTeacher.to_bytes`
writes is such a file too.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from experts.errors import CorruptWeights, MalformedTeacher, SettingOutOfRange
from experts.teachers.class_names import read_classes
from experts.teachers.kinds import CNN, build_network
from experts.teachers.limits import no_larger_than
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.weights import fit_weights, read_weights, refuse_pickle

__all__ = ["load_file_teacher", "save_teacher"]

_HEADER = "modulemesh"
"""The entry of the header that `experts.checkpoint` keeps its JSON object in."""
_KEYS = frozenset({"architecture", "config", "classes", "form"})
_MAX_DECLARATION_BYTES = 16 * 1024 * 1024
"""Of a file beside the weights; names of 21,841 classes take below 1 MiB."""


class _Declaration(NamedTuple):
    architecture: str
    config: Mapping[str, object]
    classes: tuple[str, ...] | None
    form: InputForm


def save_teacher(teacher: NetworkTeacher, path: Path) -> None:
    """Writes a teacher, whatever it was loaded from, as one file that ``file:`` loads with the same digest.

    Args:
        path: Ends in ``.safetensors``; appears whole or not at all, and replaces a file of that name.
    Raises:
        MalformedTeacher: If the path has another ending.
        CorruptWeights: If a weight is not finite: what nobody could load is not written.
    """
    _require_suffix(path)
    # Tied weights share memory, which the format does not allow.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in sorted(teacher.network.state_dict().items())}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CorruptWeights(f"{name} has values that are not finite")
    declared = {
        "architecture": teacher.architecture,
        "config": teacher.config,
        "classes": teacher.network_classes,
        "form": asdict(teacher.form),
    }
    header = {_HEADER: json.dumps(declared, sort_keys=True, separators=(",", ":"))}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=header)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_file_teacher(path: Path, *, name: str, classes: Path | None = None) -> NetworkTeacher:
    """The teacher in a file.

    Args:
        path: Ends in ``.safetensors``.
        name: What the user calls it by.
        classes: A classes file whose names take the place of those declared; None to use these.
    Raises:
        PickleRefused: If the file is a pickle, whatever its name.
        MalformedTeacher: If nothing is declared, or what is declared is incomplete or contradicts itself.
        CorruptWeights: If the file is not safetensors, or its tensors are not those of the network declared.
        UnknownTeacher: If there is no such file, or no network of the kind declared can be built here.
        PackageMissing: If it is of a library that is not installed.
    """
    refuse_pickle(path)
    _require_suffix(path)
    tensors = read_weights(path)
    declared = _declaration(path)
    if classes is None:
        names = declared.classes
    else:
        names = read_classes(classes, num_classes=None if declared.classes is None else len(declared.classes))
    if names is None:
        raise MalformedTeacher(str(path), reason="no classes are declared; give a classes file")
    with no_larger_than(path):
        network = build_network(declared.architecture, declared.config, declared.form, len(names))
    fit_weights(network, tensors, source=str(path))
    return NetworkTeacher(
        network,
        name=name,
        architecture=declared.architecture,
        config=declared.config,
        classes=names,
        form=declared.form,
    )


def _require_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise MalformedTeacher(str(path), reason="a teacher's file ends in .safetensors")


def _declaration(path: Path) -> _Declaration:
    """From the header or from one file beside it; of two that could differ neither is believed."""
    found = {str(source): given for source, given in _sources(path) if given is not None}
    if len(found) != 1:
        reason = (
            f"the network is declared in {' and in '.join(found)}"
            if found
            else (f"no network is declared in its header, nor in {path.stem}.json or {path.stem}.toml beside it")
        )
        raise MalformedTeacher(str(path), reason=reason)
    ((source, given),) = found.items()
    try:
        return _parsed(source, given)
    except SettingOutOfRange as exc:
        raise MalformedTeacher(source, reason=f"form: {exc}") from exc


def _sources(path: Path) -> list[tuple[Path, object]]:
    return [
        (path, _in_header(path)),
        (path.with_suffix(".json"), _beside(path.with_suffix(".json"))),
        (path.with_suffix(".toml"), _beside(path.with_suffix(".toml"))),
    ]


def _in_header(path: Path) -> object:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
        return None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as exc:
        raise CorruptWeights(f"{path}: unreadable header: {exc}") from exc


def _beside(path: Path) -> object:
    if not path.exists():
        return None
    try:
        if path.stat().st_size > _MAX_DECLARATION_BYTES:
            raise MalformedTeacher(str(path), reason=f"longer than {_MAX_DECLARATION_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        given: object = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as exc:
        raise MalformedTeacher(str(path), reason=f"unreadable: {exc}") from exc
    return given


def _parsed(source: str, given: object) -> _Declaration:
    if not isinstance(given, dict):
        raise MalformedTeacher(source, reason="the declaration is not an object")
    if given.keys() == {"classes", "channels", "pixels"}:
        # The reference CNN's own file: images as they are.
        channels = given["channels"] if type(given["channels"]) is int and given["channels"] in (1, 3) else 1
        plain = {"mean": [0.0] * channels, "deviation": [1.0] * channels}
        written = {"channels": given["channels"], "pixels": given["pixels"], **plain}
        return _parsed(source, {"architecture": CNN, "classes": given["classes"], "form": written})
    foreign = sorted(map(str, given.keys() - _KEYS))
    if foreign:
        raise MalformedTeacher(source, reason=f"unknown entries {', '.join(foreign)}")
    architecture, config, form = (given.get(key) for key in ("architecture", "config", "form"))
    if not isinstance(architecture, str):
        raise MalformedTeacher(source, reason="'architecture' is not the name of a kind of network")
    if not isinstance(config, dict | None):
        raise MalformedTeacher(source, reason="'config' is not an object")
    if not isinstance(form, dict) or form.keys() != {"channels", "pixels", "mean", "deviation"}:
        raise MalformedTeacher(source, reason="'form' is not an object of channels, pixels, mean and deviation")
    return _Declaration(architecture, config or {}, _names(source, given.get("classes")), InputForm(**form))


def _names(source: str, given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise MalformedTeacher(source, reason="'classes' is not a list of names")
    return tuple(given)
