"""Many calls on one stream: each gets its own answer, fails by its own name and is cancelled alone."""

import asyncio
import itertools

import numpy as np
import pytest
from link_ends import (
    CALLEE,
    CALLER,
    Bare,
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
    streams,
    until,
)

from meshnode.transport.interface import Traffic, admit_all
from meshnode.transport.links import CalleeLink, CallerLink, LinkLost
from protocol.errors import (
    Busy,
    FrameTooLarge,
    MalformedMessage,
    ModuleMeshError,
    NotReady,
    RefusedInput,
    UnknownExpert,
)
from protocol.framing import Announced, Frame, encode_frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.messages import Ack, ErrorReply, Hello, RoundId, RoundOutcomeQuery, RoundTalk, error_reply
from protocol.mux.chunks import ChunkKind
from protocol.mux.inbox import Signalled

MIB = 2**20
LARGE = 16 * MIB
REQUEST, ANSWER, BODY, CANCEL = ChunkKind.REQUEST, ChunkKind.ANSWER, ChunkKind.BODY, ChunkKind.CANCEL


def error_of(frame: Frame) -> ErrorReply:
    assert isinstance(frame.message, ErrorReply)
    return frame.message


# --- answers ---


@on_both_loops
async def test_calls_at_the_same_time_on_one_stream_get_their_own_answers() -> None:
    desk = Desk()
    async with linked(desk) as ends:
        calls = [asyncio.create_task(ends.ask(number)) for number in range(50)]
        for _ in range(50):
            await desk.started.get()
        desk.is_open.set()
        assert await asyncio.gather(*calls) == list(range(50))


@on_both_loops
async def test_an_answer_that_is_ready_sooner_comes_sooner() -> None:
    desk = Desk()

    async def handler(sender: PeerId, request: Frame) -> Frame:
        return await (desk if number_of(request) == 1 else echo)(sender, request)

    async with linked(handler) as ends:
        slow = asyncio.create_task(ends.ask(1))
        await desk.started.get()
        assert [await ends.ask(number) for number in (2, 3)] == [2, 3]
        assert not slow.done()
        desk.is_open.set()
        assert await slow == 1


@on_both_loops
async def test_a_large_request_under_way_holds_up_no_small_call() -> None:
    done = []

    async def asked(number: int, num_bytes: int) -> None:
        done.append(await ends.ask(number, num_bytes))

    async with linked(echo) as ends, asyncio.TaskGroup() as group:
        group.create_task(asked(1, LARGE))
        await until(lambda: ends.callee._inbox.assembling_bytes > 0)
        group.create_task(asked(2, 10))
    assert done == [2, 1]


@on_both_loops
async def test_a_large_answer_under_way_holds_up_no_small_call() -> None:
    done = []

    async def handler(sender: PeerId, request: Frame) -> Frame:
        return answer(number_of(request), LARGE if number_of(request) == 1 else 10)

    async def asked(number: int) -> None:
        done.append(await ends.ask(number))

    async with linked(handler) as ends, asyncio.TaskGroup() as group:
        group.create_task(asked(1))
        await until(lambda: ends.caller._inbox.assembling_bytes > 0)
        group.create_task(asked(2))
    assert done == [2, 1]


@on_both_loops
async def test_what_one_end_has_sent_the_other_has_received() -> None:
    async def handler(sender: PeerId, request: Frame) -> Frame:
        match request.message:
            case Hello():
                raise NotReady("for a long time")
            case RoundTalk():
                return Frame(Ack())
        return answer(number_of(request), 100_000)

    query = encode_frame(Frame(RoundTalk((RoundOutcomeQuery(RoundId(ExpertUid(digest_of(b"e")), 1, 0)),))))
    async with linked(handler) as ends:
        await asyncio.gather(*(ends.ask(number, 1000) for number in range(3)))
        await ends.caller.call(encode_frame(Frame(Hello(None))), "control", wait_s=60)
        await ends.caller.call(query, "averaging", wait_s=60)
        assert ends.asked.sent == ends.answered.received
        # An answer counts as what was asked for, whatever it says.
        assert ends.asked.received == ends.answered.sent
        assert ends.asked.sent.keys() == ends.asked.received.keys() == {"averaging", "blobs", "control"}
        assert ends.asked.received["blobs"] > 3 * 100_000


# --- cancellation and deadlines ---


