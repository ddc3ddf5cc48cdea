"""Task files in a mesh that tells domains or tasks apart: which of them a file is of, and its labels under that name.

A file says it by its own name: ``CONTEXT@ANYTHING.npz`` or ``CONTEXT.npz``. Its labels are plain, as people write them.
"""

from experts.data.partly import PartlyLabelled
from experts.errors import MalformedDataset
from protocol.errors import MalformedIdentifier
from protocol.labels import class_of, label_in

__all__ = ["CONTEXT_MARK", "in_context", "task_context", "without_context"]

CONTEXT_MARK = "@"
"""Ends the context in a task's name."""


def task_context(task: str) -> str:
    """The domain or task that a task file of this name is of."""
    return task.partition(CONTEXT_MARK)[0]


def in_context(data: PartlyLabelled, task: str) -> PartlyLabelled:
    """The images with their labels as the mesh has them.

    Raises:
        MalformedDataset: There is no such name.
    """
    context = task_context(task)
    try:
        return PartlyLabelled(
            data.images, tuple(None if label is None else label_in(context, label) for label in data.labels)
        )
    except MalformedIdentifier as refusal:
        raise MalformedDataset(task, reason=refusal.message) from refusal


def without_context(data: PartlyLabelled) -> PartlyLabelled:
    """The images with their labels as people have them."""
    return PartlyLabelled(data.images, tuple(None if label is None else class_of(label) for label in data.labels))
