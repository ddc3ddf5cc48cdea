"""The one thread in which this process runs torch: serving never blocks the event loop and never runs twice at once."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from protocol.errors import Busy

__all__ = ["Compute"]

P = ParamSpec("P")
T = TypeVar("T")


class Compute:
    """A bounded queue before a single worker thread.

    Args:
        max_waiting: Calls that may wait; one more is refused, so that a flood costs the flooder and not the memory.
    """

    def __init__(self, *, max_waiting: int = 256) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._max_waiting = max_waiting
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Requests that wait or run."""
        return self._waiting

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the compute thread and return its result.

        Raises:
            Busy: The queue is full.
        """
        if self._waiting >= self._max_waiting:
            raise Busy(retry_after_s=0.1)
        self._waiting += 1
        try:
            return await self.run_own(function, *args, **kwargs)
        finally:
            self._waiting -= 1

    async def run_own(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for the node's own work: it waits its turn however many requests do, and is never refused."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Let what runs finish, drop what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)
