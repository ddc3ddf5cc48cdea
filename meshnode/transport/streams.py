"""Frames over libp2p's binary streams: one request and its answer at a time on a stream, streams kept and reused.

A stream is asked for once per concurrent call to a peer and returned to a small pool afterwards, which saves the one to
two milliseconds that opening one costs. A call that fails or is cancelled closes its stream, so a late answer can never
be mistaken for the answer to another request.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from meshnode.transport.interface import Traffic, kind_of
from protocol.framing import PREFIX_BYTES, Frame, decode_parts, encode_frame, frame_lengths
from protocol.identifiers import PeerId

__all__ = ["StreamPool", "read_frame", "write_frame"]

MAX_IDLE_STREAMS_PER_PEER = 4
"""As many calls to one peer as usually overlap; a stream costs a file descriptor at both ends."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def read_frame(reader: asyncio.StreamReader, traffic: Traffic) -> Frame:
    """Read one frame; its lengths are checked before its bytes are waited for.

    Raises:
        asyncio.IncompleteReadError: The stream ended; with ``partial == b""`` between two frames.
        RefusedInput: What came is no frame of ours; where the next one begins is then unknown.
    """
    prefix = await reader.readexactly(PREFIX_BYTES)
    header_bytes, body_bytes = frame_lengths(prefix)
    header, body = await reader.readexactly(header_bytes), await reader.readexactly(body_bytes)
    frame = decode_parts(header, body)
    traffic.received[kind_of(frame.message)] += len(prefix) + header_bytes + body_bytes
    return frame


async def write_frame(writer: asyncio.StreamWriter, frame: Frame, traffic: Traffic) -> None:
    parts = encode_frame(frame)
    writer.writelines(parts)
    traffic.sent[kind_of(frame.message)] += sum(len(part) for part in parts)
    await writer.drain()


class StreamPool:
    """Open streams to peers, by peer.

    Args:
        open_stream: Opens a new stream to a peer, raising OSError where nobody answers.
        traffic: Counts what passes.
    """

    def __init__(self, open_stream: Callable[[PeerId], Awaitable[Stream]], traffic: Traffic) -> None:
        self._open_stream = open_stream
        self._traffic = traffic
        self._idle: dict[PeerId, list[Stream]] = defaultdict(list)

    async def exchange(self, peer_id: PeerId, request: Frame) -> Frame:
        """Send `request`, return the answer. Requests must be safe to repeat.

        Raises:
            OSError, asyncio.IncompleteReadError: The peer cannot be reached, or left before it answered.
        """
        while idle := self._idle[peer_id]:
            try:
                return await self._exchange_on(peer_id, idle.pop(), request)
            except (OSError, asyncio.IncompleteReadError):
                continue  # the peer closed it while it lay idle: no verdict on the peer before a new stream has failed
        return await self._exchange_on(peer_id, await self._open_stream(peer_id), request)

    async def _exchange_on(self, peer_id: PeerId, stream: Stream, request: Frame) -> Frame:
        reader, writer = stream
        answered = False
        try:
            await write_frame(writer, request, self._traffic)
            reply = await read_frame(reader, self._traffic)
            answered = True
        finally:
            if answered and len(self._idle[peer_id]) < MAX_IDLE_STREAMS_PER_PEER:
                self._idle[peer_id].append(stream)
            else:
                writer.close()
        return reply

    def close(self) -> None:
        for streams in self._idle.values():
            for _, writer in streams:
                writer.close()
        self._idle.clear()
