"""The reference CNN: what costs are compared with, and the teacher a node trains on its own data.

Legend: B batch, C class, H height, W width, N training images.

Three convolutions (16, 32, 64 channels; 5x5 and 3x3 with stride 2, 3x3), ReLU after each, an average pool to
4 x 4, a hidden layer of 128: 156,042 parameters for one channel and ten classes, whatever the images' size.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from experts.checkpoint import load_tensors, tensors_from_bytes, tensors_to_bytes
from experts.data.dataset import class_columns
from experts.errors import CorruptWeights, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.materialise import materialise
from experts.optimizers import Adam, cosine_rate

__all__ = ["CnnTeacher", "TeacherConfig", "TeacherProgress", "train_teacher", "untrained_cnn"]

_BATCH = 256
"""Images at a time when scoring; bounds memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """How a teacher is trained: Adam, with the learning rate falling to 0 along a half cosine."""

    epochs: int = 12
    """Passes over the data, at least 1."""
    batch_size: int = 32
    """Images per step, at least 1."""
    learning_rate: float = 2e-3
    """Of the first step, above 0."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise SettingOutOfRange("learning_rate", self.learning_rate, allowed="above 0, finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherProgress:
    """Where training stands after an epoch."""

    epoch: int
    """Epochs done, from 1."""
    epochs: int
    """Epochs to do."""
    loss: float
    """Mean cross-entropy over the epoch, in nats."""


class CnnTeacher(nn.Module):
    """The reference CNN over named classes; a `Teacher`."""

    def __init__(self, classes: Iterable[str], *, channels: int, pixels: int) -> None:
        super().__init__()
        self._classes = tuple(sorted(set(classes)))
        self.channels = channels
        """1 or 3."""
        self.pixels = pixels
        """Height and width of the images it takes."""
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(1024, 128),
            nn.ReLU(),
            nn.Linear(128, len(self._classes)),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the C classes it scores."""
        return self._classes

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        form = (self.channels, self.pixels, self.pixels)
        if images_BCHW.ndim != 4 or images_BCHW.shape[1:] != form:
            raise ShapeMismatch("images", expected=("B", *form), got=images_BCHW.shape)
        logits_BC: torch.Tensor = self.layers(images_BCHW)
        return logits_BC

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Unnormalised scores ``(B, C)`` without a graph for gradients.

        Raises: ShapeMismatch: If the images are not of the teacher's form.
        """
        with torch.no_grad():
            return torch.cat([self(batch_BCHW) for batch_BCHW in torch.split(images_BCHW, _BATCH)])

    def to_bytes(self) -> bytes:
        """safetensors of the weights, with classes and form in the header."""
        form = {"classes": list(self.classes), "channels": self.channels, "pixels": self.pixels}
        return tensors_to_bytes(self.state_dict(), form)

    @classmethod
    def from_bytes(cls, data: bytes) -> "CnnTeacher":
        """The inverse of `to_bytes`.

        Raises: CorruptWeights: If the bytes are not a teacher's.
        """
        tensors, form = tensors_from_bytes(data)
        classes, channels, pixels = (form.get(name) for name in ("classes", "channels", "pixels"))
        if not (
            isinstance(classes, list)
            and classes
            and all(isinstance(name, str) for name in classes)
            and type(channels) is int
            and channels in (1, 3)
            and type(pixels) is int
            and pixels > 0
        ):
            raise CorruptWeights("no teacher's form in the header")
        with torch.device("meta"):
            teacher = cls(classes, channels=channels, pixels=pixels)
        load_tensors(teacher, tensors)
        return teacher


def untrained_cnn(classes: Iterable[str], *, channels: int, pixels: int, generator: torch.Generator) -> CnnTeacher:
    """A reference CNN with the initial weights of He et al. 2015 (arXiv:1502.01852), for ReLU; biases 0.

    Args:
        generator: What the weights are drawn from; no global stream is touched.
    """
    # On the meta device torch's own initialisation draws nothing.
    with torch.device("meta"):
        network = CnnTeacher(classes, channels=channels, pixels=pixels)
    materialise(network)
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


def train_teacher(
    images_NCHW: torch.Tensor,
    labels: Sequence[str],
    config: TeacherConfig,
    generator: torch.Generator,
    on_progress: Callable[[TeacherProgress], None] | None = None,
) -> CnnTeacher:
    """Trains a reference CNN on labelled images from scratch.

    Args:
        images_NCHW: Prepared square images in [0, 1].
        labels: The N class names; the teacher covers exactly these.
        config: How long and how fast.
        generator: Of the initial weights and the order of batches; nothing else is drawn from.
        on_progress: Called after each epoch, in this thread; None for nobody.
    Returns: The trained teacher.
    Raises: NothingToLearnFrom: If there is no image. ShapeMismatch: If labels and images differ in number,
        or the images are not square.
    """
    if len(labels) == 0:
        raise NothingToLearnFrom("a teacher without images")
    if images_NCHW.ndim != 4 or len(images_NCHW) != len(labels) or images_NCHW.shape[2] != images_NCHW.shape[3]:
        raise ShapeMismatch("images", expected=(len(labels), "C", "P", "P"), got=images_NCHW.shape)
    teacher = untrained_cnn(labels, channels=images_NCHW.shape[1], pixels=images_NCHW.shape[2], generator=generator).to(
        images_NCHW.device
    )
    columns_N = class_columns(labels, teacher.classes).to(images_NCHW.device)
    steps = config.epochs * math.ceil(len(labels) / config.batch_size)
    adam = Adam(dict(teacher.named_parameters()))
    for epoch in range(1, config.epochs + 1):
        total_loss = 0.0
        for rows_B in torch.split(torch.randperm(len(labels), generator=generator), config.batch_size):
            loss = functional.cross_entropy(teacher(images_NCHW[rows_B]), columns_N[rows_B])
            teacher.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step(cosine_rate(config.learning_rate, done=adam.steps_done, steps=steps))
            total_loss += float(loss.detach()) * len(rows_B)
        if on_progress is not None:
            on_progress(TeacherProgress(epoch=epoch, epochs=config.epochs, loss=total_loss / len(labels)))
    return teacher
