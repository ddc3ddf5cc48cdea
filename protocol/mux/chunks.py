"""Chunks: what a stream is made of, cut out of bytes that arrive in pieces of any size."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage

__all__ = ["CHUNK_HEAD_BYTES", "Chunk", "ChunkKind", "ChunkReader", "chunk_head"]

_HEAD: Final = struct.Struct("!II")
CHUNK_HEAD_BYTES: Final = _HEAD.size
_LENGTH_BITS: Final = 24
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1


class ChunkKind(IntEnum):
    """What a chunk is for."""

    REQUEST = 1
    ANSWER = 2
    BODY = 3
    CANCEL = 4
    PING = 5
    PONG = 6


_KINDS: Final = {int(kind): kind for kind in ChunkKind}
_EMPTY: Final = {ChunkKind.CANCEL, ChunkKind.PING, ChunkKind.PONG}


class Chunk(NamedTuple):
    """One chunk, or a piece of a BODY; the payload is a view that is good until the next one is asked for."""

    kind: ChunkKind
    request_id: int
    payload: memoryview
    to_come: int = 0
    """Bytes of a BODY's payload behind this piece."""


class _Head(NamedTuple):
    """What is known of the chunk that is coming in."""

    kind: ChunkKind
    request_id: int
    payload_bytes: int
    """Of the payload, or of what has not come of a BODY's."""


def chunk_head(kind: ChunkKind, request_id: int, payload_bytes: int) -> bytes:
    """The bytes before a payload of this size."""
    return _HEAD.pack(kind << _LENGTH_BITS | payload_bytes, request_id)


class ChunkReader:
    """Cuts a stream of bytes into chunks.

    A BODY is handed on as it comes, in pieces, and so copied only to where it belongs. Of other chunks one that is
    incomplete is held, and nothing else.
    """

    def __init__(self) -> None:
        self._head: _Head | None = None
        self._rest = bytearray()
        """Of a head that is incomplete, or of the payload that belongs to the one that is known."""

    def read(self, data: bytes | memoryview) -> Iterator[Chunk]:
        """The chunks that end in `data` and what is in it of a BODY, to be used up one by one before more data comes.

        Raises:
            MalformedMessage: What comes is no chunk; where the next one would begin is unknown.
            FrameTooLarge: A chunk is announced that is beyond the limit.
        """
        view = memoryview(data)
        while view:
            if self._head is None:
                view = self._read_head(view)
                if self._head is None:
                    return
            kind, request_id, payload_bytes = self._head
            lacking = payload_bytes - len(self._rest)
            piece, view = view[:lacking], view[lacking:]
            if kind is ChunkKind.BODY:
                to_come = lacking - len(piece)
                self._head = _Head(kind, request_id, to_come) if to_come else None
                yield Chunk(kind, request_id, piece, to_come)
            elif len(piece) < lacking:
                self._rest += piece
            else:
                self._head = None
                yield Chunk(kind, request_id, self._with_rest(piece))

    def _read_head(self, view: memoryview) -> memoryview:
        """Read as much of a head as is there; returns what is left."""
        lacking = CHUNK_HEAD_BYTES - len(self._rest)
        if len(view) < lacking:
            self._rest += view
            return view[:0]
        self._head = _head_in(self._with_rest(view[:lacking]))
        return view[lacking:]

    def _with_rest(self, piece: memoryview) -> memoryview:
        """What was held and what completes it, given away."""
        if not self._rest:
            return piece
        rest, self._rest = self._rest, bytearray()
        rest += piece
        return memoryview(rest)


def _head_in(view: memoryview) -> _Head:
    word, request_id = _HEAD.unpack(view)
    length, kind = word & _LENGTH_MASK, _KINDS.get(word >> _LENGTH_BITS)
    if kind is None:
        raise MalformedMessage("kind", reason=f"no chunk is of the kind {word >> _LENGTH_BITS}")
    if length > limits.MAX_CHUNK_BYTES:
        raise FrameTooLarge(length, limits.MAX_CHUNK_BYTES)
    if kind in _EMPTY and length:
        raise MalformedMessage("payload", reason=f"a {kind.name} has none, {length} bytes are announced")
    return _Head(kind, request_id, length)
