"""Who holds a home, asked without a trace: the lock file is neither made nor written, the daemon's note stays."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from meshnode.errors import AlreadyRunning
from meshnode.home import Home

__all__ = ["Holder", "find_holder", "keeping_daemons_out"]


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a home's lock: its daemon, starting, running or stopping."""

    pid: int | None
    """None if it has not written its number down yet."""

    def __str__(self) -> str:
        return "a process of unknown number" if self.pid is None else f"process {self.pid}"


def find_holder(home: Home) -> Holder | None:
    """The daemon of ``home``, or None if the lock is free; whatever its file says then means nothing.

    Raises:
        OSError: The lock file cannot be opened.
    """
    try:
        descriptor = os.open(home.lock, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # `filelock` locks with flock too. Shared, so that two that ask do not take each other for a daemon.
        return None if _locks(descriptor, fcntl.LOCK_SH) else Holder(_written_pid(descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def keeping_daemons_out(home: Home) -> Iterator[None]:
    """Hold the lock of a home that exists, for a moment, so that no daemon starts meanwhile.

    Raises:
        AlreadyRunning: A daemon holds it.
        OSError: The lock file cannot be opened or made.
    """
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _locks(descriptor, fcntl.LOCK_EX):
            raise AlreadyRunning(_written_pid(descriptor), None)
        yield
    finally:
        os.close(descriptor)


def _locks(descriptor: int, kind: int) -> bool:
    """Take the lock if it is free; closing the descriptor lets go of it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written_pid(descriptor: int) -> int | None:
    try:
        return int(os.pread(descriptor, 32, 0))
    except ValueError:
        return None
