"""Which expert learns which class of a new task (proposal, section 2.5, steps a and b).

Experts name their classes, so labels decide: a class some expert answers for updates that expert, and all the
others together spawn one new expert. Every node comes to the same plan from the same facts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from experts.errors import NothingToLearnFrom

__all__ = ["Plan", "assign_classes"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A partition of a task's classes."""

    update: Mapping[str, tuple[str, ...]]
    """Sorted classes by the uid of the expert that learns them; each is one of its own, none is empty."""

    spawn: tuple[str, ...]
    """Sorted classes of the one expert to be made; empty if none is needed."""


def assign_classes(task_classes: Collection[str], known_experts: Mapping[str, Collection[str]]) -> Plan:
    """Assign each class of a task to one expert.

    A class that several experts answer for goes to the one that covers most of the task, so that few experts
    are trained; equal ones are taken in uid order.

    Args:
        task_classes: Class names; duplicates count once.
        known_experts: The classes of each expert, by uid.

    Raises:
        NothingToLearnFrom: If the task has no class.
    """
    remaining = set(task_classes)
    if not remaining:
        raise NothingToLearnFrom("task")
    covered = {uid: remaining.intersection(classes) for uid, classes in known_experts.items()}
    update: dict[str, tuple[str, ...]] = {}
    for uid in sorted(covered, key=lambda uid: (-len(covered[uid]), uid)):
        assigned = covered[uid] & remaining
        if assigned:
            update[uid] = tuple(sorted(assigned))
            remaining -= assigned
    return Plan(update, tuple(sorted(remaining)))
