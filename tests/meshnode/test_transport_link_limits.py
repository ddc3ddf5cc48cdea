"""What one stream may hold: requests under way, bodies that are not whole, answers that nobody reads."""

import asyncio

import pytest
from link_ends import (
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
from protocol import limits
from protocol.errors import FrameTooLarge
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import ErrorReply
from protocol.mux.chunks import ChunkKind
from protocol.mux.inbox import Signalled, Whole

REQUEST, ANSWER, BODY = ChunkKind.REQUEST, ChunkKind.ANSWER, ChunkKind.BODY
CANCEL, PING, PONG = ChunkKind.CANCEL, ChunkKind.PING, ChunkKind.PONG

CHUNK = limits.BODY_CHUNK_BYTES


def code_of(frame: Frame) -> str:
    assert isinstance(frame.message, ErrorReply)
    return frame.message.code


@on_both_loops
async def test_a_caller_with_as_many_requests_as_a_stream_takes_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_PER_STREAM", 2)
    desk = Desk()
    async with linked(desk) as ends:
        calls = [asyncio.create_task(ends.ask(number)) for number in range(6)]
        await desk.started.get()
        await desk.started.get()
        calls[3].cancel()  # it waits for its turn, and then no longer
        desk.is_open.set()
        await asyncio.wait(calls)
        assert [number for number, task in enumerate(calls) if not task.cancelled()] == [0, 1, 2, 4, 5]
        assert desk.most_under_way == 2


@on_both_loops
async def test_a_caller_that_does_not_wait_is_told_that_the_stream_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    async with linked(desk) as ends:
        monkeypatch.setattr(limits, "MAX_REQUESTS_PER_STREAM", 2)  # the caller knows another limit
        calls = [asyncio.create_task(ends.ask(number)) for number in (1, 2)]
        await desk.started.get()
        await desk.started.get()
        assert code_of(await call(ends.caller, ask(3))) == "busy"
        desk.is_open.set()
        assert await asyncio.gather(*calls) == [1, 2]
        assert await ends.ask(3) == 3


@on_both_loops
async def test_requests_whose_bodies_are_on_their_way_count_as_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bare_caller(echo) as (caller, _):
        monkeypatch.setattr(limits, "MAX_REQUESTS_PER_STREAM", 2)
        for number in (1, 2, 3):
            caller.writer.write(beginning_of(message_bytes(REQUEST, number, ask(number, 100))))
        refused = await caller.whole()
        assert (refused.request_id, code_of(refused.frame)) == (3, "busy")
        caller.writer.write(chunk(BODY, 3, bytes(100)) + chunk(CANCEL, 1) + message_bytes(REQUEST, 4, ask(4)))
        assert number_of((await caller.whole()).frame) == 4


@on_both_loops
async def test_more_than_a_stream_may_assemble_is_refused_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES_ASSEMBLED", 3 * CHUNK)
    async with bare_caller(echo) as (caller, callee):
        for number in (1, 2):
            caller.writer.write(beginning_of(message_bytes(REQUEST, number, ask(number, 2 * CHUNK))))
        refused = await caller.whole()
        assert (refused.request_id, code_of(refused.frame)) == (2, "busy")
        caller.writer.write(chunk(CANCEL, 1) + message_bytes(REQUEST, 3, ask(3, 2 * CHUNK)))
        assert number_of((await caller.whole()).frame) == 3
        assert callee._inbox.assembling_bytes == 0


@on_both_loops
async def test_requests_count_until_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES_ASSEMBLED", 3 * CHUNK)
    desk = Desk()
    async with bare_caller(desk) as (caller, callee):
        caller.writer.write(message_bytes(REQUEST, 1, ask(1, 2 * CHUNK)))
        assert await desk.started.get() == 1
        caller.writer.write(message_bytes(REQUEST, 2, ask(2, 2 * CHUNK)))
        refused = await caller.whole()
        assert (refused.request_id, code_of(refused.frame)) == (2, "busy")
        desk.is_open.set()
        assert number_of((await caller.whole()).frame) == 1
        await until(lambda: callee._held_bytes == 0)
        caller.writer.write(message_bytes(REQUEST, 3, ask(3, 2 * CHUNK)))
        assert number_of((await caller.whole()).frame) == 3


@on_both_loops
async def test_more_answers_than_a_stream_may_assemble_fail_and_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES_ASSEMBLED", 3 * CHUNK)
    async with bare_callee() as (caller, callee):
        calls = [asyncio.create_task(call(caller, ask(number))) for number in (1, 2)]
        first, second = [(await callee.whole()).request_id for _ in calls]
        callee.writer.write(beginning_of(message_bytes(ANSWER, first, answer(1, 2 * CHUNK))))
        callee.writer.write(message_bytes(ANSWER, second, answer(2, 2 * CHUNK)))
        with pytest.raises(FrameTooLarge):
            await calls[1]
        assert await callee.event() == Signalled(CANCEL, second)
        callee.writer.write(chunk(BODY, first, bytes(CHUNK)) * 2)
        assert number_of(await calls[0]) == 1
        assert caller._inbox.assembling_bytes == 0


@on_both_loops
async def test_a_caller_that_does_not_read_large_answers_is_not_read_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "ANSWERS_AHEAD_BYTES", 2**20)
    num_handled, num_requests, answer_bytes = 0, 100, 2**18

    async def handler(sender: PeerId, request: Frame) -> Frame:
        nonlocal num_handled
        num_handled += 1
        return answer(number_of(request), answer_bytes)

    async with bare_caller(handler) as (caller, callee):
        socket = callee._socket
        assert socket is not None
        for number in range(1, num_requests + 1):
            caller.writer.write(message_bytes(REQUEST, number, ask(number, CHUNK)))
        await until(lambda: not socket.is_reading())
        await until(lambda: not callee.answering)
        assert num_handled < num_requests / 2
        assert callee._outbox.waiting_bytes < 2**23
        assert sorted([(await caller.whole()).request_id for _ in range(num_requests)]) == list(
            range(1, num_requests + 1)
        )
        assert socket.is_reading()
        assert callee._outbox.waiting_bytes == 0


