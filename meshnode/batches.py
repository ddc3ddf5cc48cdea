"""Work that waits at the same time is done in one go: a trip to a thread or to the disk costs as much for one as for
many.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batches"]

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Batches(Generic[Item, Outcome]):
    """Gathers items while those before them are worked on.

    Args:
        work: Does items in their order, and brings for each its outcome, or why there is none. An error that it raises
            is that of every item.
        size: Of an item.
        most: What the items of a batch may come to together, unless it is only one: what is done in one go is in
            memory at the same time.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        size: Callable[[Item], int],
        most: int,
    ) -> None:
        self._work = work
        self._size = size
        self._most = most
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def do(self, item: Item) -> Outcome:
        """Have one item done, with whatever else waits by then."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, outcome))
        if self._working is None:
            # A task begins in the loop's next turn: what is asked for in this one is in its first batch.
            self._working = asyncio.create_task(self._work_off(), name="batches")
        return await outcome

    async def _work_off(self) -> None:
        try:
            while batch := self._next():
                await self._do(batch)
        finally:
            self._working = None

    def _next(self) -> list[tuple[Item, asyncio.Future[Outcome]]]:
        """What comes next, without what nobody waits for any more."""
        batch: list[tuple[Item, asyncio.Future[Outcome]]] = []
        total = 0
        while self._waiting:
            item, outcome = self._waiting[0]
            if not outcome.done():
                total += self._size(item)
                if batch and total > self._most:
                    break
                batch.append((item, outcome))
            self._waiting.popleft()
        return batch

    async def _do(self, batch: Sequence[tuple[Item, asyncio.Future[Outcome]]]) -> None:
        outcomes: Sequence[Outcome | Exception]
        try:
            outcomes = await self._work([item for item, _ in batch])
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is for those who wait
            outcomes = [failure] * len(batch)
        for (_, waiting), outcome in zip(batch, outcomes, strict=True):
            if waiting.done():
                continue
            if isinstance(outcome, Exception):
                waiting.set_exception(outcome)
            else:
                waiting.set_result(outcome)
