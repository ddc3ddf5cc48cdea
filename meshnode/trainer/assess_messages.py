"""What daemon and trainer say to each other before a task is learned: whether it is new, and what updates would bring.

The assessment and the gains are those of `experts.continual`, sent as they are.
"""

from typing import Any

import msgspec

from experts.continual.decision import ExpectedGain
from experts.continual.novelty import Assessment, Verdict
from meshnode.trainer.task_file import TaskFile

__all__ = ["Assess", "Assessed", "BatchVerdict", "ExpertTrial"]


class ExpertTrial(msgspec.Struct, frozen=True, kw_only=True):
    """An expert of which it is to be tried whether it gains by the task."""

    uid: str
    classes: tuple[str, ...]
    architecture: dict[str, Any]
    weights: bytes
    """As they are, safetensors."""


class Assess(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Judge a task, and try what its images would bring to experts. Nothing is kept of either."""

    task: str
    statistics: bytes | None
    """The router's, of all that the mesh has contributed; None before anything."""
    known: tuple[str, ...]
    """Classes that experts answer for."""
    learned: tuple[TaskFile, ...]
    """Learned tasks, whose held-out images say what is known."""
    experts: tuple[ExpertTrial, ...]


class BatchVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """On one batch of a task, by its distance alone."""

    verdict: Verdict
    distance: float | None


class Assessed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How new a task is, and what each expert would gain."""

    assessment: Assessment
    """Of the whole."""
    batches: tuple[BatchVerdict, ...]
    """In their order; those of a sample, of a large task."""
    gains: dict[str, ExpectedGain]
    """By expert, of those that were to be tried."""
