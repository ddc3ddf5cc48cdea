"""Sends what is said to one peer at about the same time in one call: rounds of many experts share their messages."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from protocol.errors import ModuleMeshError
from protocol.limits import MAX_ROUNDS_PER_CALL

__all__ = ["Gatherer"]

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Gatherer(Generic[Key, Item, Answer]):
    """Collects items by key for a moment, and sends each key's together.

    Args:
        send: Sends items of one key, at most ``MAX_ROUNDS_PER_CALL``, and brings an answer to each, in their order. An
            error it raises is that of every item.
        wait_s: How long the first item of a call waits for more.
    """

    def __init__(self, send: Callable[[Key, Sequence[Item]], Awaitable[Sequence[Answer]]], *, wait_s: float) -> None:
        self._send = send
        self._wait_s = wait_s
        self._waiting: dict[Key, list[tuple[Item, asyncio.Future[Answer]]]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def send(self, key: Key, item: Item) -> Answer:
        """Send one item, with others of its key.

        Raises:
            ModuleMeshError: The call failed.
        """
        return await self.put(key, item)

    def put(self, key: Key, item: Item) -> asyncio.Future[Answer]:
        """As `send`, of which this is what it waits for; one that is cancelled before its call begins is not sent."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        if key not in self._waiting:
            self._waiting[key] = []
            loop.call_later(self._wait_s, self._flush, key)
        self._waiting[key].append((item, answer))
        return answer

    def _flush(self, key: Key) -> None:
        waiting = [(item, answer) for item, answer in self._waiting.pop(key) if not answer.cancelled()]
        for first in range(0, len(waiting), MAX_ROUNDS_PER_CALL):
            call = asyncio.create_task(self._call(key, waiting[first : first + MAX_ROUNDS_PER_CALL]), name="round call")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, key: Key, waiting: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._send(key, [item for item, _ in waiting])
        except ModuleMeshError as failure:
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(failure)
            return
        for (_, answer), value in zip(waiting, answers, strict=True):
            if not answer.done():
                answer.set_result(value)
