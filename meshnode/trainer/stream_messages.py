"""What daemon and trainer say to each other about streams."""

import msgspec

from meshnode.trainer.task_file import TaskFile

__all__ = ["ReadStreams", "StreamState", "StreamsRead"]


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """How far the reading of a stream is."""

    name: str
    batches: int
    """Seen so far."""
    tasks: int
    """Found in it so far."""
    waiting: int
    """Batches that may be the beginning of a task, or that nobody can judge yet."""
    gathered: int
    """Images of known classes that wait until there are enough of them to be learned from."""
    dropped: int
    """Batches given up because more waited than may."""
    ready: bool
    """Whether there is more to read now: a whole batch."""


class ReadStreams(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Read on in all streams, a while or until a task is found."""

    statistics: bytes | None
    """As in `Assess`."""
    known: tuple[str, ...]
    learned: tuple[TaskFile, ...]
    """Both likewise."""


class StreamsRead(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How far each stream is by now."""

    streams: tuple[StreamState, ...]
    found: str | None
    """Name of the task that was found, whose file is there; None if none was."""
