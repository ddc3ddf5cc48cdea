"""The expert with several hidden layers, alike in size, activation and normalisation.

    z_0 = input_scale h
    z_l = activation(norm(V_l z_{l-1} + a_l))    for each hidden layer l
    logits = U z_L + b

The normalisation is over a row's hidden units, behind the weights and before the activation, with a gain and a bias a
unit (Ba et al. 2016, arXiv:1607.06450, eq. 4).

Legend: B batch, D feature, C class (the expert's own classes), U hidden unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from experts.architectures.anatomy import Anatomy, Role
from experts.architectures.sized import SizedArchitecture, require_features
from experts.errors import UnknownArchitecture

__all__ = ["DeepArchitecture", "MAX_LAYERS"]

MAX_LAYERS = 64
"""Hidden layers. Parameters do not bound them: of one unit each, a peer's config could ask for millions of layers."""

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepArchitecture(SizedArchitecture):
    """Hidden layers one after another, then a linear layer.

    Raises: UnknownArchitecture: Also if there are more than `MAX_LAYERS` hidden layers.
    """

    feature_dim: int
    """D, the trunk's features; at least 1."""
    hidden: int
    """U, units of each hidden layer; at least 1."""
    layers: int
    """Hidden layers; at least 1."""
    activation: Literal["relu", "gelu", "tanh", "silu"] = "relu"
    """Behind each hidden layer; gelu is x Phi(x), not an approximation of it."""
    norm: Literal["none", "layer"] = "none"
    """Whether the units of each hidden layer are normalised before their activation."""
    num_classes: int
    """C, the expert's own classes; at least 1."""
    input_scale: float = 0.3
    """Factor on the features, in (0, 10]; `MlpArchitecture`'s, so that one learning rate serves both."""

    kind: ClassVar[str] = "deep"

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that super() was compiled in.
        SizedArchitecture.__post_init__(self)
        if self.layers > MAX_LAYERS:
            raise UnknownArchitecture(self.kind, reason=f"layers = {self.layers} is more than {MAX_LAYERS}")

    @property
    def num_parameters(self) -> int:
        """Weights and biases of all layers, gains and biases of normalisations."""
        hidden = (self.feature_dim + 1) * self.hidden + (self.layers - 1) * (self.hidden + 1) * self.hidden
        norms = 2 * self.hidden * self.layers if self.norm == "layer" else 0
        return hidden + norms + (self.hidden + 1) * self.num_classes

    @property
    def flops_per_sample(self) -> int:
        """2 (D + U (layers - 1) + C) for each unit of a hidden layer."""
        return 2 * (self.feature_dim + (self.layers - 1) * self.hidden + self.num_classes) * self.hidden

    @property
    def anatomy(self) -> Anatomy:
        """The hidden layers, and the output."""
        hidden = [
            Role(
                name=f"hidden.{layer}",
                activation=self.activation,
                norm=f"norm.{layer}" if self.norm == "layer" else None,
            )
            for layer in range(self.layers)
        ]
        return Anatomy(roles=(*hidden, Role(name="output")), input_scale=self.input_scale)

    def build(self, seed: str) -> nn.Module:
        """As every other, but normalisations leave as it is what they have normalised: gains of 1, biases of 0."""
        module = SizedArchitecture.build(self, seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.startswith("norm."):
                    parameter.fill_(1.0 if name.endswith(".weight") else 0.0)
        return module

    def _module(self) -> nn.Module:
        return _Deep(self)


class _Deep(nn.Module):
    """The module of `DeepArchitecture`, which sets its weights."""

    def __init__(self, architecture: DeepArchitecture) -> None:
        super().__init__()
        self.feature_dim = architecture.feature_dim
        self.input_scale = architecture.input_scale
        self.activation = _ACTIVATIONS[architecture.activation]
        inputs = [architecture.feature_dim, *[architecture.hidden] * (architecture.layers - 1)]
        self.hidden = nn.ModuleList(nn.Linear(columns, architecture.hidden) for columns in inputs)
        self.norm = nn.ModuleList(
            nn.LayerNorm(architecture.hidden) if architecture.norm == "layer" else nn.Identity() for _ in inputs
        )
        self.output = nn.Linear(architecture.hidden, architecture.num_classes)

    def forward(self, features_BD: Tensor) -> Tensor:
        require_features(features_BD, self.feature_dim)
        values_BU = features_BD * self.input_scale
        for hidden, norm in zip(self.hidden, self.norm, strict=True):
            values_BU = self.activation(norm(hidden(values_BU)))
        logits_BC: Tensor = self.output(values_BU)
        return logits_BC