@on_both_loops
async def test_a_caller_that_does_not_read_small_answers_is_not_read_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_PER_STREAM", 100)
    num_requests = 10_000

    async with bare_caller(echo) as (caller, callee):
        socket = callee._socket
        assert socket is not None
        request = message_bytes(REQUEST, 1, ask(1))
        caller.writer.write(
            b"".join(request[:4] + number.to_bytes(4) + request[8:] for number in range(1, num_requests))
        )
        await until(lambda: not socket.is_reading())
        # What one reading brought, most of it refused as busy.
        assert callee._outbox.num_messages < num_requests / 2
        assert len({(await caller.whole()).request_id for _ in range(1, num_requests)}) == num_requests - 1
        assert socket.is_reading()
        assert callee._outbox.num_messages == 0


@on_both_loops
async def test_pings_of_a_caller_that_does_not_read_are_answered_once() -> None:
    async def handler(sender: PeerId, request: Frame) -> Frame:
        return answer(number_of(request), 2**22)

    async with bare_caller(handler) as (caller, callee):
        caller.writer.write(message_bytes(REQUEST, 1, ask(1)))
        await until(lambda: callee._outbox.waiting_bytes > 0)
        caller.writer.write(chunk(PING) * 10_000 + message_bytes(REQUEST, 2, ask(2)))
        await until(lambda: callee._outbox.num_messages == 2)
        num_pongs, num_whole = 0, 0
        while num_whole < 2:
            event = await caller.event()
            num_pongs += event == Signalled(PONG, 0)
            num_whole += isinstance(event, Whole)
        assert num_pongs < 10


@on_both_loops
async def test_what_a_closed_link_still_has_to_send_is_given_up_if_nobody_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "LOST_AFTER_S", 0.05)

    async def handler(sender: PeerId, request: Frame) -> Frame:
        return answer(number_of(request), 2**22)

    async with bare_caller(handler) as (caller, callee):
        socket = callee._socket
        assert socket is not None
        caller.writer.write(message_bytes(REQUEST, 1, ask(1)))
        await until(lambda: callee._outbox.waiting_bytes > 0)
        callee.close()
        assert socket.get_write_buffer_size() > 0
        await until(lambda: socket.get_write_buffer_size() == 0)
        with pytest.raises(EOFError):
            await caller.whole()
