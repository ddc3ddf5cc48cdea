"""What every memory of past data is: labelled images out of a stream, within a bound, as bytes and back.

Raw items are kept, not features: a module may be trained that reads other features of them. Which items stay is what
the kinds differ in; `ReplayBuffer` knows the bound, the form of the items and how they are read.

Legend: N items, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from experts.errors import MalformedDataset, SettingOutOfRange

__all__ = ["ReplayBuffer"]


class ReplayBuffer(ABC):
    """At most so many images, or so many bytes of them, with their class names."""

    kind: ClassVar[str]
    """Its name in settings and in saved bytes."""

    def __init__(self, capacity: int | None, max_bytes: int | None) -> None:
        """
        Args:
            capacity: Images kept, at least 1; None if only bytes bound them.
            max_bytes: Bytes of pixels kept, at least 1; None if only their number bounds them. Names come on top.

        Raises:
            SettingOutOfRange: If a bound is not positive, or there is none.
        """
        for name, bound in (("capacity", capacity), ("max_bytes", max_bytes)):
            if bound is not None and bound < 1:
                raise SettingOutOfRange(name, bound, allowed="at least 1")
        if capacity is None and max_bytes is None:
            raise SettingOutOfRange("capacity", None, allowed="a number, where max_bytes is none")
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.num_seen = 0
        """Items of the stream so far."""
        self._images: NDArray[np.uint8] | None = None  # (limit, H, W[, channels]) from the first item on
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

    @property
    def num_bytes(self) -> int:
        """Of the pixels kept."""
        return 0 if self._images is None else self._images[: len(self)].nbytes

    def labelled(self, classes: Collection[str]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """What is kept of these classes, N possibly 0, and the names."""
        wanted = [row for row, label in enumerate(self._labels) if label in classes]
        return self.images[wanted], tuple(self._labels[row] for row in wanted)

    def add(self, images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        """Show the buffer the next items of the stream.

        Args:
            images: uint8 ``(N, H, W)`` or ``(N, H, W, channels)``, each of the shape of those before.
            labels: N class names.

        Raises:
            MalformedDataset: If type, shape or number is another; the buffer is then unchanged.
            SettingOutOfRange: If not even one image is within ``max_bytes``; likewise.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
            reason = f"{images.dtype} {images.shape} with {len(labels)} labels"
            raise MalformedDataset("replay", reason=reason)
        if self._images is None:
            self._images = np.zeros((self.limit_of(images), *images.shape[1:]), dtype=np.uint8)
        if images.shape[1:] != self._images.shape[1:]:
            reason = f"images of shape {images.shape[1:]} among {self._images.shape[1:]}"
            raise MalformedDataset("replay", reason=reason)
        self._take(self._images, images, labels)

    @abstractmethod
    def drop(self, rows: Collection[int], gone: Mapping[str, int]) -> None:
        """Items leave the stream as if they had never been in it.

        Args:
            rows: Those of `images` among them, each once.
            gone: How many leave by class, these rows and those that were not kept. Fewer than the rows of a class, if
                their number is not known, count as the rows alone.
        """

    @abstractmethod
    def to_bytes(self) -> bytes:
        """All that decides what is kept from now on, so that a restart continues the same stream."""

    @abstractmethod
    def _take(self, kept: NDArray[np.uint8], images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        """Decide which of these items stay, and where in ``kept``, which has a place for as many as may stay."""

    def _remove(self, rows: Collection[int]) -> Mapping[str, int]:
        """Take kept items out, and move the rest up; how many they were by class."""
        out, stays = set(rows), [row for row in range(len(self)) if row not in rows]
        removed = Counter(self._labels[row] for row in out)
        if self._images is not None:
            self._images[: len(stays)] = self._images[stays]
            self._images[len(stays) :] = 0
        self._labels = [self._labels[row] for row in stays]
        return removed

    def _put(self, kept: NDArray[np.uint8], place: int, image: NDArray[np.uint8], label: str) -> None:
        """Keep an item in a place, in that of another or right behind the last."""
        kept[place] = image
        self._labels[place : place + 1] = [label]

    def limit_of(self, images: NDArray[np.uint8]) -> int:
        """How many such images may stay.

        Args:
            images: As for `add`, at least one.

        Raises:
            SettingOutOfRange: Not even one.
        """
        image_bytes = max(1, math.prod(images.shape[1:]))
        within = self.capacity if self.max_bytes is None else self.max_bytes // image_bytes
        assert within is not None, "__init__ has seen to it that there is a bound"
        if within == 0:
            raise SettingOutOfRange("max_bytes", self.max_bytes, allowed=f"at least the {image_bytes} of an image")
        return within if self.capacity is None else min(self.capacity, within)
