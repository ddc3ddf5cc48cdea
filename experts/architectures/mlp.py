"""The expert with one hidden layer: the default, and the form the proposal gives.

    logits = U relu(V (input_scale h) + a) + b                                       (proposal, section 2.1)

Legend: B batch, D feature, C class (the expert's own classes).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from experts.architectures.anatomy import Anatomy, Role
from experts.architectures.sized import SizedArchitecture, require_features

__all__ = ["MlpArchitecture"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpArchitecture(SizedArchitecture):
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

    @property
    def num_parameters(self) -> int:
        """Weights and biases of both layers."""
        return (self.feature_dim + 1) * self.hidden + (self.hidden + 1) * self.num_classes

    @property
    def flops_per_sample(self) -> int:
        """2 (D + C) for each hidden unit."""
        return 2 * (self.feature_dim + self.num_classes) * self.hidden

    @property
    def anatomy(self) -> Anatomy:
        """One hidden layer, and the output."""
        return Anatomy(
            roles=(Role(name="hidden", activation="relu"), Role(name="output")), input_scale=self.input_scale
        )

    def _module(self) -> nn.Module:
        return _Mlp(self)


class _Mlp(nn.Module):
    """The module of `MlpArchitecture`, which sets its weights."""

    def __init__(self, architecture: MlpArchitecture) -> None:
        super().__init__()
        self.input_scale = architecture.input_scale
        self.hidden = nn.Linear(architecture.feature_dim, architecture.hidden)
        self.output = nn.Linear(architecture.hidden, architecture.num_classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        require_features(features_BD, self.hidden.in_features)
        logits_BC: torch.Tensor = self.output(torch.relu(self.hidden(features_BD * self.input_scale)))
        return logits_BC