@on_both_loops
async def test_a_cancelled_call_cancels_the_handler_and_no_other() -> None:
    desk = Desk()
    async with linked(desk) as ends:
        calls = {number: asyncio.create_task(ends.ask(number)) for number in (1, 2)}
        assert {await desk.started.get(), await desk.started.get()} == {1, 2}
        calls[1].cancel()
        assert await desk.cancelled.get() == 1
        desk.is_open.set()
        assert await calls[2] == 2
        assert await ends.ask(3) == 3
        assert desk.cancelled.empty()
        assert not ends.callee.answering


@on_both_loops
async def test_a_call_that_is_cancelled_before_it_is_all_sent_is_not_sent_further() -> None:
    async with linked(echo) as ends:
        large = asyncio.create_task(ends.ask(1, LARGE))
        await until(lambda: ends.callee._inbox.assembling_bytes > 0)
        large.cancel()
        await asyncio.wait([large])
        assert await ends.ask(2) == 2
        assert ends.callee._inbox.assembling_bytes == ends.caller._outbox.waiting_bytes == 0
        assert ends.asked.sent_bytes < LARGE


@on_both_loops
async def test_an_answer_whose_call_is_cancelled_is_not_sent_further() -> None:
    async def handler(sender: PeerId, request: Frame) -> Frame:
        return answer(number_of(request), LARGE if number_of(request) == 1 else 0)

    async with linked(handler) as ends:
        large = asyncio.create_task(ends.ask(1))
        await until(lambda: ends.caller._inbox.assembling_bytes > 0)
        large.cancel()
        await asyncio.wait([large])
        assert await ends.ask(2) == 2
        assert ends.callee._outbox.waiting_bytes == 0


@on_both_loops
async def test_an_answer_whose_call_was_cancelled_reaches_nobody() -> None:
    async with bare_callee() as (caller, callee):
        first = asyncio.create_task(call(caller, ask(1)))
        request = await callee.whole()
        callee.writer.write(beginning_of(message_bytes(ANSWER, request.request_id, answer(1, MIB))))
        await until(lambda: caller._inbox.assembling_bytes > 0)
        first.cancel()
        assert await callee.event() == Signalled(CANCEL, request.request_id)
        assert caller._inbox.assembling_bytes == 0
        second = asyncio.create_task(call(caller, ask(2)))
        another = await callee.whole()
        late = message_bytes(ANSWER, request.request_id, answer(1, 10))
        to_nothing = beginning_of(message_bytes(ANSWER, 99, answer(1, MIB)))
        callee.writer.write(late + to_nothing + message_bytes(ANSWER, another.request_id, answer(2)))
        assert number_of(await second) == 2
        assert caller._inbox.assembling_bytes == 0


@on_both_loops
async def test_behind_its_callers_deadline_a_handler_is_cancelled() -> None:
    desk = Desk()
    async with linked(desk) as ends:
        reply = await call(ends.caller, ask(1), wait_s=0.02)
        assert error_of(reply).code == "call_timeout"
        assert await desk.cancelled.get() == 1
        desk.is_open.set()
        assert await ends.ask(2) == 2


@on_both_loops
async def test_the_callee_is_told_how_long_its_caller_waits() -> None:
    told = []

    def admit(sender: PeerId, announced: Announced, wait_s: float) -> None:
        told.append((sender, announced.message, wait_s))

    async with linked(echo, admit) as ends:
        await ends.ask(1, wait_s=1.5)
    assert told == [(CALLER, ask(1).message, 1.5)]


# --- refusals and failures ---


@on_both_loops
async def test_what_is_not_let_in_is_refused_before_its_body_is_sent() -> None:
    def admit(sender: PeerId, announced: Announced, wait_s: float) -> None:
        if announced.body_bytes:
            raise Busy(0.25)

    async with linked(echo, admit) as ends:
        reply = await call(ends.caller, ask(1, 4 * LARGE))
        assert error_of(reply) == error_reply(Busy(0.25))
        assert ends.asked.sent_bytes < LARGE
        assert ends.answered.received_bytes == ends.callee._inbox.assembling_bytes == 0
        assert await ends.ask(2) == 2
        assert ends.caller._outbox.waiting_bytes == 0


@pytest.mark.parametrize("error", [UnknownExpert(ExpertUid(digest_of(b"x"))), Busy(1.5), FrameTooLarge(2, 1)], ids=str)
@on_both_loops
async def test_a_named_error_of_the_handler_is_the_answer(error: ModuleMeshError) -> None:
    async def refuse(sender: PeerId, request: Frame) -> Frame:
        raise error

    async with linked(refuse) as ends:
        assert error_of(await call(ends.caller, ask(1))) == error_reply(error)
        assert error_of(await call(ends.caller, ask(2))) == error_reply(error)


