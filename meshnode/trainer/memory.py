"""The replay memory on disk: some of the past images, and of which task files each of them is.

All of it is one file, so that a task that is learned again after a kill is not remembered twice. Which tasks an image
is of is known by its digest: an image that two files have in common is of both. Files of this program's earlier
versions do not say it. Of such a memory the one task's images are told apart if it has taken in no more than one file;
otherwise they stay of unknown origin until they leave.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from experts.continual.herding import Features
from experts.continual.replay_kinds import ReplayConfig, make_replay, replay_from_bytes, replay_under
from experts.data.dataset import ImageDataset
from experts.data.held_out import image_digest
from experts.errors import CorruptState
from experts.generators import torch_generator
from meshnode.home import write_atomically

__all__ = ["Leaving", "ReplayMemory"]


class _Taken(msgspec.Struct, frozen=True):
    """A task file that was shown to the memory."""

    digest: str
    name: str | None
    """Its task's; None in what an earlier version wrote."""
    images: int
    """How many it had; 0 where that is unknown."""
    classes: dict[str, int] = {}
    """How many of each class; empty in what an earlier version wrote."""


class _Saved(msgspec.Struct):
    tasks: list[_Taken | str]
    """In the order they came; earlier versions wrote the digests alone."""
    buffer: bytes
    origins: dict[bytes, list[str]] = {}
    """By an image's digest, those of the files that it is in."""


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """What of the memory has to go with a task."""

    rows: tuple[int, ...]
    """Images to go."""
    unsure: int
    """How many of them are of unknown origin, and go because their class is one of the task's."""


class ReplayMemory:
    """Some labelled images of all that was learned here. They never leave this process and its file."""

    def __init__(self, path: Path, config: ReplayConfig, features: Features, *, seed: int) -> None:
        """Read the file, or begin an empty memory.

        Args:
            path: The file.
            config: Which images stay. A memory under other settings is made into one under these.
            features: Of the mesh's trunk.
            seed: What the drawing follows from.

        Raises:
            CorruptState: The file is damaged.
            SettingOutOfRange: Not even one image of those that are kept is within the bounds.
        """
        self._path = path
        self._tasks: list[_Taken] = []
        self._origins: dict[bytes, list[str]] = {}
        if path.exists():
            try:
                saved = msgspec.msgpack.decode(path.read_bytes(), type=_Saved)
            except msgspec.DecodeError as exc:
                raise CorruptState("replay memory", reason=str(exc)) from exc
            buffer = replay_from_bytes(saved.buffer, features)
            self._buffer = replay_under(config, buffer, torch_generator(seed, "replay"), features)
            self._tasks = [_Taken(task, None, 0) if isinstance(task, str) else task for task in saved.tasks]
            self._origins = saved.origins
            if len(self._tasks) == 1:
                self._origins = {image_digest(image): [self._tasks[0].digest] for image in self._buffer.images}
        else:
            self._buffer = make_replay(config, torch_generator(seed, "replay"), features)

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, task: ImageDataset, digest: str, name: str) -> None:
        """Show the memory a task, once; it is on disk when this returns.

        Args:
            task: Its images.
            digest: Of its file.
            name: The task's.
        """
        if any(taken.digest == digest for taken in self._tasks):
            return
        self._buffer.add(task.images, task.labels)
        self._tasks.append(_Taken(digest, name, len(task), dict(task.class_counts)))
        shown = set(map(image_digest, task.images))
        kept = list(map(image_digest, self._buffer.images))
        known = {image: self._origins[image] for image in kept if image in self._origins}
        self._origins = known | {image: [*known.get(image, ()), digest] for image in kept if image in shown}
        self._save()

    def tasks_of(self, classes: Collection[str]) -> tuple[str, ...] | None:
        """Names of the tasks that its images of these classes are of, sorted; None where one's are unknown."""
        found: set[str] = set()
        for image, label in zip(self._buffer.images, self._buffer.labels, strict=True):
            if label in classes:
                tasks = self._tasks_with(image)
                if not tasks:
                    return None
                found |= tasks
        return tuple(sorted(found))

    def leaving(self, name: str, digests: Collection[str], classes: Collection[str]) -> Leaving:
        """What would go with a task.

        Args:
            name: The task's.
            digests: Of its files, as far as they are known; needed for what an earlier version took in.
            classes: Its classes, as far as they are known: an image of one of these, of which nobody knows the task,
                may be of this one.
        """
        gone = self._files_of(name, digests)
        rows, unsure = [], 0
        for row, (image, label) in enumerate(zip(self._buffer.images, self._buffer.labels, strict=True)):
            tasks = self._origins.get(image_digest(image), ())
            if gone.intersection(tasks) or (not tasks and label in classes):
                rows.append(row)
                unsure += not tasks
        return Leaving(rows=tuple(rows), unsure=unsure)

    def forget(self, name: str, digests: Collection[str], classes: Collection[str]) -> Leaving:
        """Have it go; what is left is on disk when this returns. Arguments as for `leaving`."""
        leaving, gone = self.leaving(name, digests, classes), self._files_of(name, digests)
        if leaving.rows or gone:
            shown: Counter[str] = Counter()
            for taken in self._tasks:
                if taken.digest in gone:
                    # Of what an earlier version took in the number is known alone, which is all that its memory asks.
                    shown.update(taken.classes or {"": taken.images})
            self._buffer.drop(leaving.rows, shown)
            self._tasks = [taken for taken in self._tasks if taken.digest not in gone]
            kept = set(map(image_digest, self._buffer.images))
            self._origins = {image: tasks for image, tasks in self._origins.items() if image in kept}
            self._save()
        return leaving

    def images_of(self, classes: Collection[str], tasks: Collection[str] | None = None) -> np.ndarray:
        """What is remembered of these classes, uint8 ``(N, H, W[, channels])``.

        Args:
            classes: Their names.
            tasks: Names of the only tasks that the images may be of; None for any, and for those of unknown origin.
        """
        images, _ = self.labelled(classes)
        if tasks is None:
            return images
        origins = map(self._tasks_with, images)
        return images[[bool(origin) and origin <= set(tasks) for origin in origins]]

    def labelled(self, classes: Collection[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The same with the N class names."""
        labels = self._buffer.labels
        wanted = [row for row, label in enumerate(labels) if label in classes]
        return self._buffer.images[wanted], tuple(labels[row] for row in wanted)

    def _tasks_with(self, image: np.ndarray) -> set[str]:
        """Names of the tasks that an image is of; empty where one is unknown."""
        names = {taken.digest: taken.name for taken in self._tasks}
        found = [names.get(digest) for digest in self._origins.get(image_digest(image), ())]
        return set() if None in found else {name for name in found if name is not None}

    def _files_of(self, name: str, digests: Collection[str]) -> set[str]:
        return {taken.digest for taken in self._tasks if taken.name == name or taken.digest in digests}

    def _save(self) -> None:
        saved = _Saved(tasks=list(self._tasks), buffer=self._buffer.to_bytes(), origins=self._origins)
        write_atomically(self._path, msgspec.msgpack.encode(saved))
