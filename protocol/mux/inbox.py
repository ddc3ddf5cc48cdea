"""What arrives on a stream: the messages of one direction put together from their chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage, RefusedInput
from protocol.framing import Announced, Frame, decode_body, decode_header
from protocol.mux.chunks import Chunk, ChunkKind, ChunkReader
from protocol.mux.outbox import BEGINNING

__all__ = ["Began", "Event", "Failed", "Inbox", "Signalled", "Whole"]


class Began(NamedTuple):
    """The header of a message is here. Whoever does not want the rest says so now, with `Inbox.drop`."""

    request_id: int
    wait_ms: int
    """How long the caller of a REQUEST waits."""
    announced: Announced


class Whole(NamedTuple):
    """A message that began is complete; its tensors are the receiver's own."""

    request_id: int
    frame: Frame
    num_bytes: int
    """Header and body."""


class Failed(NamedTuple):
    """What came under this id is no message. The stream goes on."""

    request_id: int
    error: RefusedInput


class Signalled(NamedTuple):
    """A CANCEL, PING or PONG."""

    kind: ChunkKind
    request_id: int


Event = Began | Whole | Failed | Signalled


@dataclass(slots=True)
class _Assembly:
    """A message whose body is on its way."""

    announced: Announced
    header_bytes: int
    body: memoryview
    filled_bytes: int = 0


_SIGNALS: Final = {
    ChunkKind.REQUEST: {ChunkKind.CANCEL, ChunkKind.PING},
    ChunkKind.ANSWER: {ChunkKind.PONG},
}
"""Which signals come in the direction in which these messages do."""


class Inbox:
    """Puts messages together.

    Args:
        begins: Kind of the messages of this direction, REQUEST or ANSWER.
    """

    def __init__(self, begins: ChunkKind) -> None:
        self._begins = begins
        self._chunks = ChunkReader()
        self._assemblies: dict[int, _Assembly] = {}
        self.assembling_bytes = 0
        """Of bodies that have begun and are not whole, whether their bytes are here or not."""

    def receive(self, data: bytes | memoryview) -> Iterator[Event]:
        """What has happened with the arrival of `data`, to be used up before more comes.

        Raises:
            MalformedMessage, FrameTooLarge: The stream cannot be read on.
        """
        for chunk in self._chunks.read(data):
            if chunk.kind is self._begins:
                yield from self._begin(chunk)
            elif chunk.kind is ChunkKind.BODY:
                yield from self._go_on(chunk)
            elif chunk.kind in _SIGNALS[self._begins]:
                if chunk.kind is ChunkKind.CANCEL:
                    self.drop(chunk.request_id)
                yield Signalled(chunk.kind, chunk.request_id)
            else:
                raise MalformedMessage("kind", reason=f"a {chunk.kind.name} does not come in this direction")

    def drop(self, request_id: int) -> None:
        """Forget a message that has begun; what still comes of it is passed over."""
        assembly = self._assemblies.pop(request_id, None)
        if assembly is not None:
            self.assembling_bytes -= len(assembly.body)

    def _begin(self, chunk: Chunk) -> Iterator[Event]:
        if chunk.request_id in self._assemblies:
            raise MalformedMessage("request id", reason=f"{chunk.request_id} begins before it has ended")
        if len(chunk.payload) < BEGINNING.size:
            raise MalformedMessage("payload", reason=f"a message does not begin with {len(chunk.payload)} bytes")
        header_bytes, wait_ms = BEGINNING.unpack_from(chunk.payload)
        body_from = BEGINNING.size + header_bytes
        if header_bytes > limits.MAX_MESSAGE_HEADER_BYTES:
            raise FrameTooLarge(header_bytes, limits.MAX_MESSAGE_HEADER_BYTES)
        if body_from > len(chunk.payload):
            raise MalformedMessage("payload", reason="the header is longer than the chunk it stands in")
        try:
            announced = decode_header(chunk.payload[BEGINNING.size : body_from])
        except RefusedInput as error:
            yield Failed(chunk.request_id, error)
            return
        # Memory that is not written to costs nothing yet, so what is only announced does not either. (A bytearray
        # would be filled with zeros.)
        assembly = _Assembly(announced, header_bytes, np.empty(announced.body_bytes, np.uint8).data)
        self._assemblies[chunk.request_id] = assembly
        self.assembling_bytes += len(assembly.body)
        yield Began(chunk.request_id, wait_ms, announced)
        if chunk.request_id in self._assemblies:
            yield from self._fill(chunk.request_id, assembly, chunk.payload[body_from:])

    def _go_on(self, chunk: Chunk) -> Iterator[Event]:
        assembly = self._assemblies.get(chunk.request_id)
        if assembly is not None:  # else it was dropped, and the sender does not know it yet
            yield from self._fill(chunk.request_id, assembly, chunk.payload, chunk.to_come)

    def _fill(self, request_id: int, assembly: _Assembly, piece: memoryview, to_come: int = 0) -> Iterator[Event]:
        end = assembly.filled_bytes + len(piece)
        if end + to_come > len(assembly.body):
            raise MalformedMessage("body", reason=f"{end + to_come} bytes come, {len(assembly.body)} were announced")
        assembly.body[assembly.filled_bytes : end] = piece
        assembly.filled_bytes = end
        if end == len(assembly.body):
            self.drop(request_id)
            try:
                frame = decode_body(assembly.announced, assembly.body)
            except RefusedInput as error:
                yield Failed(request_id, error)
            else:
                yield Whole(request_id, frame, assembly.header_bytes + end)