@pytest.mark.parametrize("bug", [ZeroDivisionError, TimeoutError])
@on_both_loops
async def test_a_bug_of_the_handler_is_told_at_once_and_the_link_goes_on(bug: type[Exception]) -> None:
    async def handler(sender: PeerId, request: Frame) -> Frame:
        if number_of(request) == 1:
            raise bug
        return answer(number_of(request))

    async with linked(handler) as ends:
        failure = error_of(await call(ends.caller, ask(1)))
        assert failure.code == "remote_failure"
        assert failure.data["remote_message"] == bug.__name__
        assert await ends.ask(2) == 2
        assert not ends.callee.answering


@on_both_loops
async def test_an_answer_that_cannot_travel_is_an_error_and_the_link_goes_on() -> None:
    async def handler(sender: PeerId, request: Frame) -> Frame:
        return Frame(Ack(), {"x": np.zeros(1, np.complex64)}) if number_of(request) == 1 else answer(2)

    async with linked(handler) as ends:
        assert error_of(await call(ends.caller, ask(1))).code == "malformed_tensor"
        assert await ends.ask(2) == 2
        assert not ends.callee.answering


@on_both_loops
async def test_a_malformed_request_is_answered_and_the_link_goes_on() -> None:
    async with bare_caller(echo) as (caller, _):
        caller.writer.write(chunk(REQUEST, 1, b"\0\0\0\5" + b"\0\0\0\0" + b"hello"))
        caller.writer.write(message_bytes(REQUEST, 2, ask(2)))
        malformed, well = await caller.whole(), await caller.whole()
        assert (malformed.request_id, error_of(malformed.frame).code) == (1, "malformed_message")
        assert (well.request_id, number_of(well.frame)) == (2, 2)


@on_both_loops
async def test_a_malformed_answer_fails_its_call_and_the_link_goes_on() -> None:
    async with bare_callee() as (caller, callee):
        calls = [asyncio.create_task(call(caller, ask(number))) for number in (1, 2)]
        first, second = await callee.whole(), await callee.whole()
        callee.writer.write(chunk(ANSWER, first.request_id, b"\0\0\0\5" + b"\0\0\0\0" + b"hello"))
        callee.writer.write(message_bytes(ANSWER, second.request_id, answer(2)))
        with pytest.raises(MalformedMessage):
            await calls[0]
        assert number_of(await calls[1]) == 2
        assert not caller.closed.done()


@on_both_loops
async def test_a_peer_that_closes_the_stream_fails_all_calls() -> None:
    desk = Desk()
    async with linked(desk) as ends:
        calls = [asyncio.create_task(ends.ask(number)) for number in range(3)]
        for _ in calls:
            await desk.started.get()
        ends.callee.close()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, LinkLost)
        assert {await desk.cancelled.get() for _ in calls} == {0, 1, 2}
        with pytest.raises(LinkLost):
            await ends.ask(4)


@on_both_loops
async def test_handlers_of_a_caller_that_has_gone_are_cancelled() -> None:
    desk = Desk()
    async with linked(desk) as ends:
        gone = asyncio.create_task(ends.ask(1))
        await desk.started.get()
        ends.caller.close()
        assert await desk.cancelled.get() == 1
        await ends.callee.closed
        with pytest.raises(LinkLost):
            await gone


@on_both_loops
async def test_a_stream_that_has_ended_before_it_is_attached_is_a_closed_link() -> None:
    ours, theirs = await streams()
    theirs[1].write_eof()
    assert await ours[0].read(1) == b""
    link = CallerLink(CALLEE, Traffic())
    link.attach(ours)
    assert link.closed.done()
    with pytest.raises(LinkLost):
        await call(link, ask(1))
    assert await theirs[0].read() == b""
    theirs[1].close()


@on_both_loops
async def test_what_was_read_before_a_link_was_attached_is_not_lost() -> None:
    ours, theirs = await streams()
    request = message_bytes(REQUEST, 1, ask(1))
    theirs[1].write(request[:30])
    link = CalleeLink(CALLER, echo, admit_all, Traffic())
    link.attach(ours, await ours[0].readexactly(30))
    theirs[1].write(request[30:])
    assert number_of((await Bare(theirs, ANSWER).whole()).frame) == 1
    link.close()
    theirs[1].close()


