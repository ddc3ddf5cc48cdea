"""Asking one peer for one part of a blob, and the first peer of several that answers."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from meshnode.blobs.plan import Span
from meshnode.transport.interface import Transport
from protocol.errors import Busy, FrameTooLarge, MalformedMessage, ModuleMeshError
from protocol.framing import Frame
from protocol.identifiers import Digest, PeerId
from protocol.limits import MIN_BLOB_PART_BYTES
from protocol.messages import BlobGet, BlobPart
from protocol.tensors import require_tensor

__all__ = ["Asker", "FIRST_BYTES", "LATE_S", "Part"]

FIRST_BYTES: Final = 256 * 1024
"""Asked for first: most blobs whole, and in time also over a line of half a megabit a second."""

LATE_S = 1.0
"""A peer that takes longer for a part is slow: another one is asked too, if it has nothing else to do."""

BUSY_PATIENCE_S = 30.0
"""How long a peer may say that it is busy before it is given up."""

_LEAST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
"""Between two questions to a busy peer, whatever it says."""


class Part(NamedTuple):
    """What a peer has answered."""

    data: memoryview
    """Of bytes; empty only behind the end."""
    total_bytes: int
    """Of the whole blob, as the peer says."""


class Asker:
    """Asks peers for parts of one blob.

    Args:
        transport: Reaches them.
        digest: Of the blob.
        limit_bytes: A blob that is said to be longer is refused.
        timeout_s: Deadline of each part, in seconds.
    """

    def __init__(self, transport: Transport, digest: Digest, *, limit_bytes: int, timeout_s: float) -> None:
        self._transport = transport
        self._digest = digest
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    async def ask(self, peer_id: PeerId, span: Span) -> Part:
        """One part from one peer, which may be shorter than asked for. A busy peer is asked again for a while.

        Raises:
            ModuleMeshError: It has none, did not answer, or not properly.
        """
        patient_until_s = time.monotonic() + BUSY_PATIENCE_S
        while True:
            try:
                return await self._ask_once(peer_id, span)
            except Busy as busy:
                if time.monotonic() >= patient_until_s:
                    raise
                await asyncio.sleep(min(max(busy.retry_after_s, _LEAST_PAUSE_S), _LONGEST_PAUSE_S))

    async def _ask_once(self, peer_id: PeerId, span: Span) -> Part:
        request = Frame(BlobGet(digest=self._digest, offset=span.offset, length=span.length))
        reply = await self._transport.call(peer_id, request, timeout_s=self._timeout_s)
        part = reply.message
        if not isinstance(part, BlobPart) or part.digest != self._digest or part.offset != span.offset:
            raise MalformedMessage("BlobPart", reason="not the part that was asked for")
        data = require_tensor(reply.tensors, "data", dtype="uint8", shape=(None,))
        if part.total_bytes > self._limit_bytes:
            raise FrameTooLarge(part.total_bytes, self._limit_bytes)
        longest = max(0, min(span.length, part.total_bytes - span.offset))
        if not min(longest, MIN_BLOB_PART_BYTES) <= len(data) <= longest:
            raise MalformedMessage("BlobPart", reason="its sizes contradict each other")
        return Part(data.data, part.total_bytes)

    async def first(
        self, peer_ids: Sequence[PeerId], span: Span
    ) -> tuple[PeerId, Part] | dict[PeerId, ModuleMeshError]:
        """One part from whichever peer brings it first, or why none does.

        They are asked in turn, the next one once the one before has failed or is late.
        """
        waiting = deque(peer_ids)
        asked: dict[asyncio.Task[Part], PeerId] = {}
        failures: dict[PeerId, ModuleMeshError] = {}
        try:
            while waiting or asked:
                if waiting:
                    peer_id = waiting.popleft()
                    asked[asyncio.create_task(self.ask(peer_id, span), name="first part of a blob")] = peer_id
                answered, _ = await asyncio.wait(
                    asked, timeout=LATE_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in answered:
                    peer_id = asked.pop(task)
                    try:
                        return peer_id, task.result()
                    except ModuleMeshError as failure:
                        failures[peer_id] = failure
        finally:
            for task in asked:
                task.cancel()
        return failures
