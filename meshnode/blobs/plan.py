"""Which parts of a blob are asked of whom. No I/O and no clock: what happened goes in, what to ask next comes out."""

import heapq
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol.identifiers import PeerId

__all__ = ["AHEAD_BYTES", "PartPlan", "Span"]

AHEAD_BYTES: Final = 24 * 1024 * 1024
"""How far beyond what was handed on parts are asked for. Twice as much is held in memory at most."""


class Span(NamedTuple):
    """A part of a blob by its place, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """Of the first byte behind it."""
        return self.offset + self.length


@dataclass(slots=True)
class _Question:
    """A part that is under way."""

    asked_at_s: float
    """When it was last asked of somebody."""
    peers: set[PeerId] = field(default_factory=set)


class PartPlan:
    """Hands a blob's parts out to peers and puts what comes back in order.

    A part is asked of one peer; of another one too once it is late and nothing else is left to ask for. Whoever
    brings it first has brought it.

    Args:
        begins_at: Bytes that are there already.
        total_bytes: Length of the whole.
        late_s: How long a peer may take for a part while others have nothing to do.
    """

    def __init__(self, begins_at: int, total_bytes: int, *, late_s: float) -> None:
        self._total_bytes = total_bytes
        self._late_s = late_s
        self._ordered = begins_at
        """Up to here everything was handed on, in order."""
        self._next = begins_at
        """From here on nothing was asked for yet."""
        self._returned: list[Span] = []
        """A heap of what was asked for in vain."""
        self._under_way: dict[Span, _Question] = {}
        self._arrived: dict[int, memoryview] = {}
        """What has come and not been handed on, by its offset."""

    @property
    def is_done(self) -> bool:
        """Whether all was handed on."""
        return self._ordered == self._total_bytes

    def ask(self, peer_id: PeerId, *, length: int, now_s: float) -> Span | None:
        """What to ask of a peer that is free, up to ``length`` bytes; None if there is nothing for it just now."""
        span = self._unasked(length) or self._late(peer_id, now_s)
        if span is not None:
            question = self._under_way.setdefault(span, _Question(now_s))
            question.asked_at_s = now_s
            question.peers.add(peer_id)
        return span

    def _unasked(self, length: int) -> Span | None:
        if self._returned:
            span = heapq.heappop(self._returned)
            if span.length > length:
                heapq.heappush(self._returned, Span(span.offset + length, span.length - length))
            return Span(span.offset, min(span.length, length))
        length = min(length, self._total_bytes - self._next, self._ordered + AHEAD_BYTES - self._next)
        if length <= 0:
            return None
        span = Span(self._next, length)
        self._next = span.end
        return span

    def _late(self, peer_id: PeerId, now_s: float) -> Span | None:
        """The first part that others have been asked for long enough: it holds up all behind it."""
        return min(
            (
                span
                for span, question in self._under_way.items()
                if peer_id not in question.peers and now_s - question.asked_at_s >= self._late_s
            ),
            default=None,
        )

    def arrived(self, span: Span, data: memoryview) -> bool:
        """Take in an answer, of ``span.length`` bytes or fewer; what is short of it is asked for again.

        Returns:
            Whether it was wanted; False if another peer was quicker.
        """
        if self._under_way.pop(span, None) is None:
            return False
        self._arrived[span.offset] = data
        if len(data) < span.length:
            heapq.heappush(self._returned, Span(span.offset + len(data), span.length - len(data)))
        return True

    def failed(self, span: Span, peer_id: PeerId) -> None:
        """A peer does not bring what it was asked for."""
        question = self._under_way.get(span)
        if question is None:
            return
        question.peers.discard(peer_id)
        if not question.peers:
            del self._under_way[span]
            heapq.heappush(self._returned, span)

    def take(self) -> list[memoryview]:
        """What comes next in order, as far as it has arrived; it is handed on once."""
        pieces = []
        while (piece := self._arrived.pop(self._ordered, None)) is not None:
            pieces.append(piece)
            self._ordered += len(piece)
        return pieces
