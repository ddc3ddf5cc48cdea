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
    """One chunk; the payload is a view that is good until the next one is asked for."""

    kind: ChunkKind
    request_id: int
    payload: memoryview


def chunk_head(kind: ChunkKind, request_id: int, payload_bytes: int) -> bytes:
    """The bytes before a payload of this size."""
    return _HEAD.pack(kind << _LENGTH_BITS | payload_bytes, request_id)


class ChunkReader:
    """Cuts a stream of bytes into chunks; holds one that is incomplete, and nothing else."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def read(self, data: bytes | memoryview) -> Iterator[Chunk]:
        """The chunks that end in `data`, to be used up one by one before more data comes.

        Raises:
            MalformedMessage: What comes is no chunk; where the next one would begin is unknown.
            FrameTooLarge: A chunk is announced that is beyond the limit.
        """
        view = memoryview(data)
        while self._rest and view:
            view = self._complete(view)
            if (chunk := _first(memoryview(self._rest))) is not None:
                # Given away: the payload is a view of it.
                self._rest = bytearray()
                yield chunk
        while (chunk := _first(view)) is not None:
            view = view[CHUNK_HEAD_BYTES + len(chunk.payload) :]
            yield chunk
        self._rest += view

    def _complete(self, view: memoryview) -> memoryview:
        """Take as much as the incomplete chunk lacks, as far as that is known by now; returns what is left."""
        lacking = CHUNK_HEAD_BYTES - len(self._rest)
        if lacking <= 0:
            lacking += _payload_bytes(self._rest)
        self._rest += view[:lacking]
        return view[lacking:]


def _first(view: memoryview) -> Chunk | None:
    """The chunk that `view` begins with; None if it is not all there."""
    if len(view) < CHUNK_HEAD_BYTES:
        return None
    end = CHUNK_HEAD_BYTES + _payload_bytes(view)
    if len(view) < end:
        return None
    word, request_id = _HEAD.unpack_from(view)
    return Chunk(_KINDS[word >> _LENGTH_BITS], request_id, view[CHUNK_HEAD_BYTES:end])


def _payload_bytes(head: bytearray | memoryview) -> int:
    word: int
    word, _ = _HEAD.unpack_from(head)
    length, kind = word & _LENGTH_MASK, _KINDS.get(word >> _LENGTH_BITS)
    if kind is None:
        raise MalformedMessage("kind", reason=f"no chunk is of the kind {word >> _LENGTH_BITS}")
    if length > limits.MAX_CHUNK_BYTES:
        raise FrameTooLarge(length, limits.MAX_CHUNK_BYTES)
    if kind in _EMPTY and length:
        raise MalformedMessage("payload", reason=f"a {kind.name} has none, {length} bytes are announced")
    return length
