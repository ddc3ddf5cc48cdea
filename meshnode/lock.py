"""One daemon per home: a lock that the kernel lets go of when its holder dies, however it dies."""

import os
from types import TracebackType
from typing import Self

import filelock

from meshnode.errors import AlreadyRunning
from meshnode.home import Home

__all__ = ["DaemonLock"]

PROBE_S = 0.2
"""How long the lock may be held by a command that only looks whether a daemon holds it."""


class DaemonLock:
    """``with DaemonLock(home):`` makes this process the home's only daemon until the block ends.

    Whoever writes to the home's state holds it.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        # Not thread_local: a lock taken in one thread must not look free in another.
        self._lock = filelock.FileLock(home.lock, timeout=PROBE_S, mode=0o600, thread_local=False)

    def __enter__(self) -> Self:
        """Make the home's folders if need be and take the lock, at once or not at all.

        Raises:
            AlreadyRunning: Another process holds it.
            OSError: The disk is full or fails; the lock is then free again.
        """
        self._home.create()
        try:
            self._lock.acquire()
        except filelock.Timeout as exc:
            note = self._home.read_daemon_note()
            raise AlreadyRunning(self._holder(), note.url if note else None) from exc
        try:
            # From here on a note in the home is this daemon's: one left by a kill would send clients astray.
            self._home.remove_daemon_note()
            self._home.lock.write_text(f"{os.getpid()}\n", encoding="ascii")
        except OSError:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take back the daemon's note, then let go."""
        self._home.remove_daemon_note()
        self._lock.release()

    def _holder(self) -> int | None:
        try:
            return int(self._home.lock.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None  # between taking the lock and writing this down
