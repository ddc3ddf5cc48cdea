"""A bounded memory of past data: a uniform sample of everything ever seen.

Algorithm R (Vitter 1985, "Random sampling with a reservoir", ACM TOMS 11(1)): item t takes a place with
probability capacity / t, and then a uniform one, so every item seen so far is in the buffer with equal
probability. Raw items are kept, not features: a module may be trained that reads other features of them.

Legend: N items, H height, W width.
"""

import json
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange

__all__ = ["ReservoirBuffer"]


class ReservoirBuffer:
    """At most ``capacity`` labelled images out of a stream.

    What it holds depends on the stream and the generator alone, not on how the stream was cut into batches.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        """
        Args:
            capacity: Images kept, at least 1.
            generator: Decides who stays, and belongs to this buffer alone.

        Raises:
            SettingOutOfRange: If the capacity is not positive.
        """
        if capacity < 1:
            raise SettingOutOfRange("capacity", capacity, allowed="at least 1")
        self.capacity = capacity
        self.num_seen = 0
        self._generator = generator
        self._images: NDArray[np.uint8] | None = None  # (capacity, H, W[, channels]) from the first item on
        self._labels: list[str] = []

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def images(self) -> NDArray[np.uint8]:
        """A copy of what is kept, ``(N, H, W)`` or ``(N, H, W, channels)``; ``(0, 0, 0)`` before any item."""
        if self._images is None:
            return np.empty((0, 0, 0), dtype=np.uint8)
        return self._images[: len(self)].copy()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of ``images``."""
        return tuple(self._labels)

    def add(self, images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        """Show the buffer the next items of the stream.

        Args:
            images: uint8 ``(N, H, W)`` or ``(N, H, W, channels)``, each of the shape of those before.
            labels: N class names.

        Raises:
            MalformedDataset: If type, shape or number is another; the buffer is then unchanged.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
            reason = f"{images.dtype} {images.shape} with {len(labels)} labels"
            raise MalformedDataset("replay", reason=reason)
        if self._images is None:
            self._images = np.zeros((self.capacity, *images.shape[1:]), dtype=np.uint8)
        if images.shape[1:] != self._images.shape[1:]:
            reason = f"images of shape {images.shape[1:]} among {self._images.shape[1:]}"
            raise MalformedDataset("replay", reason=reason)
        for image, label in zip(images, labels, strict=True):
            self._add_one(self._images, image, label)

    def to_bytes(self) -> bytes:
        """Contents and generator, so that a restart continues the same sample."""
        labels = json.dumps(self._labels).encode()
        tensors = {
            "counts": torch.tensor([self.capacity, self.num_seen], dtype=torch.int64),
            "generator": self._generator.get_state(),
            "images": torch.from_numpy(self.images),
            "labels": torch.frombuffer(bytearray(labels), dtype=torch.uint8),
        }
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ReservoirBuffer":
        """The buffer that `to_bytes` saved, with a generator of its own in the saved state.

        Raises:
            CorruptState: If the bytes are not those of a buffer.
        """
        try:
            tensors = safetensors.torch.load(data)
            capacity, num_seen = tensors["counts"].tolist()
            labels = json.loads(tensors["labels"].numpy().tobytes())
            images = tensors["images"].numpy()
            generator = torch.Generator()
            generator.set_state(tensors["generator"])
            buffer = cls(capacity, generator)
            if len(labels) != min(capacity, num_seen):
                raise CorruptState(_NAME, reason=f"{len(labels)} labels after {num_seen} items")
            if num_seen:
                buffer.add(images, labels)
        except (*_UNREADABLE, MalformedDataset, SettingOutOfRange) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        # Adding drew nothing: the buffer was not yet full.
        buffer.num_seen = num_seen
        return buffer

    def _add_one(self, kept: NDArray[np.uint8], image: NDArray[np.uint8], label: str) -> None:
        self.num_seen += 1
        if len(self._labels) < self.capacity:
            kept[len(self._labels)] = image
            self._labels.append(label)
            return
        place = int(torch.randint(self.num_seen, (), generator=self._generator))
        if place < self.capacity:
            kept[place] = image
            self._labels[place] = label


_NAME = "replay buffer"
_UNREADABLE = (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError, MemoryError)
