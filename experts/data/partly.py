"""Images of which some have a label: what a task file may hold.

Legend: N images, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset

__all__ = ["PartlyLabelled"]


@dataclass(frozen=True, slots=True, eq=False)
class PartlyLabelled:
    """N images of one size, each with the name of its class or without.

    Raises:
        MalformedDataset: As `ImageDataset`.
    """

    images: NDArray[np.uint8]
    """``(N, H, W)`` grey or ``(N, H, W, 3)`` colour, uint8; N may be 0."""
    labels: tuple[str | None, ...]
    """The N class names, none of them empty; None for an image without one."""

    def __post_init__(self) -> None:
        ImageDataset(self.images, tuple("none" if label is None else label for label in self.labels))

    @classmethod
    def of(cls, dataset: ImageDataset) -> "PartlyLabelled":
        """All of whose images have a label."""
        return cls(dataset.images, dataset.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled_rows(self) -> list[int]:
        """Of the images with a label, in their order."""
        return [row for row, label in enumerate(self.labels) if label is not None]

    @property
    def labelled(self) -> ImageDataset:
        """The images with a label."""
        rows = self.labelled_rows
        if len(rows) == len(self):
            return ImageDataset(self.images, tuple(str(label) for label in self.labels))
        return ImageDataset(self.images[rows], tuple(str(self.labels[row]) for row in rows))

    @property
    def num_unlabelled(self) -> int:
        """Images without a label."""
        return self.labels.count(None)

    def select(self, rows: Sequence[int]) -> "PartlyLabelled":
        """Some of the images, copied."""
        return PartlyLabelled(self.images[list(rows)], tuple(self.labels[row] for row in rows))
