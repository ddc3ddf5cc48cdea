"""What the built-in architectures share: a form that a few sizes, words and one factor determine.

Each is a dataclass whose fields are its config: an int field is a size, a Literal one of the words it lists, the float
field `input_scale` multiplies the features before the first layer. From that follow the checks, the config, and how the
module gets its weights.

Legend: B batch, D feature.
"""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self, get_args

import torch
from torch import nn

from experts.architectures.base import MAX_PARAMETERS, Architecture
from experts.errors import ShapeMismatch, UnknownArchitecture
from experts.generators import portable_uniform
from experts.materialise import materialise

__all__ = ["SizedArchitecture", "require_features"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SizedArchitecture(Architecture):
    """An architecture given by positive sizes, by words and by factors on the features.

    Raises: UnknownArchitecture: If a size is not in [1, `MAX_PARAMETERS`], a word is none of its field's, a factor not
        in (0, 10], or the sizes together ask for more than `MAX_PARAMETERS`.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if field.type is int:
                if type(value) is not int or not 1 <= value <= MAX_PARAMETERS:
                    raise UnknownArchitecture(self.kind, reason=f"{field.name} = {value!r} is not a positive number")
            elif words := get_args(field.type):
                if value not in words:
                    raise UnknownArchitecture(
                        self.kind, reason=f"{field.name} = {value!r} is none of {', '.join(words)}"
                    )
            elif not 0 < value <= 10:
                raise UnknownArchitecture(self.kind, reason=f"{field.name} = {value!r} is not in (0, 10]")
        if self.num_parameters > MAX_PARAMETERS:
            raise UnknownArchitecture(self.kind, reason=f"more than {MAX_PARAMETERS} parameters")

    @abstractmethod
    def _module(self) -> nn.Module:
        """The module, its layers linear or convolutional; its weights will be set."""

    def to_config(self) -> dict[str, object]:
        """Kind and fields."""
        fields: dict[str, object] = {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # 1 and 1.0 are the same factor and must have the same digest.
            fields[field.name] = float(value) if field.type is float else value
        return fields

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; every key must be there and no other."""
        types: dict[str, Any] = {
            field.name: str if get_args(field.type) else field.type for field in dataclasses.fields(cls)
        }
        if foreign := config.keys() - types.keys() - {"kind"}:
            known = ", ".join(sorted(types))
            raise UnknownArchitecture(
                cls.kind, reason=f"it has no {', '.join(sorted(map(str, foreign)))}; its settings are {known}"
            )
        if missing := (types.keys() | {"kind"}) - config.keys():
            raise UnknownArchitecture(cls.kind, reason=f"{', '.join(sorted(missing))} must be given")
        fields = {name: config[name] for name in types}
        for name, kind in types.items():
            # The exact type: True is an int to isinstance, and 1 and 1.0 would have two digests.
            if type(fields[name]) is not kind:
                raise UnknownArchitecture(cls.kind, reason=f"{name} = {fields[name]!r} is not of type {kind.__name__}")
        return cls(**fields)

    def build(self, seed: str) -> nn.Module:
        """Weights and biases uniform in +-1/sqrt(fan-in), the range of torch's own layers."""
        # On the meta device torch's own initialisation draws nothing from the global stream.
        with torch.device("meta"):
            module = self._module()
        materialise(module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                # Each output of a linear layer or of a convolution has one row of weights: as many as its inputs.
                weight = module.get_parameter(f"{name.rpartition('.')[0]}.weight")
                bound = 1.0 / math.sqrt(weight[0].numel())
                uniform = portable_uniform(seed, name, parameter.shape)
                parameter.copy_((uniform * 2 - 1) * bound)
        return module


def require_features(features_BD: torch.Tensor, feature_dim: int) -> None:
    """Raises ShapeMismatch if the features are not ``(B, feature_dim)``."""
    if features_BD.ndim != 2 or features_BD.shape[1] != feature_dim:
        raise ShapeMismatch("features", expected=("B", feature_dim), got=features_BD.shape)
