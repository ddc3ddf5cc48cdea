"""What a method of the evaluation is fed: raw pixels, or the features of a frozen trunk.

The second is the fair comparison with routed experts, which stand on the same trunk.

Legend: N images, D feature, C channel, P pixels of a side.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from experts.evaluation.cost import count_flops
from experts.trunk.base import Trunk, features_of
from experts.trunk.images import prepare_images

__all__ = ["FlatPixelInputs", "Inputs", "PixelInputs", "TrunkInputs"]


class Inputs(ABC):
    """From raw images to a network's input."""

    shape: tuple[int, ...]
    """Of one image's input."""

    flops_per_image: int
    """Of making it."""

    @abstractmethod
    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """float32 ``(N, *shape)``.

        Raises: MalformedDataset: If the images are not uint8 ``(N, H, W)`` or ``(N, H, W, 3)``.
        """


class PixelInputs(Inputs):
    """Pixels in [0, 1], ``(N, C, P, P)``."""

    def __init__(self, *, channels: int, pixels: int) -> None:
        """
        Args:
            channels: 1 or 3.
            pixels: Height and width, as `prepare_images` makes them.
        """
        self.shape = (channels, pixels, pixels)
        self.flops_per_image = 0

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """The prepared images."""
        return prepare_images(images, self.shape[0], self.shape[1])


class FlatPixelInputs(Inputs):
    """The same pixels in one row, ``(N, D)``, D = C P P, for what is built on features and is to do without a trunk."""

    def __init__(self, pixels: PixelInputs) -> None:
        """
        Args:
            pixels: Which.
        """
        self._pixels = pixels
        self.shape = (math.prod(pixels.shape),)
        self.flops_per_image = pixels.flops_per_image

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """The prepared images, flattened."""
        return self._pixels(images).flatten(start_dim=1)


class TrunkInputs(Inputs):
    """Features h of a calibrated trunk, ``(N, D)``.

    Features of an array of images are kept as long as this object is, and images are known by their array: a scenario
    asks for the same ones after every task.
    """

    def __init__(
        self, trunk: Trunk, features: Callable[[Trunk, NDArray[np.uint8]], torch.Tensor] = features_of
    ) -> None:
        """
        Args:
            trunk: Frozen and calibrated.
            features: What computes features; `FeatureStore.features` reads them from disk where it can.
        """
        self._trunk = trunk
        self._features = features
        self._known: dict[int, tuple[NDArray[np.uint8], torch.Tensor]] = {}
        self.shape = (trunk.feature_dim,)
        one = torch.zeros(1, trunk.input_channels, trunk.input_pixels, trunk.input_pixels)
        self.flops_per_image = count_flops(lambda: trunk(one))[1]

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """The features."""
        # The array is kept beside its features, so that no other one can get its id.
        known = self._known.get(id(images))
        if known is None:
            known = self._known[id(images)] = (images, self._features(self._trunk, images))
        return known[1]
