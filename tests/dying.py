"""Processes that die in the middle of what they do, as a kill or a power cut would have it."""

import os
from collections.abc import Callable

from meshnode.state.ledger import Ledger

__all__ = ["die_at_step"]


def die_at_step(step: int, act: Callable[[], None]) -> None:
    """In a forked child: act, but die (no clean-up, no flush) at the given step.

    A step is a call into the disk, or a statement that SQLite is about to carry out.
    """
    count = 0

    def one_more() -> None:
        nonlocal count
        count += 1
        if count == step:
            os._exit(137)

    def deadly(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            one_more()
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in ("open", "fdopen", "posix_fallocate", "fsync", "replace", "close", "unlink"):
        deadly(name)
    real_open = Ledger.open

    def open_deadly(self: Ledger) -> Ledger:
        real_open(self)
        assert self._connection is not None
        self._connection.set_trace_callback(lambda statement: one_more())
        return self

    Ledger.open = open_deadly  # type: ignore[method-assign, assignment]
    act()
    os._exit(0)
