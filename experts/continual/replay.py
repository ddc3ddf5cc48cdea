"""A bounded memory of past data: a uniform sample of everything ever seen.

Algorithm R (Vitter 1985, "Random sampling with a reservoir", ACM TOMS 11(1)): item t takes a place with
probability capacity / t, and then a uniform one, so every item seen so far is in the buffer with equal
probability.

Legend: N items, H height, W width.
"""

import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from experts.continual.buffers import ReplayBuffer
from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange

__all__ = ["ReservoirBuffer"]


class ReservoirBuffer(ReplayBuffer):
    """A uniform sample of a stream of labelled images.

    What it holds depends on the stream and the generator alone, not on how the stream was cut into batches.
    """

    kind: ClassVar[str] = "reservoir"

    def __init__(self, capacity: int | None, generator: torch.Generator, *, max_bytes: int | None = None) -> None:
        """
        Args:
            capacity: Images kept, at least 1; None if only bytes bound them.
            generator: Decides who stays, and belongs to this buffer alone.
            max_bytes: Of pixels, at least 1; None if only the number bounds them.

        Raises:
            SettingOutOfRange: If a bound is not positive, or there is none.
        """
        super().__init__(capacity, max_bytes)
        self._generator = generator

    def to_bytes(self) -> bytes:
        """Contents and generator, so that a restart continues the same sample."""
        labels = json.dumps(self._labels).encode()
        counts = [self.capacity or 0, self.num_seen]
        if self.max_bytes is not None:
            counts.append(self.max_bytes)
        tensors = {
            "counts": torch.tensor(counts, dtype=torch.int64),
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
            # Two counts, from before bytes could be the bound, or three.
            capacity, num_seen, *bounds = tensors["counts"].tolist()
            (max_bytes,) = bounds or [None]
            labels = json.loads(tensors["labels"].numpy().tobytes())
            images = tensors["images"].numpy()
            generator = torch.Generator()
            generator.set_state(tensors["generator"])
            buffer = cls(capacity or None if max_bytes else capacity, generator, max_bytes=max_bytes)
            limit = buffer._limit_of(images) if num_seen else 0
            if len(labels) != min(limit, num_seen):
                raise CorruptState(_NAME, reason=f"{len(labels)} labels after {num_seen} items")
            if num_seen:
                buffer.add(images, labels)
        except (*_UNREADABLE, MalformedDataset, SettingOutOfRange) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        # Adding drew nothing: the buffer was not yet full.
        buffer.num_seen = num_seen
        return buffer

    def _take(self, kept: NDArray[np.uint8], images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        for image, label in zip(images, labels, strict=True):
            self.num_seen += 1
            if len(self) < len(kept):
                self._put(kept, len(self), image, label)
                continue
            place = int(torch.randint(self.num_seen, (), generator=self._generator))
            if place < len(kept):
                self._put(kept, place, image, label)


_NAME = "replay buffer"
_UNREADABLE = (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError, MemoryError)
