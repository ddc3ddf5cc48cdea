"""Sections of efficientnet-lite0, pretrained on ImageNet, as trunks.

Legend: B batch, C channel, H height, W width, D feature.

The weights come from a package when a mesh is founded; a peer gets them with the trunk's bytes.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch.nn import functional

from experts.checkpoint import load_tensors
from experts.errors import UnknownTrunk
from experts.networks.efficientnet_lite0 import IMAGENET_DEVIATION, IMAGENET_MEAN, build_layers, pretrained_tensors
from experts.trunk.base import Trunk

__all__ = ["EFFICIENTNET_TAPS", "EfficientNetTrunk", "load_efficientnet"]


class _Tap(NamedTuple):
    """Where the network is cut, and how the activations there become features."""

    num_blocks: int
    """Whole blocks before the cut."""
    expands_next: bool
    """Whether the 1x1 expansion of the next block, with its ReLU6, belongs to the section."""
    channels: int
    """Channels at the cut."""
    pool: int
    """Side of the grid that the activations are averaged over."""


_TAPS: Mapping[str, _Tap] = {
    "B4": _Tap(num_blocks=5, expands_next=False, channels=40, pool=4),
    "E5": _Tap(num_blocks=5, expands_next=True, channels=240, pool=3),
}

EFFICIENTNET_TAPS = tuple(sorted(_TAPS))
"""B4: after block 4, 640 features. E5: after block 5's expansion, 2,160 features, the best tap measured."""


class EfficientNetTrunk(Trunk):
    """Phi(x) = average pool of the activations at a tap, on images normalised as ImageNet's were."""

    kind: ClassVar[str] = "efficientnet-lite0"

    def __init__(self, tap: str, *, input_pixels: int) -> None:
        cut = _TAPS[tap]
        super().__init__(input_channels=3, input_pixels=input_pixels, feature_dim=cut.channels * cut.pool * cut.pool)
        self.tap = tap
        self.layers = build_layers(cut.num_blocks, expands_next=cut.expands_next)
        self.requires_grad_(False)

    def section(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The pooled activations at the tap: ``(B, D)``."""
        mean_C11 = images_BCHW.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
        deviation_C11 = images_BCHW.new_tensor(IMAGENET_DEVIATION).view(3, 1, 1)
        normalised_BCHW = (images_BCHW - mean_C11) / deviation_C11
        # Channels last in memory: depthwise convolutions on a CPU then take a third less time.
        activations_BCHW = self.layers(normalised_BCHW.contiguous(memory_format=torch.channels_last))
        return functional.adaptive_avg_pool2d(activations_BCHW, _TAPS[self.tap].pool).flatten(start_dim=1)

    def to_config(self) -> dict[str, object]:
        """The tap and the size of the input."""
        return {"tap": self.tap, "input_pixels": self.input_pixels}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; input of 16 to 512 pixels."""
        if config.keys() != {"tap", "input_pixels"}:
            raise UnknownTrunk(cls.kind, reason=f"keys {sorted(map(str, config))}")
        tap, pixels = config["tap"], config["input_pixels"]
        if not isinstance(tap, str) or tap not in _TAPS:
            raise UnknownTrunk(cls.kind, reason=f"tap {tap!r}; known: {', '.join(EFFICIENTNET_TAPS)}")
        if type(pixels) is not int or not 16 <= pixels <= 512:
            raise UnknownTrunk(cls.kind, reason=f"input_pixels = {pixels!r}")
        return cls(tap, input_pixels=pixels)


def load_efficientnet(tap: str, *, pixels: int = 64) -> EfficientNetTrunk:
    """The pretrained section up to ``tap``, batch normalisation folded in; m and s are left to `calibrate`.

    Args:
        tap: One of `EFFICIENTNET_TAPS`.
        pixels: Height and width of its input, 16 to 512; the figures of the taps are at 64.
    Raises: PackageMissing: If the optional package with the weights is not installed. UnknownTrunk: If the
        tap is not known or the size out of range. CorruptWeights: If the package's file is not the one this
        was made with.
    """
    # On the meta device torch's own initialisation draws nothing from the global stream.
    with torch.device("meta"):
        trunk = EfficientNetTrunk.from_config({"tap": tap, "input_pixels": pixels})
    folded = {"mean_D": torch.zeros(trunk.feature_dim), "deviation_D": torch.ones(trunk.feature_dim)}
    cut = _TAPS[tap]
    for name, value in pretrained_tensors(cut.num_blocks, expands_next=cut.expands_next).items():
        folded[f"layers.{name}"] = value
    load_tensors(trunk, folded)
    return trunk
