"""A bounded memory that holds every class in as equal a number as the stream allows.

Class-balancing reservoir sampling (Chrysakis and Moens 2020, "Online continual learning from imbalanced data", PMLR
119, algorithm 1). Of a class that has never been the largest in the buffer every item stays, in place of a random one
of the largest class; of one that has, the n-th item of the stream takes the place of a random one of its m with
probability m / n, so that what is kept of it is a uniform sample of it.

Legend: N items, H height, W width.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from experts.continual.buffers import ReplayBuffer
from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange
from experts.sealed import seal, unseal

__all__ = ["BalancedBuffer"]


class BalancedBuffer(ReplayBuffer):
    """A sample of a stream of labelled images that long tails do not fill with their head.

    What it holds depends on the stream and the generator alone, not on how the stream was cut into batches.
    """

    kind: ClassVar[str] = "balanced"

    def __init__(self, capacity: int | None, generator: torch.Generator, *, max_bytes: int | None = None) -> None:
        """As `ReservoirBuffer`'s."""
        super().__init__(capacity, max_bytes)
        self._generator = generator
        self._seen_of: Counter[str] = Counter()
        self._was_largest: set[str] = set()

    def drop(self, rows: Collection[int], gone: Mapping[str, int]) -> None:
        """As `ReplayBuffer.drop`. The places that become free go to whatever comes next, so that of later items more
        stay until it is full again."""
        removed = self._remove(rows)
        held = Counter(self._labels)
        for name in gone.keys() | removed.keys():
            left = self._seen_of[name] - max(gone.get(name, 0), removed.get(name, 0))
            self._seen_of[name] = max(left, held[name])
        self._seen_of = +self._seen_of
        self._was_largest &= self._seen_of.keys()
        self.num_seen = self._seen_of.total()

    def to_bytes(self) -> bytes:
        """Contents, counts and generator, with a digest."""
        words = {"labels": self._labels, "seen": self._seen_of, "was_largest": sorted(self._was_largest)}
        tensors = {
            "bounds": torch.tensor([self.capacity or 0, self.max_bytes or 0], dtype=torch.int64),
            "generator": self._generator.get_state(),
            "images": torch.from_numpy(self.images),
            "words": torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8),
        }
        return seal(tensors, {"kind": self.kind})

    @classmethod
    def from_bytes(cls, data: bytes) -> "BalancedBuffer":
        """The buffer that `to_bytes` saved, with a generator of its own in the saved state.

        Raises:
            CorruptState: If the bytes are not those of such a buffer, to the bit.
        """
        tensors, header = unseal(data, _NAME)
        if header != {"kind": cls.kind}:
            raise CorruptState(_NAME, reason=f"it is of kind {header.get('kind')!r}, not {cls.kind}")
        try:
            words = json.loads(tensors["words"].numpy().tobytes())
            capacity, max_bytes = (bound or None for bound in tensors["bounds"].tolist())
            generator = torch.Generator()
            generator.set_state(tensors["generator"])
            buffer = cls(capacity, generator, max_bytes=max_bytes)
            labels = words["labels"]
            if labels:
                buffer.add(tensors["images"].numpy(), labels)
            buffer._seen_of = Counter(words["seen"])
            buffer._was_largest = set(words["was_largest"])
        except (KeyError, ValueError, TypeError, RuntimeError, MalformedDataset, SettingOutOfRange) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        buffer.num_seen = buffer._seen_of.total()
        return buffer

    def _take(self, kept: NDArray[np.uint8], images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        for image, label in zip(images, labels, strict=True):
            self.num_seen += 1
            self._seen_of[label] += 1
            place = len(self) if len(self) < len(kept) else self._place(label)
            if place is not None:
                self._put(kept, place, image, label)

    def _place(self, label: str) -> int | None:
        """Where the next item of a class goes in a full buffer; None if it does not stay."""
        held = Counter(self._labels)
        most = max(held.values())
        largest = sorted(name for name, count in held.items() if count == most)
        self._was_largest.update(largest)
        if label not in self._was_largest:
            return self._random_place(largest[0])
        if held[label] and int(torch.randint(self._seen_of[label], (), generator=self._generator)) < held[label]:
            return self._random_place(label)
        return None

    def _random_place(self, label: str) -> int:
        places = [place for place, name in enumerate(self._labels) if name == label]
        return places[int(torch.randint(len(places), (), generator=self._generator))]


_NAME = "replay buffer"
