"""A stream as people give it: a folder of ``.npz`` files, read in the order of their names, cut into batches.

A batch may go over the end of a file into the next. Files are added, never changed: one that sorts before what was read
last is not read any more.

Legend: B images of a batch.
"""

from dataclasses import dataclass
from pathlib import Path

from experts.continual.batches import Batch, joined
from experts.data.npz import load_partly_labelled
from experts.data.partly import PartlyLabelled
from experts.errors import MalformedDataset

__all__ = ["Position", "StreamFolder"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on."""

    file: str = ""
    """Name of the file that was read last; empty before any."""
    row: int = 0
    """Of its first image that was not read yet; their number if all were."""


class StreamFolder:
    """Reads a folder; the last file that was opened stays in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: tuple[str, PartlyLabelled] | None = None

    def next_batch(self, position: Position, size: int, shape: tuple[int, ...] | None) -> tuple[Batch, Position] | None:
        """The next B = `size` images, and the position behind them; None while there are fewer.

        Args:
            position: As this returned it.
            size: At least 1.
            shape: Of the stream's images so far; None before any.

        Raises:
            MalformedDataset: A file cannot be read or has images of another shape; it is named.
        """
        parts: list[Batch] = []
        for name in sorted(path.name for path in self._folder.glob("*.npz")):
            if name < position.file:
                continue
            task = self._open(name)
            start = position.row if name == position.file else 0
            if len(task) <= start:
                continue
            got = task.images.shape[1:]
            shape = shape or got
            if got != shape:
                raise MalformedDataset(f"{self._folder.name}/{name}", reason=f"images of shape {got} among {shape}")
            end = min(len(task), start + size - sum(map(len, parts)))
            parts.append(Batch(task.images[start:end], task.labels[start:end]))
            position = Position(name, end)
            if sum(map(len, parts)) == size:
                return joined(parts), position
        return None

    def _open(self, name: str) -> PartlyLabelled:
        if self._opened is None or self._opened[0] != name:
            path = self._folder / name
            try:
                self._opened = (name, load_partly_labelled(path))
            except (MalformedDataset, OSError) as exc:
                reason = exc.reason if isinstance(exc, MalformedDataset) else str(exc)
                raise MalformedDataset(f"{self._folder.name}/{name}", reason=reason) from exc
        return self._opened[1]
