"""Expert modules and the registry of their architectures.

Legend: B batch, D feature, C class (the expert's own classes).

An expert maps the trunk's features to scores over its own classes: E_i(x) = softmax(U relu(V h)), zero for
every other class (proposal, section 2.1). Which classes its columns stand for, its owner knows.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from experts.errors import ShapeMismatch, UnknownArchitecture
from experts.generators import portable_uniform
from experts.materialise import materialise

__all__ = ["Architecture", "MAX_PARAMETERS", "MlpArchitecture", "architecture_from_config", "probabilities"]

MAX_PARAMETERS = 16_000_000
"""64 MiB of float32, the largest message of the wire; an advertised config must not make us allocate more."""


class Architecture(ABC):
    """The form of an expert's module: enough to build it, and nothing about what it has learned."""

    __slots__ = ()

    kind: ClassVar[str]
    """The registry's name for this form."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Number of trainable values."""

    @abstractmethod
    def to_config(self) -> dict[str, object]:
        """A JSON object, with ``kind``, from which `architecture_from_config` makes an equal architecture."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`.

        Raises: UnknownArchitecture: If keys, types or ranges are not as `to_config` writes them.
        """

    @abstractmethod
    def build(self, seed: str) -> nn.Module:
        """A module whose forward maps features ``(B, D)`` to logits ``(B, C)``.

        Its initial weights are the same bits on every machine for the same seed (the expert's uid), so two
        nodes that spawn the same expert hold replicas from the start.
        """

    def digest(self) -> str:
        """sha256 of the canonical JSON of `to_config`, 64 lowercase hex characters."""
        canonical = json.dumps(self.to_config(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpArchitecture(Architecture):
    """One hidden layer: logits = U relu(V (input_scale h)), with biases."""

    feature_dim: int
    """D, the trunk's features; at least 1."""
    hidden: int
    """Hidden units; at least 1. 8 serve two classes, 16 ten."""
    num_classes: int
    """C, the expert's own classes; at least 1."""
    input_scale: float = 0.3
    """Factor on the features, in (0, 10]; .3 keeps SGD at learning rate .05 stable at unit variance."""

    kind: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        for name in ("feature_dim", "hidden", "num_classes"):
            value: object = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_PARAMETERS:
                raise UnknownArchitecture(self.kind, reason=f"{name} = {value!r} is not a positive number")
        if not 0 < self.input_scale <= 10:
            raise UnknownArchitecture(self.kind, reason=f"input_scale = {self.input_scale!r} is not in (0, 10]")
        if self.num_parameters > MAX_PARAMETERS:
            raise UnknownArchitecture(self.kind, reason=f"more than {MAX_PARAMETERS} parameters")

    @property
    def num_parameters(self) -> int:
        """Weights and biases of both layers."""
        return (self.feature_dim + 1) * self.hidden + (self.hidden + 1) * self.num_classes

    def to_config(self) -> dict[str, object]:
        """Kind, the three sizes and the scale."""
        return {
            "kind": self.kind,
            "feature_dim": self.feature_dim,
            "hidden": self.hidden,
            "num_classes": self.num_classes,
            "input_scale": float(self.input_scale),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; every key must be there and no other."""
        expected: dict[str, type] = {
            "feature_dim": int,
            "hidden": int,
            "num_classes": int,
            "input_scale": float,
        }
        if config.keys() != expected.keys() | {"kind"}:
            raise UnknownArchitecture(cls.kind, reason=f"keys {sorted(map(str, config))}")
        fields = {name: config[name] for name in expected}
        for name, kind in expected.items():
            # The exact type: True is an int to isinstance, and 1 and 1.0 would have two digests.
            if type(fields[name]) is not kind:
                raise UnknownArchitecture(cls.kind, reason=f"{name} = {fields[name]!r} is not of type {kind.__name__}")
        return cls(**fields)  # type: ignore[arg-type]

    def build(self, seed: str) -> nn.Module:
        """Weights and biases uniform in +-1/sqrt(fan-in), the range of torch's own linear layers."""
        # On the meta device torch's own initialisation draws nothing from the global stream.
        with torch.device("meta"):
            module = _Mlp(self)
        materialise(module)
        with torch.no_grad():
            for layer_name, layer in (("hidden", module.hidden), ("output", module.output)):
                bound = 1.0 / math.sqrt(layer.in_features)
                for name, parameter in layer.named_parameters():
                    uniform = portable_uniform(seed, f"{layer_name}.{name}", parameter.shape)
                    parameter.copy_((uniform * 2 - 1) * bound)
        return module


class _Mlp(nn.Module):
    """The module of `MlpArchitecture`, which sets its weights."""

    def __init__(self, architecture: MlpArchitecture) -> None:
        super().__init__()
        self.input_scale = architecture.input_scale
        self.hidden = nn.Linear(architecture.feature_dim, architecture.hidden)
        self.output = nn.Linear(architecture.hidden, architecture.num_classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        if features_BD.ndim != 2 or features_BD.shape[1] != self.hidden.in_features:
            raise ShapeMismatch("features", expected=("B", self.hidden.in_features), got=features_BD.shape)
        logits_BC: torch.Tensor = self.output(torch.relu(self.hidden(features_BD * self.input_scale)))
        return logits_BC


def architecture_from_config(config: Mapping[str, object]) -> Architecture:
    """The architecture that a config names; safe on a config from anyone.

    Raises: UnknownArchitecture: If the kind is not registered, or the rest is not what that kind writes.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in _REGISTRY:
        raise UnknownArchitecture(kind, reason=f"known kinds: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[kind].from_config(config)


def probabilities(module: nn.Module, features_BD: torch.Tensor) -> torch.Tensor:
    """softmax of the module's logits: ``(B, C)`` rows that sum to 1, without a graph for gradients.

    Raises: ShapeMismatch: If the features do not have the module's dimension.
    """
    with torch.inference_mode():
        return torch.softmax(module(features_BD), dim=-1)


_REGISTRY: Mapping[str, type[Architecture]] = {MlpArchitecture.kind: MlpArchitecture}