@on_both_loops
async def test_handlers_end_with_the_link_though_nobody_waits_for_its_end_any_more() -> None:
    desk = Desk()
    async with linked(desk) as ends:

        async def wait_closed() -> None:
            await ends.callee.closed

        waiting = asyncio.create_task(wait_closed())
        asked = asyncio.create_task(ends.ask(1))
        await desk.started.get()
        waiting.cancel()
        await asyncio.wait([waiting])
        ends.callee.close()
        assert await desk.cancelled.get() == 1
        await asyncio.wait([asked])


GARBAGE = {
    "no chunk": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "too large": b"\x03\xff\xff\xff\x00\x00\x00\x01",
    "wrong direction": chunk(CANCEL, 1),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@on_both_loops
async def test_garbage_for_an_answer_fails_all_calls_by_name_and_closes_the_stream(garbage: bytes) -> None:
    async with bare_callee() as (caller, callee):
        calls = [asyncio.create_task(call(caller, ask(number))) for number in (1, 2)]
        await callee.whole()
        await callee.whole()
        callee.writer.write(garbage)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, RefusedInput)
        assert caller.closed.done()
        with pytest.raises(EOFError):
            await callee.event()


@on_both_loops
async def test_garbage_for_a_request_is_named_to_the_caller_as_the_streams_last_word() -> None:
    desk = Desk()

    async def handler(sender: PeerId, request: Frame) -> Frame:
        await desk(sender, request)
        return answer(1, LARGE)

    async with linked(handler) as ends:
        asked = asyncio.create_task(ends.ask(1))
        await desk.started.get()
        assert ends.caller._socket is not None
        ends.caller._socket.write(b"POST / HTTP/1.1\r\n\r\n")
        with pytest.raises(MalformedMessage) as refused:
            await asked
        assert "no chunk is of the kind" in refused.value.reason
        assert await desk.cancelled.get() == 1
        await ends.callee.closed


@on_both_loops
async def test_the_last_word_is_said_even_to_a_caller_that_takes_nothing_now() -> None:
    async def handler(sender: PeerId, request: Frame) -> Frame:
        return answer(number_of(request), MIB)

    async with bare_caller(handler) as (caller, callee):
        for number in range(1, 10):
            caller.writer.write(message_bytes(REQUEST, number, ask(number)))
        await until(lambda: callee._outbox.num_messages == 9)
        caller.writer.write(bytes(8))
        await callee.closed
        assert callee._socket is not None
        assert callee._socket.get_write_buffer_size() < MIB  # not all the answers, to get to it
        last = await caller.whole()
        assert (last.request_id, error_of(last.frame).code) == (0, "malformed_message")


@pytest.mark.parametrize(
    "again", [message_bytes(REQUEST, 1, ask(1)), message_bytes(REQUEST, 0, ask(0))], ids=["under way", "0"]
)
@on_both_loops
async def test_an_id_that_is_not_free_ends_the_stream(again: bytes) -> None:
    desk = Desk()
    async with bare_caller(desk) as (caller, _):
        caller.writer.write(message_bytes(REQUEST, 1, ask(1)))
        assert await desk.started.get() == 1
        caller.writer.write(again)
        last = await caller.whole()
        assert (last.request_id, error_of(last.frame).code) == (0, "malformed_message")
        with pytest.raises(EOFError):
            await caller.event()
        assert await desk.cancelled.get() == 1


@pytest.mark.parametrize("word", [Frame(Ack()), Frame(error_reply(Busy(1.0)))], ids=["no error", "no refusal"])
@on_both_loops
async def test_a_last_word_that_says_nothing_is_still_the_last(word: Frame) -> None:
    async with bare_callee() as (caller, callee):
        asked = asyncio.create_task(call(caller, ask(1)))
        await callee.whole()
        callee.writer.write(message_bytes(ANSWER, 0, word))
        with pytest.raises(MalformedMessage):
            await asked
        assert caller.closed.done()


@on_both_loops
async def test_ids_begin_again_at_the_end_of_their_range_and_pass_over_those_under_way() -> None:
    async with bare_callee() as (caller, callee):
        first = asyncio.create_task(call(caller, ask(1)))
        request_id = (await callee.whole()).request_id
        caller._ids = itertools.count(2**32 - 2)
        more = [asyncio.create_task(call(caller, ask(number))) for number in (2, 3)]
        ids = [(await callee.whole()).request_id for _ in more]
        assert (request_id, ids) == (1, [2**32 - 1, 2])
        for task in (first, *more):
            task.cancel()
