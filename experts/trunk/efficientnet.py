"""Sections of efficientnet-lite0, pretrained on ImageNet, as trunks.

    Phi(x) = [P_1 pool(a_1(x)), P_2 pool(a_2(x)), ...]

with a_j the activations at tap j, pooled to a small grid, and P_j the identity or a projection of the channels onto
their principal components over the calibration set. A trunk of several taps runs the network once: every tap lies on
the way to the deepest. A projection of channels, being linear and the same in every cell, commutes with the average.

A trunk's `tap` names them: ``E5``, ``B4``, ``E5+B4`` (features in this order), ``E5c40`` (40 components).

Legend: B batch, C channel, K component, H height, W width, G cell of the pooled grid, D feature.

The weights come from a package when a mesh is founded; a peer gets them, and the projections, with the trunk's bytes.
"""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch.nn import functional

from experts.checkpoint import load_tensors
from experts.errors import MalformedDataset, UnknownTrunk
from experts.networks.efficientnet_lite0 import IMAGENET_DEVIATION, IMAGENET_MEAN, build_layers, pretrained_tensors
from experts.trunk.base import Trunk, section_batches

__all__ = ["EFFICIENTNET_TAPS", "EfficientNetTrunk", "channel_components", "check_tap", "load_efficientnet"]


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

    @property
    def num_layers(self) -> int:
        """Of `build_layers`: the stem, its ReLU6, the blocks, and an expansion with its own ReLU6."""
        return 2 + self.num_blocks + 2 * self.expands_next


_TAPS: Mapping[str, _Tap] = {
    "B4": _Tap(num_blocks=5, expands_next=False, channels=40, pool=4),
    "E5": _Tap(num_blocks=5, expands_next=True, channels=240, pool=3),
}

EFFICIENTNET_TAPS = tuple(sorted(_TAPS))
"""B4: after block 4, 640 features. E5: after block 5's expansion, 2,160 features, the best tap measured."""

_PART = re.compile(r"([A-Z][0-9]+)(?:c([1-9][0-9]{0,3}))?")


class _Part(NamedTuple):
    """One tap of a trunk."""

    name: str
    """As the trunk's `tap` has it."""
    cut: _Tap
    components: int | None
    """K; None for all channels as they are."""

    @property
    def feature_dim(self) -> int:
        """Features of this part: cells times channels, or times components."""
        return (self.components or self.cut.channels) * self.cut.pool**2


