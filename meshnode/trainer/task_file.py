"""A task file as daemon and trainer speak of it."""

import msgspec

__all__ = ["TaskFile"]


class TaskFile(msgspec.Struct, frozen=True, kw_only=True):
    """A readable task file."""

    name: str
    digest: str
    classes: dict[str, int]
    """Samples per class name; empty if no image has a label."""
    unlabelled: int = 0
    """Images without one."""
