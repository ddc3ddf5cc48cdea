"""Kinds of teacher networks: the built-in ones, those of installed libraries, then those that packages declare.

A package declares a kind by a Python entry point that names a function like `NetworkBuilder`. In its pyproject.toml:

    [project.entry-points."modulemesh.teachers"]
    my-kind = "my_package.my_module:build"

A file can name a kind, never code: what a name stands for, the owner of this machine decided by installing the
package, and nobody can replace a built-in kind.
"""

import importlib.metadata
from collections.abc import Mapping
from textwrap import shorten
from typing import Protocol

import torch
from torch import nn

from experts.errors import ExpertsError, MalformedTeacher, UnknownTeacher
from experts.networks.efficientnet_lite0 import HEAD_CHANNELS, build_layers
from experts.teachers import timm_models, torchvision_models, transformers_models
from experts.teachers.cnn import CnnTeacher
from experts.teachers.network import InputForm

__all__ = ["CNN", "EFFICIENTNET_LITE0", "ENTRY_POINT_GROUP", "NetworkBuilder", "build_network"]

ENTRY_POINT_GROUP = "modulemesh.teachers"
"""Where packages declare kinds."""
CNN = "cnn"
"""The reference CNN (`CnnTeacher`); an empty config."""
EFFICIENTNET_LITE0 = "efficientnet-lite0"
"""All of `experts.networks.efficientnet_lite0`; an empty config."""


class NetworkBuilder(Protocol):
    """Builds a network of one kind."""

    def __call__(self, config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
        """A network with any weights, from normalised images of the form to ``(B, num_classes)``.

        Args:
            config: What the kind's files declare besides form and classes: a JSON object.
        Raises: MalformedTeacher: If the config is not one of this kind.
        """


def build_network(kind: str, config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
    """A network of a kind, its weights not set; no random stream is touched.

    Raises:
        UnknownTeacher: If the kind is neither built in nor declared by exactly one package that can be imported.
        MalformedTeacher: If the config is not one of this kind.
        PackageMissing: If the kind is of a library that is not installed.
    """
    builder = _BUILT_IN.get(kind) or _installed(kind)
    try:
        # What torch's own initialisation draws is thrown away; nobody else's numbers may depend on it.
        with torch.random.fork_rng(devices=[]):
            return builder(config, form, num_classes)
    except ExpertsError:
        raise
    # The config is a file's, and what another library's constructor raises on nonsense only it knows.
    except Exception as exc:
        reason = shorten(f"no network has this config: {type(exc).__name__}: {exc}", 300)
        raise MalformedTeacher(kind, reason=reason) from exc


def _cnn(config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
    _require_empty(CNN, config)
    # Its own names are not used: the teacher around it has them.
    return CnnTeacher(map(str, range(num_classes)), channels=form.channels, pixels=form.pixels)


def _efficientnet_lite0(config: Mapping[str, object], form: InputForm, num_classes: int) -> nn.Module:
    _require_empty(EFFICIENTNET_LITE0, config)
    if form.channels != 3:
        raise MalformedTeacher(EFFICIENTNET_LITE0, reason="it takes images of 3 channels")
    layers = build_layers(head=True)
    layers[-1] = nn.Linear(HEAD_CHANNELS, num_classes)
    return layers


_BUILT_IN: Mapping[str, NetworkBuilder] = {
    CNN: _cnn,
    EFFICIENTNET_LITE0: _efficientnet_lite0,
    timm_models.KIND: timm_models.build,
    torchvision_models.KIND: torchvision_models.build,
    transformers_models.KIND: transformers_models.build,
}


def _installed(kind: str) -> NetworkBuilder:
    """The function an installed package declares for a kind that is not built in."""
    declared = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    points = [point for point in declared if point.name == kind]
    if not points:
        known = ", ".join(sorted(_BUILT_IN.keys() | {point.name for point in declared}))
        raise UnknownTeacher(kind, reason=f"no such kind of network; known: {known}")
    if len(points) > 1:
        raise UnknownTeacher(kind, reason="several packages declare this kind of network")
    try:
        builder: object = points[0].load()
    except (ImportError, AttributeError) as exc:
        raise UnknownTeacher(kind, reason=f"{points[0].value} cannot be imported: {exc}") from exc
    if not callable(builder):
        raise UnknownTeacher(kind, reason=f"{points[0].value} is not a function that builds a network")
    build: NetworkBuilder = builder
    return build


def _require_empty(kind: str, config: Mapping[str, object]) -> None:
    if config:
        raise MalformedTeacher(kind, reason=f"a config with {', '.join(sorted(config))}; it has none")
