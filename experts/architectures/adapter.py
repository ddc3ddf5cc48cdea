"""The residual adapter: a linear expert over features that it first corrects through a bottleneck.

    z = input_scale h
    logits = U (z + P relu(V z + a)) + b

An adapter starts as the identity (Houlsby et al. 2019, arXiv:1902.00751, sec. 2.1): P is 0, so a new expert is a
linear one, and learns what the features lack. P has no bias, since U turns one into a part of b.

Legend: B batch, D feature, C class (the expert's own classes).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from experts.architectures.anatomy import Anatomy, Role
from experts.architectures.sized import SizedArchitecture, require_features

__all__ = ["AdapterArchitecture"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterArchitecture(SizedArchitecture):
    """A down-projection V, ReLU and an up-projection P beside the features, then a linear layer."""

    feature_dim: int
    """D, the trunk's features; at least 1."""
    bottleneck: int
    """Units between the two projections; at least 1. Each costs 2 D parameters, twice as much as an `mlp`'s."""
    num_classes: int
    """C, the expert's own classes; at least 1."""
    input_scale: float = 0.3
    """Factor on the features, in (0, 10]; `MlpArchitecture`'s, so that one learning rate serves both."""

    kind: ClassVar[str] = "adapter"

    @property
    def num_parameters(self) -> int:
        """Weights of the three layers, and biases of V and U."""
        down_and_up = (2 * self.feature_dim + 1) * self.bottleneck
        return down_and_up + (self.feature_dim + 1) * self.num_classes

    @property
    def flops_per_sample(self) -> int:
        """4 D for each unit of the bottleneck, and 2 D C."""
        return 2 * self.feature_dim * (2 * self.bottleneck + self.num_classes)

    def build(self, seed: str) -> nn.Module:
        """As every other, but P = 0."""
        module = SizedArchitecture.build(self, seed)
        with torch.no_grad():
            module.get_parameter("up.weight").zero_()
        return module

    @property
    def anatomy(self) -> Anatomy:
        """The bottleneck, what it adds to the features, and the output."""
        return Anatomy(
            roles=(Role(name="down", activation="relu"), Role(name="up", skip=True), Role(name="output")),
            input_scale=self.input_scale,
        )

    def _module(self) -> nn.Module:
        return _Adapter(self)


class _Adapter(nn.Module):
    """The module of `AdapterArchitecture`, which sets its weights."""

    def __init__(self, architecture: AdapterArchitecture) -> None:
        super().__init__()
        self.input_scale = architecture.input_scale
        self.down = nn.Linear(architecture.feature_dim, architecture.bottleneck)
        self.up = nn.Linear(architecture.bottleneck, architecture.feature_dim, bias=False)
        self.output = nn.Linear(architecture.feature_dim, architecture.num_classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        require_features(features_BD, self.down.in_features)
        scaled_BD = features_BD * self.input_scale
        corrected_BD = scaled_BD + self.up(torch.relu(self.down(scaled_BD)))
        logits_BC: torch.Tensor = self.output(corrected_BD)
        return logits_BC
