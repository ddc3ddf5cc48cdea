"""What a trunk is: a frozen section, then m and s that bring its output to one scale.

Legend: B batch, C channel, H height, W width, D feature.

Every peer of a mesh computes features with the same trunk, so statistics and experts fit together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experts.errors import MalformedDataset, ShapeMismatch
from experts.trunk.images import prepare_images

__all__ = ["CLIP", "Trunk", "calibrate", "features_of", "section_batches", "set_normalisation"]

CLIP = 8.0
"""Features end at +-8 deviations: far outside what calibration saw, and a bound for statistics to rely on."""

_PAD = 0.01
"""Share of the overall deviation that is added to every s."""

_BATCH = 16
"""Images at a time: activations that stay in the cache make a trunk at 64 px up to four times faster."""


class Trunk(nn.Module, ABC):
    """h = clip((Phi(x) - m) / s, +-8), with Phi the `section` of a kind and m, s from `calibrate`."""

    kind: ClassVar[str]
    """The registry's name for this kind of section."""

    mean_D: torch.Tensor
    """m; 0 until calibrated."""
    deviation_D: torch.Tensor
    """s, above 0; 1 until calibrated."""

    def __init__(self, *, input_channels: int, input_pixels: int, feature_dim: int) -> None:
        super().__init__()
        self.input_channels = input_channels
        """1 or 3."""
        self.input_pixels = input_pixels
        """Height and width of the images it takes."""
        self.feature_dim = feature_dim
        """D."""
        self.register_buffer("mean_D", torch.zeros(feature_dim))
        self.register_buffer("deviation_D", torch.ones(feature_dim))

    @abstractmethod
    def section(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Phi: features ``(B, D)`` before normalisation."""

    def fit(self, images_BCHW: torch.Tensor) -> None:
        """Sets what else of Phi is measured on the calibration set, before m and s; by default nothing.

        Args:
            images_BCHW: At least one prepared image.
        Raises: MalformedDataset: If nothing can be measured on these.
        """

    @property
    def feature_map(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the map that Phi flattens, channels first; None if its output is no one map.

        A convolutional expert can see what lies beside what.
        """
        return None

    @abstractmethod
    def to_config(self) -> dict[str, object]:
        """A JSON object from which `from_config` makes a trunk of the same form."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """A trunk of this form whose weights are not set.

        Raises: UnknownTrunk: If keys, types or ranges are not as `to_config` writes them.
        """

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The features h, float32 ``(B, D)`` in [-8, 8], without a graph for gradients: a trunk is frozen.

        Args:
            images_BCHW: float32 in [0, 1], as `prepare_images` makes them for this trunk.
        Raises: ShapeMismatch: If the images are of another form.
        """
        _require_images(self, images_BCHW)
        with torch.no_grad():
            raw_BD = torch.cat([self.section(batch_BCHW) for batch_BCHW in section_batches(images_BCHW)])
            return self.normalised(raw_BD)

    def normalised(self, raw_BD: torch.Tensor) -> torch.Tensor:
        """h from Phi(x), both ``(B, D)``."""
        return ((raw_BD - self.mean_D) / self.deviation_D).clamp(-CLIP, CLIP)


def calibrate(trunk: Trunk, images_BCHW: torch.Tensor) -> None:
    """Measures on ``images_BCHW`` whatever Phi itself leaves open, then m and s, and sets them in the trunk.

    Args:
        images_BCHW: At least one prepared image; what m and s reveal of it becomes public with the trunk.
    Raises: ShapeMismatch: If the images are not of the trunk's form. MalformedDataset: If there is none, or
        Phi is the same number everywhere.
    """
    _require_images(trunk, images_BCHW)
    if len(images_BCHW) == 0:
        raise MalformedDataset("calibration images", reason="there is none")
    with torch.no_grad():
        trunk.fit(images_BCHW)
        set_normalisation(trunk, (trunk.section(batch_BCHW) for batch_BCHW in section_batches(images_BCHW)))


def set_normalisation(trunk: Trunk, raw_BD: Iterable[torch.Tensor]) -> None:
    """Measures m and s on what the trunk's section gave for the calibration set, and sets them in the trunk.

    m is the mean of each feature of Phi; s is its deviation plus 1% of the deviation of all features
    together, so that a feature which is nearly constant here does not dominate elsewhere.

    Args:
        raw_BD: Batches of Phi ``(B, D)``, together at least one row; summed batch by batch.
    Raises: MalformedDataset: If Phi is the same number everywhere.
    """
    num_rows = 0
    sum_D, square_sum_D = (torch.zeros(trunk.feature_dim, dtype=torch.float64) for _ in range(2))
    for batch_BD in raw_BD:
        double_BD = batch_BD.double().cpu()
        num_rows += len(double_BD)
        sum_D += double_BD.sum(dim=0)
        square_sum_D += double_BD.square().sum(dim=0)
    mean_D, mean_square_D = sum_D / num_rows, square_sum_D / num_rows
    overall_deviation = (mean_square_D.mean() - mean_D.mean().square()).clamp(min=0).sqrt()
    # Well above what rounding leaves of constant features.
    if overall_deviation <= 1e-6 * mean_square_D.mean().sqrt():
        raise MalformedDataset("calibration images", reason="their features are all the same number")
    trunk.mean_D.copy_(mean_D)
    trunk.deviation_D.copy_((mean_square_D - mean_D.square()).clamp(min=0).sqrt() + _PAD * overall_deviation)


def section_batches(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The images in parts as small as a section likes them."""
    return torch.split(images_BCHW, _BATCH)


def features_of(trunk: Trunk, images: NDArray[np.uint8]) -> torch.Tensor:
    """Features ``(B, D)`` of raw images, on the trunk's device, a batch at a time to bound memory.

    Args:
        images: uint8, as for `prepare_images`.
    Raises: MalformedDataset: If the images are not such an array.
    """
    features_D = [
        trunk(
            prepare_images(images[start : start + _BATCH], trunk.input_channels, trunk.input_pixels).to(
                trunk.mean_D.device
            )
        )
        for start in range(0, len(images), _BATCH)
    ]
    return torch.cat(features_D) if features_D else torch.empty(0, trunk.feature_dim)


def _require_images(trunk: Trunk, images_BCHW: torch.Tensor) -> None:
    form = (trunk.input_channels, trunk.input_pixels, trunk.input_pixels)
    if images_BCHW.ndim != 4 or images_BCHW.shape[1:] != form:
        raise ShapeMismatch("images", expected=("B", *form), got=images_BCHW.shape)
