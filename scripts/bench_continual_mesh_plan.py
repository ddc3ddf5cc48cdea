"""What each node of a mesh is given to learn and when, and what one node that has everything is given."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experts.data.dataset import ImageDataset
from experts.evaluation.scenarios.base import Scenario, ScenarioTask

__all__ = ["MESH_NODES", "Plan", "Share", "Sizes", "bytes_between", "plan_of", "reduced"]

MESH_NODES = ("ann", "ben", "eve", "joe")

LEARNERS: Sequence[Sequence[str]] = (("ann",), ("ben",), ("eve", "joe"), ("ann",), ("joe",))
"""Of each task, in order. The third is learned by two nodes at once, each of which has half of its images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is learned and asked."""

    train: int
    """Images a task."""
    test: int
    """Likewise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Share:
    """What one node is given of one task."""

    node: str
    task: str
    """Its number, from 1."""
    images: ImageDataset


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """Waves of shares: one begins when all of the one before has been learned and told."""

    waves: tuple[tuple[Share, ...], ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names, in the order in which they first learn; the first founds the mesh."""
        return tuple(dict.fromkeys(share.node for wave in self.waves for share in wave))


def reduced(scenario: Scenario, sizes: Sizes) -> Scenario:
    """The first images of each class of each task, in equal numbers."""

    def first(part: ImageDataset, number: int) -> ImageDataset:
        each = number // len(part.classes)
        labels = np.array(part.labels)
        rows = np.concatenate([np.flatnonzero(labels == name)[:each] for name in part.classes])
        return part.select(sorted(rows.tolist()))

    tasks = tuple(
        dataclasses.replace(task, train=first(task.train, sizes.train), test=first(task.test, sizes.test))
        for task in scenario.tasks
    )
    return dataclasses.replace(scenario, tasks=tasks)


def plan_of(tasks: Sequence[ScenarioTask], learners: Sequence[Sequence[str]] = LEARNERS, *, seed: int) -> Plan:
    """Deal tasks out.

    Args:
        tasks: In the order in which they come.
        learners: The nodes that learn each of them. Several have parts of equal size, drawn at random.
        seed: Of that drawing.
    """
    waves = []
    for number, (task, names) in enumerate(zip(tasks, learners, strict=True), 1):
        dealt = task.train.shard(len(names), seed=seed) if len(names) > 1 else (task.train,)
        shares = (Share(node=node, task=str(number), images=part) for node, part in zip(names, dealt, strict=True))
        waves.append(tuple(shares))
    return Plan(waves=tuple(waves))


def bytes_between(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Growth of counters by kind, without those that did not grow; a node that was killed counts anew."""
    grown = {kind: count - before.get(kind, 0) for kind, count in after.items()}
    return {kind: count for kind, count in grown.items() if count > 0}
