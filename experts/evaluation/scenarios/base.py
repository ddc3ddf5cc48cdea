"""A scenario: tasks in the order they come, and which classes an answer may name when one of them is tested.

The three kinds of van de Ven and Tolias 2019, "Three scenarios for continual learning" (arXiv:1904.07734):

    class-incremental   the classes of all tasks learned so far
    domain-incremental  the classes that all tasks share
    task-incremental    the classes of the task that is tested

A scenario is a value that is made before any method runs, out of portable streams of its own: a method sees the same
tasks whatever it draws, and so does the next one.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experts.data.dataset import ImageDataset
from experts.errors import MalformedDataset, SettingOutOfRange
from experts.generators import portable_uniform

__all__ = ["Kind", "Scenario", "ScenarioTask", "shuffled"]

Kind = Literal["class-incremental", "domain-incremental", "task-incremental"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScenarioTask:
    """One task, to be learned from one part of its images and tested on the other.

    Raises:
        MalformedDataset: If a part has no image, or an image of a class that is not the task's.
    """

    name: str
    """The task in tables; in a domain-incremental scenario, the domain."""
    train: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    """Names of the task's classes."""

    def __post_init__(self) -> None:
        for part, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise MalformedDataset(f"task {self.name!r}", reason=f"there is no {part} image")
            if foreign := set(images.labels) - set(self.classes):
                reason = f"{part} images of {', '.join(sorted(foreign))}, which are not its classes"
                raise MalformedDataset(f"task {self.name!r}", reason=reason)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scenario:
    """Tasks and the way they are tested.

    Raises:
        SettingOutOfRange: If there is no task.
        MalformedDataset: If images differ in size, or in a domain-incremental scenario tasks differ in classes.
    """

    name: str
    kind: Kind
    tasks: tuple[ScenarioTask, ...]
    """In the order they are learned, at least one."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise SettingOutOfRange("tasks", self.tasks, allowed="at least one")
        if len({part.images.shape[1:] for task in self.tasks for part in (task.train, task.test)}) > 1:
            raise MalformedDataset(f"scenario {self.name!r}", reason="its images differ in size")
        if self.kind == "domain-incremental" and len({frozenset(task.classes) for task in self.tasks}) > 1:
            raise MalformedDataset(f"scenario {self.name!r}", reason="its domains differ in classes")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all tasks' classes, sorted."""
        return tuple(sorted({name for task in self.tasks for name in task.classes}))

    def allowed(self, after_task: int, on_task: int) -> tuple[str, ...]:
        """The classes an answer may name, sorted.

        Args:
            after_task: t, the last task learned, from 0; -1 before the first.
            on_task: i, the task that is tested; in a class-incremental scenario it does not matter.
        """
        if self.kind == "class-incremental":
            return tuple(sorted({name for task in self.tasks[: after_task + 1] for name in task.classes}))
        return tuple(sorted(self.tasks[on_task].classes))

    def for_tuning(self, held_out_ratio: float = 0.1) -> "Scenario":
        """The same without a test image: each task is tested on a part of its training images, which nobody learns.

        Args:
            held_out_ratio: Share of each class of a task's training images that becomes its test part, in (0, 1).

        Raises:
            SettingOutOfRange: If it is not in [0, 1].
            MalformedDataset: If it leaves one of the parts without an image.
        """
        tasks = []
        for number, task in enumerate(self.tasks):
            kept, held_out = task.train.split(held_out_ratio, seed=number)
            tasks.append(dataclasses.replace(task, train=kept, test=held_out))
        return dataclasses.replace(self, name=f"{self.name}, held out of training", tasks=tuple(tasks))

    def limited(self, train_images: int, test_images: int) -> "Scenario":
        """The same with at most so many images a task, those that come first."""
        tasks = tuple(
            dataclasses.replace(
                task,
                train=task.train.select(range(min(train_images, len(task.train)))),
                test=task.test.select(range(min(test_images, len(task.test)))),
            )
            for task in self.tasks
        )
        return dataclasses.replace(self, name=f"{self.name}, limited", tasks=tasks)

    def with_fewer(self, train_images: int | None, test_images: int | None) -> "Scenario":
        """The same with at most so many images a task, the first of each class in turn; None for all.

        Raises:
            SettingOutOfRange: If a task has more classes than it may have images.
        """
        most = max(len(task.classes) for task in self.tasks)
        for name, images in (("train_images", train_images), ("test_images", test_images)):
            if images is not None and images < most:
                raise SettingOutOfRange(name, images, allowed=f"at least {most}, as many as a task has classes")
        tasks = tuple(
            dataclasses.replace(task, train=_fewer(task.train, train_images), test=_fewer(task.test, test_images))
            for task in self.tasks
        )
        return dataclasses.replace(self, tasks=tasks)

    def digest(self) -> str:
        """sha256 over kind, order, names, images and labels: 64 lowercase hex characters; equal for equal tasks."""
        hashed = hashlib.sha256(repr((self.kind, len(self.tasks))).encode())
        for task in self.tasks:
            hashed.update(repr((task.name, task.classes)).encode())
            for part in (task.train, task.test):
                hashed.update(repr((part.images.shape, part.labels)).encode())
                hashed.update(np.ascontiguousarray(part.images).data)
        return hashed.hexdigest()


def _fewer(part: ImageDataset, most: int | None) -> ImageDataset:
    if most is None or most >= len(part):
        return part
    seen: Counter[str] = Counter()
    turns = []
    for row, label in enumerate(part.labels):
        turns.append((seen[label], row))
        seen[label] += 1
    return part.select(sorted(row for _, row in sorted(turns)[:most]))


def shuffled(items: Collection[str] | range, order: int, purpose: str) -> list[int]:
    """Positions of the items in the order of that number.

    Args:
        items: What is to be ordered.
        order: 0 leaves the order as it is; any other number is a permutation, the same on every machine.
        purpose: Names the stream, so that no two draws of a scenario are one.
    """
    if order == 0:
        return list(range(len(items)))
    keys = portable_uniform(f"scenario/{order}", purpose, (len(items),)).numpy()
    return [int(position) for position in np.argsort(keys, kind="stable")]
