"""A bounded memory of past data: a uniform sample of everything ever seen.

Algorithm R (Vitter 1985, "Random sampling with a reservoir", ACM TOMS 11(1)): item t takes a place with
probability capacity / t, and then a uniform one, so every item seen so far is in the buffer with equal
probability.

Items may leave the stream again: what is left of the sample is a uniform one of what is left of the stream, only
smaller. Items that come later make up for those that left, by random pairing (Gemulla, Lehner and Haas 2006, "A dip in
the reservoir", VLDB): of the v departures from the buffer and w from outside that nothing has made up for yet, the next
item takes the part of one of the former with probability v / (v + w) and is kept, else of one of the latter and is not.

Legend: N items, H height, W width.
"""

import json
from collections.abc import Collection, Mapping, Sequence
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
        self._vacated, self._unkept = 0, 0
        """v and w."""

    def drop(self, rows: Collection[int], gone: Mapping[str, int]) -> None:
        """As `ReplayBuffer.drop`; what is left stays a uniform sample of the rest of the stream."""
        num_kept = sum(self._remove(rows).values())
        num_gone = min(max(sum(gone.values()), num_kept), self.num_seen)
        self.num_seen -= num_gone
        self._vacated += num_kept
        self._unkept += num_gone - num_kept

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
        if self._vacated or self._unkept:
            tensors["left"] = torch.tensor([self._vacated, self._unkept], dtype=torch.int64)
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
            vacated, unkept = tensors["left"].tolist() if "left" in tensors else (0, 0)
            if min(vacated, unkept) < 0:
                raise CorruptState(_NAME, reason="a number below 0")
            # Of an empty array no limit by bytes follows; nothing is kept then.
            limit = buffer.limit_of(images) if len(images) else vacated
            if len(labels) + vacated != min(limit, num_seen + vacated + unkept):
                raise CorruptState(_NAME, reason=f"{len(labels)} labels after {num_seen} items")
            if len(images):
                buffer.add(images, labels)
        except (*_UNREADABLE, MalformedDataset, SettingOutOfRange) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        # Adding drew nothing: the buffer was not yet full.
        buffer.num_seen, buffer._vacated, buffer._unkept = num_seen, vacated, unkept
        return buffer

    def _take(self, kept: NDArray[np.uint8], images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        for image, label in zip(images, labels, strict=True):
            self.num_seen += 1
            if self._vacated or self._unkept:
                self._make_up(kept, image, label)
                continue
            if len(self) < len(kept):
                self._put(kept, len(self), image, label)
                continue
            place = int(torch.randint(self.num_seen, (), generator=self._generator))
            if place < len(kept):
                self._put(kept, place, image, label)

    def _make_up(self, kept: NDArray[np.uint8], image: NDArray[np.uint8], label: str) -> None:
        drawn = int(torch.randint(self._vacated + self._unkept, (), generator=self._generator))
        if drawn < self._vacated:
            self._vacated -= 1
            self._put(kept, len(self), image, label)
        else:
            self._unkept -= 1


_NAME = "replay buffer"
_UNREADABLE = (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError, MemoryError)
