"""Streams to peers are reused, and never after a doubt: over real sockets on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from mesh_in_memory import key_of

from meshnode.transport.interface import Traffic
from meshnode.transport.streams import MAX_IDLE_STREAMS_PER_PEER, Stream, StreamPool, read_frame, write_frame
from protocol.errors import FrameTooLarge, MalformedMessage
from protocol.framing import Frame
from protocol.identifiers import PeerId, digest_of
from protocol.messages import BlobGet, BlobPart, Hello

PEER = key_of("a").peer_id
HELLO = Frame(Hello(mesh_id=None))


def ask(offset: int) -> Frame:
    return Frame(BlobGet(digest=digest_of(b""), offset=offset, length=1))


@dataclass
class Server:
    """Answers each BlobGet with its own offset, while `answering` is set."""

    port: int = 0
    opened: list[asyncio.StreamWriter] = field(default_factory=list)
    received: int = 0
    ended: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Which streams the client has closed, in order."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    traffic: Traffic = field(default_factory=Traffic)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.opened)
        self.opened.append(writer)
        try:
            while True:
                frame = await read_frame(reader, self.traffic)
                assert isinstance(frame.message, BlobGet)
                self.received += 1
                self.arrived.set()
                await self.answering.wait()
                offset = frame.message.offset
                part = BlobPart(digest=frame.message.digest, offset=offset, total_bytes=offset)
                await write_frame(writer, Frame(part, {"data": np.full(1000, 7, np.uint8)}), self.traffic)
        except (OSError, asyncio.IncompleteReadError):
            self.ended.put_nowait(number)
        finally:
            writer.close()

    async def open(self, peer_id: PeerId) -> Stream:
        assert peer_id == PEER
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Server, StreamPool, Traffic]]:
    server, traffic = Server(), Traffic()
    server.answering.set()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    pool = StreamPool(server.open, traffic)
    try:
        yield server, pool, traffic
    finally:
        pool.close()
        listener.close()
        for writer in server.opened:
            writer.close()
        await listener.wait_closed()


def offset_of(frame: Frame) -> int:
    assert isinstance(frame.message, BlobPart)
    return frame.message.offset


async def test_successive_calls_to_a_peer_share_one_stream() -> None:
    async with served() as (server, pool, traffic):
        for offset in range(10):
            assert offset_of(await pool.exchange(PEER, ask(offset))) == offset
        assert len(server.opened) == 1
        assert traffic.sent_bytes == server.traffic.received_bytes > 0
        assert traffic.received_bytes == server.traffic.sent_bytes > 10 * 1000


async def test_concurrent_calls_have_streams_of_their_own_and_get_their_own_answers() -> None:
    async with served() as (server, pool, _):
        num_calls = MAX_IDLE_STREAMS_PER_PEER + 3
        replies = await asyncio.gather(*(pool.exchange(PEER, ask(offset)) for offset in range(num_calls)))
        assert [offset_of(reply) for reply in replies] == list(range(num_calls))
        assert len(server.opened) == num_calls
        # The surplus is closed, the rest is kept.
        assert len({await server.ended.get() for _ in range(3)}) == 3
        await asyncio.gather(*(pool.exchange(PEER, ask(0)) for _ in range(MAX_IDLE_STREAMS_PER_PEER)))
        assert len(server.opened) == num_calls


async def test_streams_that_the_peer_closed_while_idle_are_no_verdict_on_the_peer() -> None:
    async with served() as (server, pool, _):
        await asyncio.gather(*(pool.exchange(PEER, ask(offset)) for offset in range(3)))
        for writer in server.opened:
            writer.close()
            await writer.wait_closed()
        assert offset_of(await pool.exchange(PEER, ask(5))) == 5
        assert len(server.opened) == 4


async def test_a_peer_that_closes_a_new_stream_without_an_answer_has_failed() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        opened = 0

        async def open_stream(peer_id: PeerId) -> Stream:
            nonlocal opened
            opened += 1
            return await asyncio.open_connection("127.0.0.1", port)

        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await StreamPool(open_stream, Traffic()).exchange(PEER, HELLO)
        assert opened == 1


async def test_a_cancelled_call_closes_its_stream_so_that_its_late_answer_reaches_nobody() -> None:
    async with served() as (server, pool, _):
        await pool.exchange(PEER, ask(0))
        server.answering.clear()
        server.arrived.clear()
        call = asyncio.create_task(pool.exchange(PEER, ask(1)))
        await server.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.answering.set()
        assert offset_of(await pool.exchange(PEER, ask(2))) == 2
        assert len(server.opened) == 2
        assert await server.ended.get() == 0


async def test_an_answer_that_is_no_frame_closes_the_stream() -> None:
    closed = asyncio.Event()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        pool = StreamPool(lambda peer_id: asyncio.open_connection("127.0.0.1", port), Traffic())
        with pytest.raises(MalformedMessage):
            await pool.exchange(PEER, HELLO)
        async with asyncio.timeout(5):
            await closed.wait()


async def test_closing_the_pool_closes_what_lies_idle() -> None:
    async with served() as (server, pool, _):
        await asyncio.gather(pool.exchange(PEER, ask(0)), pool.exchange(PEER, ask(1)))
        pool.close()
        assert {await server.ended.get(), await server.ended.get()} == {0, 1}


async def test_a_frame_that_announces_too_much_is_refused_before_its_bytes_are_awaited() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"MMF\x01" + (10).to_bytes(4, "big") + (2**40).to_bytes(8, "big"))
    with pytest.raises(FrameTooLarge):
        async with asyncio.timeout(1):
            await read_frame(reader, Traffic())
