"""Batches of a stream while they wait: images, perhaps labels, perhaps the task they are of; as tensors and back.

Legend: B batch, H height, W width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.errors import CorruptState, MalformedDataset, NothingToLearnFrom

__all__ = ["Batch", "batches_from_tensors", "batches_to_tensors", "joined"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B images that came together, B at least 1.

    Raises:
        NothingToLearnFrom: If there is no image.
        MalformedDataset: If the images are not uint8 of such a shape, labels are more or fewer, or a name is empty.
    """

    images: NDArray[np.uint8]
    """``(B, H, W)`` or ``(B, H, W, channels)``."""

    labels: tuple[str | None, ...]
    """B class names; None for an image without one."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim not in (3, 4) or len(self.images) != len(self.labels):
            reason = f"{self.images.dtype} {self.images.shape} with {len(self.labels)} labels"
            raise MalformedDataset("batch", reason=reason)
        if not self.labels:
            raise NothingToLearnFrom("batch")
        if not all(label is None or (isinstance(label, str) and label) for label in self.labels):
            raise MalformedDataset("batch", reason="a class name is empty or not text")

    @classmethod
    def of(cls, images: NDArray[np.uint8], labels: Sequence[str | None] | None) -> "Batch":
        """The images with their labels; None if none has one."""
        return cls(images, (None,) * len(images) if labels is None else tuple(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Of pixels and names."""
        return self.images.nbytes + sum(len(label.encode()) for label in self.labels if label is not None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names on the labels, sorted."""
        return tuple(sorted({label for label in self.labels if label is not None}))

    def select(self, rows: Sequence[int]) -> "Batch":
        """Some of the images, at least one."""
        return Batch(self.images[list(rows)], tuple(self.labels[row] for row in rows))


def joined(batches: Sequence[Batch]) -> Batch:
    """All images of several batches, at least one batch, in their order.

    Raises:
        MalformedDataset: If images differ in shape.
    """
    shapes = {batch.images.shape[1:] for batch in batches}
    if len(shapes) > 1:
        raise MalformedDataset("batches", reason=f"images of shapes {', '.join(map(str, sorted(shapes)))}")
    labels = tuple(label for batch in batches for label in batch.labels)
    return Batch(np.concatenate([batch.images for batch in batches]), labels)


def batches_to_tensors(batches: Sequence[Batch], prefix: str) -> dict[str, Tensor]:
    """Any number of batches, to be saved beside other tensors."""
    words = json.dumps([batch.labels for batch in batches]).encode()
    tensors = {f"{prefix}/{number}": torch.from_numpy(batch.images.copy()) for number, batch in enumerate(batches)}
    return {**tensors, f"{prefix}/labels": torch.frombuffer(bytearray(words), dtype=torch.uint8)}


def batches_from_tensors(tensors: Mapping[str, Tensor], prefix: str) -> list[Batch]:
    """The inverse of `batches_to_tensors`.

    Raises:
        CorruptState: If they are not there, or not such batches.
    """
    try:
        words = json.loads(tensors[f"{prefix}/labels"].numpy().tobytes())
        return [Batch(tensors[f"{prefix}/{number}"].numpy(), tuple(labels)) for number, labels in enumerate(words)]
    except (KeyError, ValueError, TypeError, MalformedDataset, NothingToLearnFrom) as exc:
        raise CorruptState(f"batches {prefix}", reason=str(exc)) from exc
