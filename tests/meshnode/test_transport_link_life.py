"""A silent peer is told from a slow one, an unused link is closed in the end: by a clock that the test moves."""

import asyncio
from dataclasses import dataclass

import pytest
from link_ends import (
    CALLEE,
    Desk,
    answer,
    ask,
    bare_callee,
    bare_caller,
    beginning_of,
    call,
    chunk,
    echo,
    linked,
    message_bytes,
    number_of,
    on_both_loops,
    until,
)

from meshnode.transport import links
from meshnode.transport.interface import Traffic
from meshnode.transport.links import (
    CALLER_GONE_S,
    CLOSE_IDLE_S,
    LOST_AFTER_S,
    PING_AFTER_S,
    PING_IDLE_S,
    CallerLink,
    Link,
    LinkLost,
)
from protocol import limits
from protocol.messages import ErrorReply
from protocol.mux.chunks import ChunkKind
from protocol.mux.inbox import Began, Signalled

REQUEST, ANSWER, BODY = ChunkKind.REQUEST, ChunkKind.ANSWER, ChunkKind.BODY
PING, PONG = ChunkKind.PING, ChunkKind.PONG

SOON_S = 1e-3


@dataclass
class Clock:
    """What the links take for the time; it begins at nought."""

    now_s: float = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def tick(self, link: Link, now_s: float) -> None:
        """Let a moment come, and the link look after its peer in it; what comes of that comes a little later."""
        self.now_s = now_s
        link.tick(now_s)
        self.now_s += SOON_S


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(links, "time", clock)
    return clock


async def moved(link: Link, clock: Clock) -> None:
    """Wait until a link has heard of its peer in this moment."""
    await until(lambda: link._moved_at == clock.now_s)


@on_both_loops
async def test_a_call_in_silence_asks_whether_the_peer_lives_and_a_sign_of_life_is_enough(clock: Clock) -> None:
    desk = Desk()
    async with linked(desk) as ends:
        asked = asyncio.create_task(ends.ask(1))
        await desk.started.get()
        for second in range(1, 200):
            clock.tick(ends.caller, second * (PING_AFTER_S + 2 * SOON_S))
            await moved(ends.caller, clock)
            ends.callee.tick(clock.now_s)
        desk.is_open.set()
        assert await asked == 1


@on_both_loops
async def test_no_ping_is_sent_before_it_has_been_silent_for_long(clock: Clock) -> None:
    async with bare_callee() as (caller, callee):
        clock.now_s = 7.0  # the link has lain idle
        asked = asyncio.create_task(call(caller, ask(1)))
        request = await callee.whole()
        clock.tick(caller, 7.0 + PING_AFTER_S - SOON_S)
        callee.writer.write(message_bytes(ANSWER, request.request_id, answer(1)))
        await asked
        clock.tick(caller, 7.0 + PING_IDLE_S - SOON_S)
        caller.close()
        with pytest.raises(EOFError):
            await callee.event()


@on_both_loops
async def test_a_peer_that_stays_silent_when_asked_is_given_up_and_its_calls_fail(clock: Clock) -> None:
    async with bare_callee() as (caller, callee):
        asked = asyncio.create_task(call(caller, ask(1)))
        await callee.whole()
        for now_s in (PING_AFTER_S, PING_AFTER_S + 0.5, LOST_AFTER_S - 0.01):
            clock.tick(caller, now_s)
            assert not caller.closed.done()
        clock.tick(caller, LOST_AFTER_S)
        assert caller.closed.done()
        with pytest.raises(LinkLost, match="no sign of life"):
            await asked
        clock.tick(caller, LOST_AFTER_S + 1)
        assert await callee.event() == Signalled(PING, 0)
        with pytest.raises(EOFError):
            await callee.event()


@on_both_loops
async def test_an_idle_link_is_kept_by_pings_for_a_while_and_closed_by_its_caller(clock: Clock) -> None:
    async with linked(echo) as ends:
        await ends.ask(1)
        now_s = 0.0
        while not ends.caller.closed.done():
            assert not ends.callee.closed.done()
            now_s += PING_IDLE_S + 2 * SOON_S
            clock.tick(ends.caller, now_s)
            if not ends.caller.closed.done():
                await moved(ends.caller, clock)
                ends.callee.tick(clock.now_s)
        assert CLOSE_IDLE_S <= now_s <= CLOSE_IDLE_S + 2 * PING_IDLE_S
        await ends.callee.closed


@on_both_loops
async def test_use_keeps_a_link_open(clock: Clock) -> None:
    async with linked(echo) as ends:
        for number in range(5):
            clock.now_s = number * (CLOSE_IDLE_S - 1)
            assert await ends.ask(number) == number
            ends.caller.tick(clock.now_s)
        assert not ends.caller.closed.done()


