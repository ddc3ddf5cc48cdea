"""One link a peer, shared by all calls, opened again when it has been lost: over real sockets on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from link_ends import CALLEE, CALLER, Desk, answer, ask, echo, number_of, on_both_loops, until

from meshnode.transport import pool as pool_module
from meshnode.transport.interface import FrameHandler, Traffic, admit_all
from meshnode.transport.links import CLOSE_IDLE_S, CalleeLink, CallerLink
from meshnode.transport.pool import LONGEST_BUSY_S, LinkPool
from protocol.errors import Busy, MalformedTensor
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import ErrorReply, Infer


@dataclass
class Peer:
    """Listens on loopback and answers; a test can have it refuse, or dawdle before a stream is open."""

    handler: FrameHandler
    port: int = 0
    num_opened: int = 0
    opening: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever somebody begins to open a link."""
    may_open: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: OSError | None = None
    links: list[CalleeLink] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = CalleeLink(CALLER, self.handler, admit_all, Traffic())
        link.attach((reader, writer))
        self.links.append(link)

    async def open(self, peer_id: PeerId) -> CallerLink:
        self.num_opened += 1
        self.opening.set()
        await self.may_open.wait()
        if self.refusal is not None:
            raise self.refusal
        link = CallerLink(peer_id, Traffic())
        link.attach(await asyncio.open_connection("127.0.0.1", self.port))
        return link


@asynccontextmanager
async def pooled(handler: FrameHandler = echo) -> AsyncIterator[tuple[LinkPool, Peer]]:
    peer = Peer(handler)
    peer.may_open.set()
    pool = LinkPool(peer.open)
    listener = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.port = listener.sockets[0].getsockname()[1]
    try:
        yield pool, peer
    finally:
        pool.close()
        listener.close()
        for link in peer.links:
            link.close()
        await asyncio.gather(*(link.closed for link in peer.links))


async def asked(pool: LinkPool, number: int, *, timeout_s: float = 10.0, peer_id: PeerId = CALLEE) -> int:
    return number_of(await pool.call(peer_id, ask(number), timeout_s=timeout_s))


@on_both_loops
async def test_calls_one_after_another_share_a_link() -> None:
    async with pooled() as (pool, peer):
        assert [await asked(pool, number) for number in range(5)] == list(range(5))
        assert peer.num_opened == 1


@on_both_loops
async def test_first_calls_at_the_same_time_share_the_link_that_is_being_opened() -> None:
    async with pooled() as (pool, peer):
        assert await asyncio.gather(*(asked(pool, number) for number in range(20))) == list(range(20))
        assert peer.num_opened == len(peer.links) == 1


@on_both_loops
async def test_each_peer_has_a_link_of_its_own() -> None:
    async with pooled() as (pool, peer):
        await asyncio.gather(asked(pool, 1), asked(pool, 2, peer_id=CALLER))
        assert peer.num_opened == 2


@on_both_loops
async def test_a_link_that_was_lost_is_opened_again() -> None:
    async with pooled() as (pool, peer):
        await asked(pool, 1)
        link = pool._links[CALLEE]
        peer.links[0].close()
        await link.closed
        assert await asked(pool, 2) == 2
        assert peer.num_opened == 2


@on_both_loops
async def test_a_link_that_turns_out_dead_in_a_call_is_no_verdict_on_the_peer() -> None:
    async with pooled() as (pool, peer):
        await asked(pool, 1)
        peer.links[0].close()  # the other end has not heard of it yet
        assert not pool._links[CALLEE].closed.done()
        assert await asyncio.gather(*(asked(pool, number) for number in (2, 3))) == [2, 3]
        assert peer.num_opened == 2


@on_both_loops
async def test_a_call_is_repeated_once_and_no_more() -> None:
    async def hang_up(sender: PeerId, request: Frame) -> Frame:
        peer.links[-1].close()
        return answer(0)

    async with pooled() as (pool, peer):
        await asked(pool, 1)
        peer.links[0]._handler = peer.handler = hang_up
        with pytest.raises(ConnectionError):
            await asked(pool, 2)
        assert peer.num_opened == 2


@on_both_loops
async def test_a_peer_that_leaves_a_new_link_unanswered_has_failed() -> None:
    async def hang_up(sender: PeerId, request: Frame) -> Frame:
        peer.links[-1].close()
        return answer(0)

    async with pooled(hang_up) as (pool, peer):
        with pytest.raises(ConnectionError):
            await asked(pool, 1)
        assert peer.num_opened == 1


@on_both_loops
async def test_who_cannot_be_reached_is_an_error_to_all_that_wait_and_tried_anew_by_the_next() -> None:
    async with pooled() as (pool, peer):
        peer.refusal = ConnectionRefusedError("nobody there")
        outcomes = await asyncio.gather(*(asked(pool, number) for number in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, ConnectionRefusedError) for outcome in outcomes)
        assert peer.num_opened == 1
        peer.refusal = None
        assert await asked(pool, 4) == 4
        assert peer.num_opened == 2