class EfficientNetTrunk(Trunk):
    """Pooled activations of one or several taps, on images normalised as ImageNet's were."""

    kind: ClassVar[str] = "efficientnet-lite0"

    def __init__(self, tap: str, *, input_pixels: int) -> None:
        """
        Args:
            tap: One of `EFFICIENTNET_TAPS`, several joined by ``+``, each with or without ``c`` and the number of
                its channels' components.
            input_pixels: Height and width of the images it takes.
        Raises:
            UnknownTrunk: If there is no such tap, it is named twice, or it has not as many channels.
        """
        parts = _parsed(tap)
        feature_dim = sum(part.feature_dim for part in parts)
        super().__init__(input_channels=3, input_pixels=input_pixels, feature_dim=feature_dim)
        self.tap = tap
        self._parts = parts
        cut = _deepest(parts)
        self.layers = build_layers(cut.num_blocks, expands_next=cut.expands_next)
        for part in parts:
            if part.components is not None:
                # The first channels, until `fit` knows better.
                self.register_buffer(_projection(part), torch.eye(part.components, part.cut.channels))
        self.requires_grad_(False)

    def section(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The pooled, projected activations of all taps: ``(B, D)``."""
        pooled = self._pooled(images_BCHW)
        return torch.cat([self._projected(part, pooled[part.name]).flatten(start_dim=1) for part in self._parts], dim=1)

    def fit(self, images_BCHW: torch.Tensor) -> None:
        """Sets every projection to the principal components of its channels, over all cells of all images."""
        projected = [part for part in self._parts if part.components is not None]
        if not projected:
            return
        batches = [self._pooled(batch_BCHW) for batch_BCHW in section_batches(images_BCHW)]
        for part in projected:
            assert part.components is not None
            cells_BCHW = torch.cat([pooled[part.name] for pooled in batches])
            self.get_buffer(_projection(part)).copy_(channel_components(cells_BCHW, part.components))

    @property
    def feature_map(self) -> tuple[int, int, int] | None:
        """The pooled grid of the one tap; None of several."""
        if len(self._parts) > 1:
            return None
        side = self._parts[0].cut.pool
        return (self.feature_dim // side**2, side, side)

    def slice_of(self, name: str) -> slice:
        """Where one tap's features lie among the trunk's, such as those of ``B4`` in ``E5+B4``.

        Raises: UnknownTrunk: If the trunk has no part of this name.
        """
        start = 0
        for part in self._parts:
            if part.name == name:
                return slice(start, start + part.feature_dim)
            start += part.feature_dim
        raise UnknownTrunk(self.kind, reason=f"no part {name!r} in {self.tap}")

    def to_config(self) -> dict[str, object]:
        """The tap and the size of the input."""
        return {"tap": self.tap, "input_pixels": self.input_pixels}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; input of 16 to 512 pixels."""
        if config.keys() != {"tap", "input_pixels"}:
            raise UnknownTrunk(cls.kind, reason=f"keys {sorted(map(str, config))}")
        tap, pixels = config["tap"], config["input_pixels"]
        if not isinstance(tap, str):
            raise UnknownTrunk(cls.kind, reason=f"tap {tap!r}; known: {', '.join(EFFICIENTNET_TAPS)}")
        if type(pixels) is not int or not 16 <= pixels <= 512:
            raise UnknownTrunk(cls.kind, reason=f"input_pixels = {pixels!r}")
        return cls(tap, input_pixels=pixels)

    def _pooled(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of each part by name, the activations ``(B, C, G, G)`` at its tap, from one pass."""
        mean_C11 = images_BCHW.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
        deviation_C11 = images_BCHW.new_tensor(IMAGENET_DEVIATION).view(3, 1, 1)
        normalised_BCHW = (images_BCHW - mean_C11) / deviation_C11
        # Channels last in memory: depthwise convolutions on a CPU then take a third less time.
        activations_BCHW = normalised_BCHW.contiguous(memory_format=torch.channels_last)
        pooled: dict[str, torch.Tensor] = {}
        for number, layer in enumerate(self.layers, start=1):
            activations_BCHW = layer(activations_BCHW)
            for part in self._parts:
                if part.cut.num_layers == number:
                    pooled[part.name] = functional.adaptive_avg_pool2d(activations_BCHW, part.cut.pool)
        return pooled

    def _projected(self, part: _Part, pooled_BCGG: torch.Tensor) -> torch.Tensor:
        if part.components is None:
            return pooled_BCGG
        # After the average: the same as before it, on a seventh of the cells.
        return torch.einsum("kc,bcgh->bkgh", self.get_buffer(_projection(part)), pooled_BCGG)


def channel_components(cells_BCGG: torch.Tensor, num_components: int) -> torch.Tensor:
    """The directions in the space of channels along which all cells of all images vary most.

    Args:
        cells_BCGG: Pooled activations ``(B, C, G, G)``.
        num_components: K, 1 to C.
    Returns: float32 ``(K, C)`` with orthonormal rows, the largest variance first; of the two signs of a row the one
        that makes its largest entry positive.
    Raises: MalformedDataset: If the cells are all alike.
    """
    cells_NC = cells_BCGG.movedim(1, -1).flatten(end_dim=-2).double().cpu()
    centred_NC = cells_NC - cells_NC.mean(dim=0)
    variance_C, directions_CC = torch.linalg.eigh(centred_NC.T @ centred_NC)
    # Well above what rounding leaves of cells that are all the same.
    if variance_C[-1] <= 1e-12 * cells_NC.square().sum():
        raise MalformedDataset("calibration images", reason="their channels are all the same numbers")
    rows_KC = directions_CC.T.flip(0)[:num_components]
    largest_K1 = rows_KC.gather(1, rows_KC.abs().argmax(dim=1, keepdim=True))
    signed_KC: torch.Tensor = rows_KC * largest_K1.sign()
    return signed_KC.float()


def load_efficientnet(tap: str, *, pixels: int = 64) -> EfficientNetTrunk:
    """The pretrained section up to ``tap``, batch normalisation folded in; the rest is left to `calibrate`.

    Args:
        tap: As `EfficientNetTrunk` has it.
        pixels: Height and width of its input, 16 to 512; the figures of the taps are at 64.
    Raises: PackageMissing: If the optional package with the weights is not installed. UnknownTrunk: If the
        tap is not known or the size out of range. CorruptWeights: If the package's file is not the one this
        was made with.
    """
    trunk = _unfilled(tap, pixels)
    folded = {"mean_D": torch.zeros(trunk.feature_dim), "deviation_D": torch.ones(trunk.feature_dim)}
    parts = _parsed(tap)
    for part in parts:
        if part.components is not None:
            folded[_projection(part)] = torch.eye(part.components, part.cut.channels)
    cut = _deepest(parts)
    for name, value in pretrained_tensors(cut.num_blocks, expands_next=cut.expands_next).items():
        folded[f"layers.{name}"] = value
    load_tensors(trunk, folded)
    return trunk


def check_tap(tap: str, *, pixels: int) -> None:
    """Whether there is such a section, without its weights.

    Raises:
        UnknownTrunk: As `load_efficientnet`.
    """
    _unfilled(tap, pixels)


def _unfilled(tap: str, pixels: int) -> EfficientNetTrunk:
    # On the meta device torch's own initialisation draws nothing from the global stream.
    with torch.device("meta"):
        return EfficientNetTrunk.from_config({"tap": tap, "input_pixels": pixels})


def _parsed(tap: str) -> tuple[_Part, ...]:
    parts = tuple(_parsed_parts(tap))
    if len({part.cut for part in parts}) < len(parts):
        raise UnknownTrunk(EfficientNetTrunk.kind, reason=f"tap {tap!r} names one twice")
    return parts


def _parsed_parts(tap: str) -> Iterator[_Part]:
    for name in tap.split("+"):
        match = _PART.fullmatch(name)
        if match is None or match[1] not in _TAPS:
            raise UnknownTrunk(EfficientNetTrunk.kind, reason=f"tap {tap!r}; known: {', '.join(EFFICIENTNET_TAPS)}")
        cut, components = _TAPS[match[1]], None if match[2] is None else int(match[2])
        if components is not None and components > cut.channels:
            reason = f"tap {tap!r}: {match[1]} has {cut.channels} channels"
            raise UnknownTrunk(EfficientNetTrunk.kind, reason=reason)
        yield _Part(name, cut, components)


def _deepest(parts: tuple[_Part, ...]) -> _Tap:
    deepest = max((part.cut for part in parts), key=lambda cut: cut.num_layers)
    # An expansion is a layer of its own only where the network ends: inside a block nothing can be tapped.
    assert all(part.cut == deepest or not part.cut.expands_next for part in parts)
    return deepest


def _projection(part: _Part) -> str:
    """The name of its projection among the trunk's tensors."""
    return f"{part.name}_KC"
