"""The linear expert: the least there is, and convex to learn.

    logits = U (input_scale h) + b

Legend: B batch, D feature, C class (the expert's own classes).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from experts.architectures.anatomy import Anatomy, Role
from experts.architectures.sized import SizedArchitecture, require_features

__all__ = ["LinearArchitecture"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearArchitecture(SizedArchitecture):
    """One linear layer."""

    feature_dim: int
    """D, the trunk's features; at least 1."""
    num_classes: int
    """C, the expert's own classes; at least 1."""
    input_scale: float = 0.3
    """Factor on the features, in (0, 10]; `MlpArchitecture`'s, so that one learning rate serves both."""

    kind: ClassVar[str] = "linear"

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return (self.feature_dim + 1) * self.num_classes

    @property
    def flops_per_sample(self) -> int:
        """2 D C."""
        return 2 * self.feature_dim * self.num_classes

    @property
    def anatomy(self) -> Anatomy:
        """The output alone."""
        return Anatomy(roles=(Role(name="output"),), input_scale=self.input_scale)

    def _module(self) -> nn.Module:
        return _Linear(self)


class _Linear(nn.Module):
    """The module of `LinearArchitecture`, which sets its weights."""

    def __init__(self, architecture: LinearArchitecture) -> None:
        super().__init__()
        self.input_scale = architecture.input_scale
        self.output = nn.Linear(architecture.feature_dim, architecture.num_classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        require_features(features_BD, self.output.in_features)
        logits_BC: torch.Tensor = self.output(features_BD * self.input_scale)
        return logits_BC
