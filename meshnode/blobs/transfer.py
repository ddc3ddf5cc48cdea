"""One blob from several peers at once, into a file: parts under way to each of them, written in order as they come."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from meshnode.blobs import asking
from meshnode.blobs.asking import FIRST_BYTES, Asker, Part
from meshnode.blobs.plan import PartPlan, Span
from meshnode.state.partials import PartialBlob
from protocol.errors import MalformedMessage, ModuleMeshError
from protocol.identifiers import PeerId
from protocol.limits import BLOB_CHUNK_BYTES

__all__ = ["Progress", "Transfer"]

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are there."""

MAX_SOURCES: Final = 4
"""Peers asked at the same time; the others come in as these fail. More would only divide this node's own line."""

WINDOW: Final = 6
"""Parts under way to one peer: as many as keep its line busy while one is written here."""

SYNC_BYTES: Final = 16 * 1024 * 1024
"""So much is put on the disk at a time while more comes; the last of it, whoever pulls waits for."""

QUICK_S: Final = 0.5
SLOW_S: Final = 2.0
"""A peer that brings a part within the first is asked for more at once, after the second for less."""


@dataclass(slots=True)
class _Source:
    """A peer that is asked, as it has answered so far."""

    peer_id: PeerId
    part_bytes: int = FIRST_BYTES
    """What it is asked for at a time."""
    most_bytes: int = BLOB_CHUNK_BYTES
    """The most that it gives at a time."""
    num_workers: int = 0
    has_failed: bool = False


class Transfer:
    """Fills a partial blob up; once, by `run`.

    Args:
        asker: Asks for parts.
        partial: Is appended to.
        first: Who has brought what follows next, and that part: it says how long the whole is.
        peer_ids: Whom to ask, those before others first.
        progress: Is told after each write.

    Attributes:
        brought: Who has brought which part of what was appended.
        failures: Why peers were given up.
        differing: Those of them that say that the blob has another length.
    """

    def __init__(
        self,
        asker: Asker,
        partial: PartialBlob,
        first: tuple[PeerId, Part],
        peer_ids: Sequence[PeerId],
        *,
        progress: Progress | None = None,
    ) -> None:
        first_of, self._first = first
        begins = Span(partial.num_bytes, len(self._first.data))
        self.brought = [(begins, first_of)]
        self.failures: dict[PeerId, ModuleMeshError] = {}
        self.differing: set[PeerId] = set()
        self._asker = asker
        self._partial = partial
        self._total_bytes = self._first.total_bytes
        self._plan = PartPlan(begins.end, self._total_bytes, late_s=asking.LATE_S)
        self._reserve = deque(peer_ids)
        self._progress = progress
        self._workers = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._num_sources = 0
        self._contested_until_s = 0.0
        self._has_rivals = False
        self._is_over = False
        self._synced_bytes = begins.offset
        self._news = asyncio.Event()
        """Something has arrived, or nobody is left to ask."""
        self._room = asyncio.Event()
        """There may be something to ask for."""

    async def run(self, *, patience_s: float, has_rivals: bool) -> None:
        """Append until the blob is whole, no peer is left, or it has taken too long while there are others to ask.

        Args:
            patience_s: How long that is.
            has_rivals: Whether there are, besides those that turn out to be `differing`.

        Raises:
            OSError: The disk is full or fails.
        """
        self._contested_until_s = time.monotonic() + patience_s
        self._has_rivals = has_rivals
        await self._append([self._first.data])
        failure: OSError | None = None
        async with self._workers:
            for _ in range(MAX_SOURCES):
                self._begin_source()
            try:
                await self._write()
            except OSError as exc:  # raised below: the group would wrap it
                failure = exc
            self._is_over = True
            for task in self._tasks:
                task.cancel()
        if failure is not None:
            raise failure

    async def _write(self) -> None:
        while True:
            if pieces := self._plan.take():
                self._wake_workers()  # what is handed on makes room
                await self._append(pieces)
            elif self._plan.is_done or self._num_sources == 0 or self._takes_too_long():
                return
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(asking.LATE_S):
                        await self._news.wait()
                self._news.clear()

    def _takes_too_long(self) -> bool:
        """A peer that lies must not keep those that do not from being asked by bringing next to nothing for ever."""
        return (self._has_rivals or bool(self.differing)) and time.monotonic() > self._contested_until_s

    async def _append(self, pieces: Sequence[memoryview]) -> None:
        await asyncio.to_thread(self._partial.append, pieces)
        if self._partial.num_bytes - self._synced_bytes >= SYNC_BYTES:
            self._synced_bytes = self._partial.num_bytes
            self._tasks.append(self._workers.create_task(self._sync(), name="sync a blob"))
        if self._progress is not None:
            self._progress(self._partial.num_bytes, self._total_bytes)

    async def _sync(self) -> None:
        with suppress(OSError):  # what is wrong with the disk, the last sync says too
            await asyncio.to_thread(self._partial.sync)

    def _begin_source(self) -> None:
        if self._reserve and not self._is_over:
            self._num_sources += 1
            self._begin_worker(_Source(self._reserve.popleft()))

    def _begin_worker(self, source: _Source) -> None:
        source.num_workers += 1
        self._tasks.append(self._workers.create_task(self._work(source), name="pull a blob"))

    async def _work(self, source: _Source) -> None:
        """Ask one peer for one part after another."""
        while not (source.has_failed or self._is_over):
            began_s = time.monotonic()
            span = self._plan.ask(source.peer_id, length=source.part_bytes, now_s=began_s)
            if span is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(asking.LATE_S):
                        await self._room.wait()
                continue
            try:
                part = await self._asker.ask(source.peer_id, span)
                if part.total_bytes != self._total_bytes:
                    self.differing.add(source.peer_id)
                    raise MalformedMessage("total_bytes", reason="peers say different lengths of one blob")
            except ModuleMeshError as failure:
                self._plan.failed(span, source.peer_id)
                self._give_up(source, failure)
                return
            if self._plan.arrived(span, part.data):
                self.brought.append((Span(span.offset, len(part.data)), source.peer_id))
                self._news.set()
                if len(part.data) < span.length:
                    self._wake_workers()
            if len(part.data) < span.length:
                source.part_bytes = source.most_bytes = len(part.data)
            elif not self._goes_on(source, time.monotonic() - began_s):
                return

    def _goes_on(self, source: _Source, took_s: float) -> bool:
        """Whether a worker whose part took so long asks for another one; a quick peer is given more of them."""
        if took_s < QUICK_S and source.part_bytes < source.most_bytes:
            source.part_bytes = source.most_bytes
        elif took_s < QUICK_S and source.num_workers < WINDOW:
            self._begin_worker(source)
        elif took_s > SLOW_S:
            source.part_bytes = min(FIRST_BYTES, source.most_bytes)
            if source.num_workers > 1:
                source.num_workers -= 1
                return False
        return True

    def _give_up(self, source: _Source, failure: ModuleMeshError) -> None:
        if not source.has_failed:
            source.has_failed = True
            self.failures[source.peer_id] = failure
            self._num_sources -= 1
            self._begin_source()
        self._wake_workers()
        self._news.set()

    def _wake_workers(self) -> None:
        self._room.set()
        self._room.clear()  # those that wait now are on their way all the same
