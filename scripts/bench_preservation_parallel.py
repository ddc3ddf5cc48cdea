"""Work that depends on nothing but its seed, spread over the cores."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

__all__ = ["in_parallel"]

R = TypeVar("R")

_tasks: Sequence[Callable[[], Any]] = ()


def in_parallel(tasks: Sequence[Callable[[], R]]) -> list[R]:
    """What each task returns, in their order.

    Args:
        tasks: May refer to anything that is there by now; what they return has to be pickled, and is better no tensor,
            which a process that has ended cannot hand over.
    """
    global _tasks  # noqa: PLW0603 - what a forked process has without its being sent
    _tasks = tasks
    # Not spawned: each process would read and hold the features for itself.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context, initializer=_end_when_told) as pool:
        try:
            return list(pool.map(_run, range(len(tasks))))
        finally:
            # Nobody who interrupts a run waits for what is under way.
            for process in multiprocessing.active_children():
                process.terminate()


def _end_when_told() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(index: int) -> Any:
    return _tasks[index]()
