"""Labelled images, in memory or on disk, and the ways to take parts of them.

Pixels stay uint8 and labels stay class names until something is computed: columns are a local view of names.
Every random choice comes from a portable stream, so a split is the same on all machines and versions.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from experts.data.on_disk import rows_of
from experts.errors import MalformedDataset, SettingOutOfRange, UnknownClasses
from experts.generators import portable_uniform

__all__ = ["ImageDataset", "class_columns", "split_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageDataset:
    """N images of one size with the name of each one's class."""

    images: NDArray[np.uint8]
    """``(N, H, W)`` grey or ``(N, H, W, 3)`` colour, uint8; N may be 0."""
    labels: tuple[str, ...]
    """The N images' class names, none of them empty."""

    def __post_init__(self) -> None:
        images: object = self.images
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            raise MalformedDataset("images", reason="not an array of uint8")
        colour = images.ndim == 4 and images.shape[3] == 3
        if not (images.ndim == 3 or colour) or 0 in images.shape[1:]:
            raise MalformedDataset("images", reason=f"shape {images.shape} is neither (N, H, W) nor (N, H, W, 3)")
        if len(images) != len(self.labels):
            raise MalformedDataset("labels", reason=f"{len(self.labels)} labels for {len(images)} images")
        if not all(isinstance(label, str) and label for label in self.labels):
            raise MalformedDataset("labels", reason="a class name is empty or not text")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return 1 if self.images.ndim == 3 else 3

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the classes that have an image here."""
        return tuple(sorted(set(self.labels)))

    @property
    def class_counts(self) -> dict[str, int]:
        """Images of each class, sorted by name."""
        return dict(sorted(Counter(self.labels).items()))

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> Self:
        """The images at ``indices``, in that order: copies, which stay on disk if these images do.

        Raises: IndexError: If an index is out of range: a bug of the caller's.
        """
        rows = np.asarray(indices, dtype=np.int64)
        return type(self)(rows_of(self.images, rows), tuple(self.labels[row] for row in rows))

    def of_classes(self, classes: Collection[str]) -> Self:
        """The images of these classes, in their order here.

        Raises: UnknownClasses: If a class has no image here.
        """
        wanted = set(classes)
        if missing := wanted - set(self.labels):
            raise UnknownClasses(missing, known=self.classes)
        return self.select([row for row, label in enumerate(self.labels) if label in wanted])

    def split(self, held_out_ratio: float, *, seed: int) -> tuple[Self, Self]:
        """Two disjoint parts that hold every class in the same proportion.

        Args:
            held_out_ratio: Share of each class that goes to the second part, in [0, 1].
            seed: Any integer; the same seed gives the same split everywhere.
        Returns: The kept part and the held-out part, each in the order of this data set.
        Raises: SettingOutOfRange: If the ratio is outside [0, 1].
        """
        kept, held_out = split_rows(self.labels, held_out_ratio, seed=seed)
        return self.select(kept), self.select(held_out)

    def shard(self, num_shards: int, *, seed: int) -> tuple[Self, ...]:
        """Disjoint parts that together are the whole, each class dealt out as evenly as it goes.

        Args:
            num_shards: At least 1; a class with fewer images than shards is absent from some.
            seed: Any integer; the same seed gives the same shards everywhere.
        Returns: ``num_shards`` data sets, each in the order of this one.
        Raises: SettingOutOfRange: If ``num_shards`` is below 1.
        """
        if num_shards < 1:
            raise SettingOutOfRange("num_shards", num_shards, allowed="1 or more")
        shards: list[list[int]] = [[] for _ in range(num_shards)]
        dealt = 0
        for rows in _shuffled_rows_by_class(self.labels, seed, "shard"):
            # The next class goes on where the last one stopped, so that no shard gets every remainder.
            for row in rows:
                shards[dealt % num_shards].append(row)
                dealt += 1
        return tuple(self.select(sorted(rows)) for rows in shards)


def split_rows(labels: Sequence[str], held_out_ratio: float, *, seed: int) -> tuple[list[int], list[int]]:
    """The rows of `ImageDataset.split`, for whoever has labels and has not read the images.

    Args:
        labels: N class names.
        held_out_ratio: Share of each class that goes to the second part, in [0, 1].
        seed: Any integer; the same seed gives the same split everywhere.
    Returns: The kept rows and the held-out ones, both ascending; together they are 0 to N - 1.
    Raises: SettingOutOfRange: If the ratio is outside [0, 1].
    """
    if not 0 <= held_out_ratio <= 1:
        raise SettingOutOfRange("held_out_ratio", held_out_ratio, allowed="0 to 1")
    held_out: list[int] = []
    for rows in _shuffled_rows_by_class(labels, seed, "split"):
        held_out.extend(rows[: round(held_out_ratio * len(rows))])
    kept = sorted(set(range(len(labels))) - set(held_out))
    return kept, sorted(held_out)


def _shuffled_rows_by_class(labels: Sequence[str], seed: int, purpose: str) -> list[list[int]]:
    rows_of_class: dict[str, list[int]] = {}
    for row, name in enumerate(labels):
        rows_of_class.setdefault(name, []).append(row)
    shuffled = []
    for name, rows in sorted(rows_of_class.items()):
        keys = portable_uniform(str(seed), f"{purpose}/{name}", (len(rows),)).numpy()
        shuffled.append([rows[position] for position in np.argsort(keys, kind="stable")])
    return shuffled


def class_columns(labels: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """The column of each label in ``classes``.

    Args:
        labels: B class names.
        classes: The names of the columns, without duplicates.
    Returns: int64 ``(B,)``, each in [0, len(classes)).
    Raises: UnknownClasses: If a label is not among the classes.
    """
    column_of = {name: column for column, name in enumerate(classes)}
    if missing := set(labels) - column_of.keys():
        raise UnknownClasses(missing, known=classes)
    return torch.tensor([column_of[label] for label in labels], dtype=torch.int64)