@on_both_loops
async def test_who_stops_waiting_does_not_take_the_link_from_others() -> None:
    async with pooled() as (pool, peer):
        peer.may_open.clear()
        first = asyncio.create_task(asked(pool, 1))
        await peer.opening.wait()
        second = asyncio.create_task(asked(pool, 2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        peer.may_open.set()
        assert await second == 2
        assert peer.num_opened == 1


@on_both_loops
async def test_a_link_for_which_nobody_waits_any_more_is_there_for_the_next() -> None:
    async with pooled() as (pool, peer):
        peer.may_open.clear()
        with pytest.raises(TimeoutError):
            await asked(pool, 1, timeout_s=0.01)
        peer.may_open.set()
        assert await asked(pool, 2) == 2
        assert peer.num_opened == 1


@on_both_loops
async def test_silence_ends_a_call_at_its_deadline_and_the_handler_with_it() -> None:
    desk = Desk()
    async with pooled(desk) as (pool, peer):
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            await asked(pool, 1, timeout_s=0.05)
        assert 0.04 < time.monotonic() - began_s < 5.0
        assert await desk.cancelled.get() == 1
        desk.is_open.set()
        assert await asked(pool, 2) == 2
        assert peer.num_opened == 1


@on_both_loops
async def test_a_peer_that_is_busy_is_left_alone_until_it_takes_questions_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, num_asked, retry_after_s = 0.0, 0, 0.75

    async def handler(sender: PeerId, request: Frame) -> Frame:
        nonlocal num_asked
        num_asked += 1
        if isinstance(request.message, Infer) and retry_after_s:
            raise Busy(retry_after_s)
        return answer(0)

    question = Frame(Infer(top_k=None, wait_s=1.0))
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with pooled(handler) as (pool, _):
        reply = await pool.call(CALLEE, question, timeout_s=10)
        assert isinstance(reply.message, ErrorReply)
        now_s = 0.25
        with pytest.raises(Busy) as refused:
            await pool.call(CALLEE, question, timeout_s=10)
        assert refused.value.retry_after_s == 0.5
        assert num_asked == 1
        # Others are asked, and this one is asked for other things.
        await pool.call(CALLER, question, timeout_s=10)
        await asked(pool, 0)
        assert num_asked == 3
        now_s, retry_after_s = 0.75, 1e6
        await pool.call(CALLEE, question, timeout_s=10)
        now_s += LONGEST_BUSY_S - 0.1
        pool.tick(now_s)
        with pytest.raises(Busy):
            await pool.call(CALLEE, question, timeout_s=10)
        now_s, retry_after_s = now_s + 0.1, 0.0
        pool.tick(now_s)
        assert not pool._busy_until
        assert number_of(await pool.call(CALLEE, question, timeout_s=10)) == 0


@on_both_loops
async def test_a_request_that_cannot_be_sent_opens_no_link() -> None:
    async with pooled() as (pool, peer):
        with pytest.raises(MalformedTensor):
            await pool.call(CALLEE, Frame(ask(1).message, {"x": np.zeros(1, np.complex64)}), timeout_s=10)
        assert peer.num_opened == 0


@on_both_loops
async def test_links_are_looked_after_and_forgotten_when_they_have_ended() -> None:
    async with pooled() as (pool, peer):
        await asked(pool, 1)
        await asked(pool, 2, peer_id=CALLER)
        pool.tick(time.monotonic())
        assert pool._links.keys() == {CALLEE, CALLER}
        peer.links[0].close()
        await pool._links[CALLEE].closed
        pool.tick(time.monotonic())
        assert pool._links.keys() == {CALLER}
        pool.tick(time.monotonic() + CLOSE_IDLE_S + 1)
        assert not pool._links
        await peer.links[1].closed


@on_both_loops
async def test_closing_the_pool_ends_what_is_open_and_what_is_being_opened() -> None:
    desk = Desk()
    async with pooled(desk) as (pool, peer):
        desk.is_open.set()
        await asked(pool, 0)
        desk.is_open.clear()
        under_way = asyncio.create_task(asked(pool, 1))
        assert {await desk.started.get(), await desk.started.get()} == {0, 1}
        peer.may_open.clear()
        waiting = asyncio.create_task(asked(pool, 2, peer_id=CALLER))
        await until(lambda: peer.num_opened == 2)
        pool.close()
        with pytest.raises(ConnectionError):
            await under_way
        await asyncio.wait([waiting])
        assert await desk.cancelled.get() == 1
        assert not pool._opening
        peer.may_open.set()
        with pytest.raises(ConnectionError):
            await asked(pool, 3)
        assert peer.num_opened == 2
        pool.close()
