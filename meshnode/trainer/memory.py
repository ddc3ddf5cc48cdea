"""The replay memory on disk: a reservoir of past images, and which task files it has already taken in.

Both are one file, so that a task that is learned again after a kill is not remembered twice.
"""

from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from experts.continual.replay import ReservoirBuffer
from experts.data.dataset import ImageDataset
from experts.errors import CorruptState
from experts.generators import torch_generator
from meshnode.home import write_atomically

__all__ = ["ReplayMemory"]


class _Saved(msgspec.Struct):
    tasks: list[str]
    """Digests of the task files taken in, in order."""
    buffer: bytes


class ReplayMemory:
    """At most `capacity` labelled images of all that was learned here. They never leave this process and its file."""

    def __init__(self, path: Path, *, capacity: int, seed: int) -> None:
        """Read the file, or begin an empty memory.

        Raises:
            CorruptState: The file is damaged.
        """
        self._path = path
        self._tasks: list[str] = []
        if path.exists():
            try:
                saved = msgspec.msgpack.decode(path.read_bytes(), type=_Saved)
            except msgspec.DecodeError as exc:
                raise CorruptState("replay memory", reason=str(exc)) from exc
            self._tasks, self._buffer = saved.tasks, ReservoirBuffer.from_bytes(saved.buffer)
        else:
            self._buffer = ReservoirBuffer(capacity, torch_generator(seed, "replay"))

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, task: ImageDataset, digest: str) -> None:
        """Show the memory a task, once; it is on disk when this returns."""
        if digest in self._tasks:
            return
        self._buffer.add(task.images, task.labels)
        self._tasks.append(digest)
        write_atomically(self._path, msgspec.msgpack.encode(_Saved(tasks=self._tasks, buffer=self._buffer.to_bytes())))

    def images_of(self, classes: Collection[str]) -> np.ndarray:
        """What is remembered of these classes, uint8 ``(N, H, W[, channels])``."""
        return self.labelled(classes)[0]

    def labelled(self, classes: Collection[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The same with the N class names."""
        labels = self._buffer.labels
        wanted = [row for row, label in enumerate(labels) if label in classes]
        return self._buffer.images[wanted], tuple(labels[row] for row in wanted)
