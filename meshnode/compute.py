"""The threads in which this process runs torch: one that answers, one for the node's own work. Never the event loop.

What waits for an answer goes before everything else: it has a thread of its own, so that solving a router or loading
weights holds up nobody. Rows that wait for the same module are computed together, however many requests and peers they
came from: a batch is whatever has gathered while the one before was computed, so gathering costs no time of its own.

Legend: B rows of one request, N rows of a batch.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import Busy

__all__ = ["Compute"]

P = ParamSpec("P")
T = TypeVar("T")

Rows = npt.NDArray[Any]
RowsFunction = Callable[[Rows], Rows]

MAX_BATCH_ROWS: Final = 1024
"""Rows computed at once, unless one request has more: beyond some hundred, a row costs no less in a larger batch."""

_ROOM_SHARE: Final = 0.75
"""Share of its caller's patience that a request may spend in the queue: the rest is for the way, and for surprises."""

_PACE_SHARE: Final = 0.1
"""Weight of the newest batch in the running mean of what a request takes."""


@dataclass(slots=True, eq=False)
class _Job:
    """One call that waits; `key` is None if it is computed alone."""

    outcome: asyncio.Future[Any]
    function: Callable[..., Any]
    key: Hashable | None = None
    rows: Rows | None = None


class Compute:
    """Runs functions in the answering thread, behind a bounded queue, and in the node's own.

    Args:
        max_waiting: Calls that may wait; one more is refused, so that a flood costs the flooder and not the memory.
        max_batch: Rows computed at once.
    """

    def __init__(self, *, max_waiting: int = 256, max_batch: int = MAX_BATCH_ROWS) -> None:
        self._max_waiting = max_waiting
        self._max_batch = max_batch
        self._waiting = 0
        self._pace_s = 0.0
        """Running mean of the seconds that a request keeps the thread busy."""
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._answering = Thread(target=self._answer_all, name="compute", daemon=True)
        self._answering.start()
        self._own = ThreadPoolExecutor(max_workers=1, thread_name_prefix="own work")

    @property
    def waiting(self) -> int:
        """Requests that wait or run."""
        return self._waiting

    @property
    def expected_wait_s(self) -> float:
        """How long a request that comes now will have to wait, if it takes as long as the last ones did."""
        return self._waiting * self._pace_s

    def check_room(self, wait_s: float) -> None:
        """Refuse a request that would only take room: it finds the queue full, or its answer would come too late.

        Args:
            wait_s: How long its caller waits.

        Raises:
            Busy: With the time after which it is worth to ask again.
        """
        expected_s = self.expected_wait_s
        if self._waiting >= self._max_waiting or expected_s > _ROOM_SHARE * wait_s:
            raise Busy(retry_after_s=max(expected_s / 2, 0.01))

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the answering thread and return its result.

        Raises:
            Busy: The queue is full.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._submit(_Job(outcome, partial(function, *args, **kwargs)))
        return outcome.result()

    async def run_rows(self, key: Hashable, function: RowsFunction, rows: Rows) -> Rows:
        """Run `function` on `rows`, ``(B, ...)``, together with the rows of others who wait for the same.

        Args:
            key: Whose function it is: calls with equal keys have functions that do the same.
            function: Maps ``(N, ...)`` to ``(N, ...)``, each row by itself.
            rows: Of the same type and shape, but for B, in all calls of one key.

        Raises:
            Busy: The queue is full.
        """
        outcome: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        await self._submit(_Job(outcome, function, key, rows))
        return outcome.result()

    async def run_own(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function`, the node's own work, in that work's thread: in the order of the calls, and never refused."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._own, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Let what runs finish, drop what waits."""
        self._drop_waiting()
        self._queue.put(None)
        self._answering.join()
        self._own.shutdown(wait=True, cancel_futures=True)

    async def _submit(self, job: _Job) -> None:
        if self._waiting >= self._max_waiting:
            raise Busy(retry_after_s=max(self.expected_wait_s / 2, 0.01))
        self._waiting += 1
        try:
            self._queue.put(job)
            await job.outcome
        finally:
            self._waiting -= 1

    # --- in the answering thread ---

    def _answer_all(self) -> None:
        while (job := self._queue.get()) is not None:
            gathered = [job]
            try:
                while (another := self._queue.get_nowait()) is not None:
                    gathered.append(another)
            except Empty:
                pass
            else:
                self._queue.put(None)  # closed: after what has been gathered
            for batch in self._batches(gathered):
                self._compute(batch)

    def _batches(self, jobs: list[_Job]) -> list[list[_Job]]:
        """Jobs that are computed together, in the order in which the first of each came."""
        batches: list[list[_Job]] = []
        open_batches: dict[Hashable, tuple[list[_Job], int]] = {}
        for job in jobs:
            if job.outcome.cancelled():  # its caller has gone
                continue
            if job.rows is None:
                batches.append([job])
                continue
            batch, num_rows = open_batches.get(job.key, ([], 0))
            if not batch or num_rows + len(job.rows) > self._max_batch:
                batch, num_rows = [], 0
                batches.append(batch)
            batch.append(job)
            open_batches[job.key] = (batch, num_rows + len(job.rows))
        return batches

    def _compute(self, batch: list[_Job]) -> None:
        began_s = time.perf_counter()
        results: list[Any]
        failure: BaseException | None = None
        try:
            results = _results(batch)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the caller's
            results, failure = [None] * len(batch), exc
        pace_s = (time.perf_counter() - began_s) / len(batch)
        self._pace_s += _PACE_SHARE * (pace_s - self._pace_s)
        loop = batch[0].outcome.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, batch, results, failure)

    def _drop_waiting(self) -> None:
        try:
            while True:
                job = self._queue.get_nowait()
                if job is not None:
                    job.outcome.cancel()
        except Empty:
            pass


def _results(batch: list[_Job]) -> list[Any]:
    first = batch[0]
    if first.rows is None:
        return [first.function()]
    if len(batch) == 1:
        return [first.function(first.rows)]
    parts = [job.rows for job in batch if job.rows is not None]
    together = first.function(np.concatenate(parts))
    ends = np.cumsum([len(part) for part in parts])
    return np.split(together, ends[:-1])


def _deliver(batch: list[_Job], results: list[Any], failure: BaseException | None) -> None:
    for job, result in zip(batch, results, strict=True):
        if job.outcome.done():
            continue
        if failure is None:
            job.outcome.set_result(result)
        else:
            job.outcome.set_exception(failure)
