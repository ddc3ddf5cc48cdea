"""What the daemon and its trainer say to each other where the mesh is to do without an expert."""

from typing import Any

import msgspec

from meshnode.trainer.task_file import TaskFile
from protocol.lineage import Accuracy

__all__ = ["HandOn", "HandedOn", "KnownExpert"]


class KnownExpert(msgspec.Struct, frozen=True, kw_only=True):
    """An expert to be built: its form, its classes and what it has learned."""

    uid: str
    classes: tuple[str, ...]
    architecture: dict[str, Any]
    weights: bytes
    """As safetensors."""


class HandOn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have one expert learn what another one knows; or only say how far they agree."""

    goes: KnownExpert
    stays: KnownExpert
    """Shares two or more classes with it; all of them, where the two are to be compared."""
    max_difference: float | None
    """If their outputs differ by more in mean total variation, nothing is learned; None if that is no matter."""
    learns: bool
    """Whether anything is to be learned at all."""
    tasks: tuple[TaskFile, ...]
    """Learned ones, whose images are used beside the replay memory's."""


class HandedOn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What came of it, on images that were not learned from."""

    num_items: int
    """Images of the shared classes to judge by; with too few nothing is said, nor learned."""
    difference: float | None = None
    """Mean total variation between the two; None where they have not the same classes, or with too few images."""
    told: Accuracy | None = None
    """Of the one that goes (``old``) and of the one that stays, as it is by now (``new``), at the shared classes."""
    kept: Accuracy | None = None
    """Of the one that stays, before and after, at all of its classes."""
    weights: bytes | None = None
    """Of the one that stays, as safetensors, if it has learned anything; whether it is to be served with them is the
    daemon's to decide."""
    tasks: tuple[str, ...] | None = ()
    """Names of the tasks whose images it learned from; None where one is unknown."""
