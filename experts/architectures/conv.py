"""The convolutional head: an expert over features that are a map which the trunk flattened.

    X = input_scale h, as channels x height x width
    logits = U mean over positions of relu(F * X + a) + b

F holds 3x3 filters, and zeros surround the map, so that a position at the edge has a response too. The mean forgets
where a filter responded: weights are few, whatever the map's size, and what is alike at two places is learned once.

Legend: B batch, D feature, C class (the expert's own classes), H height, W width; in BCHW and BFHW the second letter
is the map's channels, or filters.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from experts.architectures.anatomy import Anatomy, Role
from experts.architectures.base import MAX_PARAMETERS
from experts.architectures.sized import SizedArchitecture, require_features
from experts.errors import UnknownArchitecture

__all__ = ["ConvArchitecture", "MAX_RESPONSES"]

MAX_RESPONSES = 65_536
"""Responses of all filters at all positions: 256 KiB a row. Parameters do not bound them, and a peer's config could
make one row take gigabytes."""

_KERNEL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvArchitecture(SizedArchitecture):
    """One 3x3 convolution, ReLU, the mean over positions, and a linear layer.

    Raises: UnknownArchitecture: Also if the map has more than `MAX_PARAMETERS` values, or the filters give more than
        `MAX_RESPONSES`.
    """

    channels: int
    """Of the map; at least 1. 40 at tap B4, 240 at E5."""
    height: int
    """Of the map; at least 1. 4 at tap B4, 3 at E5."""
    width: int
    """Of the map; at least 1. As its height at both taps."""
    filters: int
    """3x3 filters, at least 1. 8 at B4 with two classes: 2,906 parameters (an `mlp` of 8: 5,146), 92 kFLOPs (10)."""
    num_classes: int
    """C, the expert's own classes; at least 1."""
    input_scale: float = 2.0
    """Factor on the features, in (0, 10]. Means over positions are small: at learning rate .05, .3 as for the others
    ends ten points lower (tap B4, ten classes); 3 gains nothing at E5."""

    kind: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that super() was compiled in.
        SizedArchitecture.__post_init__(self)
        if self.feature_dim > MAX_PARAMETERS:
            raise UnknownArchitecture(self.kind, reason=f"a map of more than {MAX_PARAMETERS} values")
        if self.filters * self.height * self.width > MAX_RESPONSES:
            raise UnknownArchitecture(self.kind, reason=f"more than {MAX_RESPONSES} responses of filters")

    @property
    def feature_dim(self) -> int:
        """D, the trunk's features: the map in C order, channel by channel."""
        return self.channels * self.height * self.width

    @property
    def num_parameters(self) -> int:
        """Filters and weights, with their biases."""
        return (_KERNEL**2 * self.channels + 1) * self.filters + (self.filters + 1) * self.num_classes

    @property
    def flops_per_sample(self) -> int:
        """2 (9 channels H W + C) for each filter; products with the zeros around the map count."""
        products = _KERNEL**2 * self.channels * self.height * self.width
        return 2 * (products + self.num_classes) * self.filters

    @property
    def anatomy(self) -> Anatomy:
        """The filters over the map that the trunk flattened, and the output."""
        return Anatomy(
            roles=(Role(name="conv", activation="relu", pooled=True), Role(name="output")),
            input_scale=self.input_scale,
            input_map=(self.channels, self.height, self.width),
        )

    def _module(self) -> nn.Module:
        return _Conv(self)


class _Conv(nn.Module):
    """The module of `ConvArchitecture`, which sets its weights."""

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__()
        self.form = (architecture.channels, architecture.height, architecture.width)
        self.feature_dim = architecture.feature_dim
        self.input_scale = architecture.input_scale
        self.conv = nn.Conv2d(architecture.channels, architecture.filters, _KERNEL, padding=_KERNEL // 2)
        self.output = nn.Linear(architecture.filters, architecture.num_classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        require_features(features_BD, self.feature_dim)
        map_BCHW = (features_BD * self.input_scale).reshape(len(features_BD), *self.form)
        responses_BFHW = torch.relu(self.conv(map_BCHW))
        logits_BC: torch.Tensor = self.output(responses_BFHW.mean(dim=(2, 3)))
        return logits_BC