@on_both_loops
async def test_an_idle_link_whose_peer_is_gone_is_given_up(clock: Clock) -> None:
    async with bare_callee() as (caller, callee):
        clock.tick(caller, PING_IDLE_S)
        assert await callee.event() == Signalled(PING, 0)
        clock.tick(caller, PING_IDLE_S + LOST_AFTER_S)
        assert caller.closed.done()


@on_both_loops
async def test_a_callee_closes_a_stream_whose_caller_says_nothing_any_more(clock: Clock) -> None:
    async with bare_caller(echo) as (caller, callee):
        caller.writer.write(message_bytes(REQUEST, 1, ask(1)))
        await caller.whole()
        clock.tick(callee, CALLER_GONE_S - 1)
        caller.writer.write(chunk(PING))
        assert await caller.event() == Signalled(PONG, 0)
        clock.tick(callee, 2 * CALLER_GONE_S - 2)
        assert not callee.closed.done()
        clock.tick(callee, 2 * CALLER_GONE_S)
        assert callee.closed.done()
        with pytest.raises(EOFError):
            await caller.event()
        clock.tick(callee, 3 * CALLER_GONE_S)


@on_both_loops
async def test_a_callee_that_computes_for_long_does_not_close_its_callers_stream(clock: Clock) -> None:
    desk = Desk()
    async with bare_caller(desk) as (caller, callee):
        caller.writer.write(message_bytes(REQUEST, 1, ask(1)))
        await desk.started.get()
        clock.tick(callee, 10 * CALLER_GONE_S)
        desk.is_open.set()
        assert number_of((await caller.whole()).frame) == 1


@on_both_loops
async def test_a_body_that_comes_slowly_is_no_silence_to_either_end(clock: Clock) -> None:
    num_chunks, desk = 30, Desk()
    request = ask(1, num_chunks * limits.BODY_CHUNK_BYTES)
    async with bare_caller(desk) as (caller, callee):
        caller.writer.write(beginning_of(message_bytes(REQUEST, 1, request, wait_ms=600_000)))
        for number in range(1, num_chunks + 1):
            await until(lambda: callee._inbox.assembling_bytes > 0)
            clock.tick(callee, number * LOST_AFTER_S)
            assert await caller.event() == Signalled(PONG, 0)
            caller.writer.write(chunk(BODY, 1, bytes(limits.BODY_CHUNK_BYTES)))
        assert await desk.started.get() == 1
        clock.tick(callee, clock.now_s + 1)
        desk.is_open.set()
        assert number_of((await caller.whole()).frame) == 1


@on_both_loops
async def test_a_body_that_never_comes_is_given_up_with_its_callers_time(clock: Clock) -> None:
    desk = Desk()
    async with bare_caller(desk) as (caller, callee):
        request = ask(1, 10 * limits.BODY_CHUNK_BYTES)
        caller.writer.write(beginning_of(message_bytes(REQUEST, 1, request, wait_ms=5_000)))
        await until(lambda: callee._held_bytes > 0)
        clock.tick(callee, 4.0)
        assert await caller.event() == Signalled(PONG, 0)
        assert callee._held_bytes > 0
        clock.tick(callee, 6.0)
        given_up = (await caller.whole()).frame.message
        assert isinstance(given_up, ErrorReply)
        assert given_up.code == "call_timeout"
        assert callee._held_bytes == callee._inbox.assembling_bytes == 0
        # What still comes of it is passed over, and the stream goes on.
        caller.writer.write(chunk(BODY, 1, bytes(limits.BODY_CHUNK_BYTES)))
        caller.writer.write(message_bytes(REQUEST, 2, ask(2)))
        assert await desk.started.get() == 2


@on_both_loops
async def test_a_stream_that_takes_no_more_does_not_keep_a_silent_peer(clock: Clock) -> None:
    async with bare_callee() as (caller, callee):
        asked = asyncio.create_task(call(caller, ask(1, 2**24)))
        assert isinstance(await callee.event(), Began)
        await until(lambda: not caller._writable)
        now_s = clock.now_s
        for second in range(1, 5):
            clock.tick(caller, now_s + second)
        with pytest.raises(LinkLost):
            await asked


@on_both_loops
async def test_a_stream_that_goes_on_taking_is_a_sign_of_life(clock: Clock) -> None:
    async with bare_callee() as (caller, callee):
        asked = asyncio.create_task(call(caller, ask(1, 2**24)))
        await until(lambda: not caller._writable)
        for number in range(1, 8):
            clock.tick(caller, number * LOST_AFTER_S)
            await callee.reader.readexactly(2**20)
            await moved(caller, clock)
            clock.tick(caller, clock.now_s + PING_AFTER_S - SOON_S)
            assert not caller.closed.done()
        asked.cancel()


async def test_a_link_without_a_stream_yet_has_nothing_to_look_after(clock: Clock) -> None:
    link = CallerLink(CALLEE, Traffic())
    clock.tick(link, PING_IDLE_S)
    link.close()
    assert link.closed.done()
