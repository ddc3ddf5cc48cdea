"""Inference where the mesh tells domains or tasks apart: whose experts may answer, and what their answers name.

Legend: B batch, L labels with their contexts, C class.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from experts.continual.decision import Setting
from meshnode.listings import ExpertListing
from protocol.errors import MalformedMessage
from protocol.identifiers import ExpertUid
from protocol.labels import class_of, contexts_of

__all__ = ["by_class", "of_task"]

TOLD_TASKS = 10
"""Named in an error."""


def of_task(
    setting: Setting, experts: Mapping[ExpertUid, ExpertListing], task: str | None
) -> Mapping[ExpertUid, ExpertListing]:
    """The experts that may answer: of the task where tasks are told, all where they are not.

    Raises:
        MalformedMessage: A task is named that there is none of, or none where one has to be.
    """
    if setting != "task-incremental":
        if task is not None:
            raise MalformedMessage("task", reason=f"the mesh is {setting}: it tells no tasks apart")
        return experts
    own = {uid: listing for uid, listing in experts.items() if contexts_of(listing.classes) == (task,)}
    if own:
        return own
    known = contexts_of(name for listing in experts.values() for name in listing.classes)
    told = ", ".join(known[:TOLD_TASKS]) + (f" and {len(known) - TOLD_TASKS} more" if len(known) > TOLD_TASKS else "")
    reason = "the images' task has to be named" if task is None else f"nobody answers for a task {task!r}"
    raise MalformedMessage("task", reason=f"{reason}; there are {told}")


def by_class(labels: Sequence[str], outputs_BL: NDArray[np.float32]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Classes without their contexts, sorted, and the sum ``(B, C)`` of what was said of each in any of them."""
    names = [class_of(label) for label in labels]
    classes = tuple(sorted(set(names)))
    said_of = [outputs_BL[:, [name == wanted for name in names]].sum(axis=1) for wanted in classes]
    return classes, np.stack(said_of, axis=1)
