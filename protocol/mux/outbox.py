"""What is still to be sent on a stream, and in which order: a chunk of each message in turn.

A large message thereby holds up no small one for longer than a chunk of every message under way.
"""

import struct
from collections import deque
from typing import Final

from protocol import limits
from protocol.framing import EncodedFrame
from protocol.mux.chunks import ChunkKind, chunk_head

__all__ = ["BEGINNING", "Buffers", "Outbox"]

BEGINNING: Final = struct.Struct("!II")
"""What stands before the header in a REQUEST or ANSWER: the header's length, and how long the caller waits."""

Buffers = list[bytes | memoryview]


class Outbox:
    """Messages of one direction of a stream on their way out."""

    def __init__(self) -> None:
        self._signals: dict[bytes, None] = {}
        self._turns: deque[_Outgoing] = deque()
        self.waiting_bytes = 0
        """Of headers and bodies that are not yet taken."""

    def __bool__(self) -> bool:
        return bool(self._turns or self._signals)

    @property
    def num_messages(self) -> int:
        """Messages of which something is not yet taken."""
        return len(self._turns)

    def send(self, kind: ChunkKind, request_id: int, frame: EncodedFrame, *, wait_ms: int = 0) -> None:
        """Put a message behind those under way.

        Args:
            kind: REQUEST or ANSWER.
            request_id: Not one of a message that is still on its way out.
            wait_ms: How long the caller of a REQUEST waits; cut to what the wire can say.
        """
        self._turns.append(_Outgoing(kind, request_id, frame, max(0, min(wait_ms, limits.MAX_WAIT_MS))))
        self.waiting_bytes += frame.num_bytes

    def signal(self, kind: ChunkKind, request_id: int = 0) -> None:
        """Put a chunk without payload before all messages, unless the same one is waiting there already."""
        self._signals[chunk_head(kind, request_id, 0)] = None

    def drop(self, request_id: int) -> int:
        """Send no more of a message; returns how many bytes of its header and body are left unsent by that."""
        for outgoing in self._turns:
            if outgoing.request_id == request_id:
                self._turns.remove(outgoing)
                self.waiting_bytes -= outgoing.left_bytes
                return outgoing.left_bytes
        return 0

    def take(self) -> Buffers:
        """What to write next: all signals, and a chunk of the message whose turn it is; empty if nothing is left."""
        buffers: Buffers = [*self._signals]
        self._signals.clear()
        if self._turns:
            outgoing = self._turns.popleft()
            before_bytes = outgoing.left_bytes
            buffers += outgoing.chunk()
            self.waiting_bytes -= before_bytes - outgoing.left_bytes
            if outgoing.left_bytes:
                self._turns.append(outgoing)
        return buffers


class _Outgoing:
    """One message, cut into chunks as it is sent."""

    __slots__ = ("_beginning", "_body", "_kind", "left_bytes", "request_id")

    def __init__(self, kind: ChunkKind, request_id: int, frame: EncodedFrame, wait_ms: int) -> None:
        self.request_id = request_id
        self.left_bytes = frame.num_bytes
        self._kind = kind
        self._beginning = BEGINNING.pack(len(frame.header), wait_ms) + frame.header
        self._body = frame.body[::-1]

    def chunk(self) -> Buffers:
        """The next chunk."""
        pieces = self._pieces()
        payload_bytes = len(self._beginning) + sum(map(len, pieces))
        if not self._beginning:
            self.left_bytes -= payload_bytes
            return [chunk_head(ChunkKind.BODY, self.request_id, payload_bytes), *pieces]
        self.left_bytes -= payload_bytes - BEGINNING.size
        head = chunk_head(self._kind, self.request_id, payload_bytes) + self._beginning
        self._beginning = b""
        return [head, *pieces]

    def _pieces(self) -> list[memoryview]:
        """The next of the body, without a copy."""
        pieces = []
        room = limits.BODY_CHUNK_BYTES
        while self._body and room:
            view = self._body.pop()
            if len(view) > room:
                self._body.append(view[room:])
                view = view[:room]
            if len(view):
                pieces.append(view)
                room -= len(view)
        return pieces
