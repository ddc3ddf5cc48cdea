"""The threads in which this process runs torch: one that answers, one for the node's own work. Never the event loop.

What waits for an answer goes before everything else: it has a thread of its own, so that solving a router or loading
weights holds up nobody. Rows that wait for the same module are computed together, however many requests and peers they
came from: a batch is whatever has gathered while the one before was computed, so gathering costs no time of its own.

Legend: B rows of one request, N rows of a batch.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Condition, Thread
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import Busy, Draining

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
"""Weight of the newest request in the running mean of what one takes."""

_LEAST_RETRY_S: Final = 0.01
"""A caller that is refused is told to stay away for this long at least: less is gone by the time it hears of it."""


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
        self._under_way = 0
        self._pace_s = 0.0
        """Running mean of the seconds that a request keeps the thread busy."""
        self._waiting: dict[_Job, None] = {}
        """In the order in which they came; whoever is cancelled is out of it at once, rows and all."""
        self._changed = Condition()
        """Guards `_waiting` and `_closed`, which both threads touch."""
        self._closed = False
        self._answering = Thread(target=self._answer_all, name="compute", daemon=True)
        self._answering.start()
        self._own = ThreadPoolExecutor(max_workers=1, thread_name_prefix="own work")

    @property
    def waiting(self) -> int:
        """Requests that wait or run."""
        return self._under_way

    @property
    def expected_wait_s(self) -> float:
        """How long a request that comes now will have to wait, if it takes as long as the last ones did."""
        return self._under_way * self._pace_s

    def check_room(self, wait_s: float) -> None:
        """Refuse a request that would only take room: it finds the queue full, or its answer would come too late.

        Args:
            wait_s: How long its caller waits.

        Raises:
            Busy: With the time after which it is worth to ask again.
        """
        if self._under_way >= self._max_waiting or self.expected_wait_s > _ROOM_SHARE * wait_s:
            raise self._busy()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the answering thread and return its result.

        Raises:
            Busy: The queue is full.
            Draining: This has been closed.
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
            Busy, Draining: As `run`.
        """
        outcome: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        await self._submit(_Job(outcome, function, key, rows))
        return outcome.result()

    async def run_own(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function`, the node's own work, in that work's thread: in the order of the calls, and never refused."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._own, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Let what runs finish, refuse what waits."""
        with self._changed:
            self._closed = True
            dropped, self._waiting = self._waiting, {}
            self._changed.notify()
        for job in dropped:
            if not job.outcome.done():
                job.outcome.set_exception(Draining())
        self._answering.join()
        self._own.shutdown(wait=True, cancel_futures=True)

    async def _submit(self, job: _Job) -> None:
        if self._under_way >= self._max_waiting:
            raise self._busy()
        with self._changed:
            if self._closed:
                raise Draining
            self._waiting[job] = None
            self._changed.notify()
        self._under_way += 1
        try:
            await job.outcome
        finally:
            self._under_way -= 1
            with self._changed:
                self._waiting.pop(job, None)

    def _busy(self) -> Busy:
        return Busy(retry_after_s=max(self.expected_wait_s / 2, _LEAST_RETRY_S))

    # --- in the answering thread ---

    def _answer_all(self) -> None:
        while batch := self._next_batch():
            began_s = time.perf_counter()
            outcomes = _compute(batch)
            pace_s = (time.perf_counter() - began_s) / len(batch)
            self._pace_s += (1 - (1 - _PACE_SHARE) ** len(batch)) * (pace_s - self._pace_s)
            loop = batch[0].outcome.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, batch, outcomes)

    def _next_batch(self) -> list[_Job]:
        """The job that has waited longest, with those that are computed together with it; empty once closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return []
            first = next(iter(self._waiting))
            batch, num_rows = [first], 0 if first.rows is None else len(first.rows)
            if first.rows is not None:
                for job in self._waiting:
                    if job is first or job.key != first.key or job.rows is None:
                        continue
                    if num_rows + len(job.rows) > self._max_batch:
                        break
                    batch.append(job)
                    num_rows += len(job.rows)
            for job in batch:
                del self._waiting[job]
            return batch


Outcome = tuple[Any, BaseException | None]
"""A result, or what was raised instead."""


def _compute(batch: Sequence[_Job]) -> list[Outcome]:
    try:
        return [(result, None) for result in _results(batch)]
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the caller's
        if len(batch) == 1:
            return [(None, exc)]
    # One of them may have been too much for all: each is computed again by itself.
    return [outcome for job in batch for outcome in _compute([job])]


def _results(batch: Sequence[_Job]) -> list[Any]:
    first = batch[0]
    if first.rows is None:
        return [first.function()]
    if len(batch) == 1:
        return [first.function(first.rows)]
    parts = [job.rows for job in batch if job.rows is not None]
    together = first.function(np.concatenate(parts))
    ends = np.cumsum([len(part) for part in parts])
    return np.split(together, ends[:-1])


def _deliver(batch: Sequence[_Job], outcomes: Sequence[Outcome]) -> None:
    for job, (result, failure) in zip(batch, outcomes, strict=True):
        if job.outcome.done():
            continue
        if failure is None:
            job.outcome.set_result(result)
        else:
            job.outcome.set_exception(failure)
