"""Messages on one stream: in turn, whole and unmixed, in chunks of a fixed layout; the rest is refused by name."""

import resource
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage, MalformedTensor, RefusedInput
from protocol.framing import EncodedFrame, Frame, encode_frame
from protocol.messages import Ack, Hello
from protocol.mux.chunks import CHUNK_HEAD_BYTES, ChunkKind, ChunkReader, chunk_head
from protocol.mux.inbox import Began, Event, Failed, Inbox, Signalled, Whole
from protocol.mux.outbox import BEGINNING, Outbox

REQUEST, ANSWER, BODY = ChunkKind.REQUEST, ChunkKind.ANSWER, ChunkKind.BODY
CANCEL, PING, PONG = ChunkKind.CANCEL, ChunkKind.PING, ChunkKind.PONG

CHUNK = limits.BODY_CHUNK_BYTES


def message(num_bytes: int, fill: int = 0) -> Frame:
    """A frame with a body of this size."""
    return Frame(Hello(None), {"x": np.full(num_bytes, fill, np.uint8)})


def taken(outbox: Outbox) -> bytes:
    """All that is to be sent."""
    written = bytearray()
    while outbox:
        written += b"".join(outbox.take())
    return bytes(written)


def sent(*messages: tuple[int, Frame], kind: ChunkKind = REQUEST) -> bytes:
    """Messages by id, as the outbox puts them on the stream."""
    outbox = Outbox()
    for request_id, frame in messages:
        outbox.send(kind, request_id, encode_frame(frame), wait_ms=0)
    return taken(outbox)


def chunk(kind: int, request_id: int, payload: bytes = b"") -> bytes:
    return (kind << 24 | len(payload)).to_bytes(4) + request_id.to_bytes(4) + payload


def beginning(header: bytes, request_id: int = 1) -> bytes:
    """The first chunk of a request, with none of its body."""
    return chunk(REQUEST, request_id, BEGINNING.pack(len(header), 0) + header)


FIVE = beginning(encode_frame(message(5)).header)
"""Announces a body of five bytes under the id 1."""


def plain(event: Event) -> object:
    """An event as something that can be compared."""
    match event:
        case Whole(request_id, frame, num_bytes):
            return "whole", request_id, frame.message, {n: t.tobytes() for n, t in frame.tensors.items()}, num_bytes
        case Failed(request_id, error):
            return "failed", request_id, str(error)
        case _:
            return event


def happened(data: bytes, *pieces: int, begins: ChunkKind = REQUEST) -> list[object]:
    """What comes of a stream that arrives in pieces of these sizes, and the rest of it at once."""
    inbox, events, start = Inbox(begins), [], 0
    for size in (*pieces, len(data)):
        events += [plain(event) for event in inbox.receive(data[start : start + size])]
        start += size
    return events


# --- the layout ---


def test_the_layout_of_every_kind_of_chunk_is_fixed():
    outbox = Outbox()
    body = np.arange(CHUNK + 2, dtype=np.uint8)
    outbox.send(REQUEST, 0x01020304, encode_frame(Frame(Ack(), {"x": body})), wait_ms=0x0A0B0C0D)
    outbox.signal(CANCEL, 7)
    outbox.signal(PING)
    outbox.signal(PONG)
    header = b"\x82\xa7message\x81\xa4type\xa3ack\xa7tensors\x91\x93\xa1x\xa5uint8\x91\xce\x00\x01\x00\x02"
    request = bytes.fromhex("01010033 01020304 0000002b 0a0b0c0d") + header + body[:CHUNK].tobytes()
    rest = bytes.fromhex("03000002 01020304") + body[CHUNK:].tobytes()
    signals = bytes.fromhex("04000000 00000007 05000000 00000000 06000000 00000000")
    assert taken(outbox) == signals + request + rest
    answer = b"\x82\xa7message\x81\xa4type\xa3ack\xa7tensors\x90"
    assert sent((5, Frame(Ack())), kind=ANSWER) == bytes.fromhex("02000024 00000005 0000001c 00000000") + answer


def test_an_inbox_reads_that_layout():
    header = b"\x82\xa7message\x81\xa4type\xa3ack\xa7tensors\x91\x93\xa1x\xa5uint8\x91\x02"
    data = bytes.fromhex("01000030 00000009 00000027 000003e8") + header + b"\x05"
    data += bytes.fromhex("05000000 00000000 03000001 00000009 06 04000000 00000009")
    began, ping, whole, cancel = list(Inbox(REQUEST).receive(data))
    assert isinstance(began, Began)
    assert (began.request_id, began.wait_ms, began.announced.body_bytes) == (9, 1000, 2)
    assert ping == Signalled(PING, 0)
    assert plain(whole) == ("whole", 9, Ack(), {"x": b"\x05\x06"}, len(header) + 2)
    assert cancel == Signalled(CANCEL, 9)


def test_the_limit_of_a_chunk_is_the_largest_that_an_outbox_makes():
    assert limits.MAX_CHUNK_BYTES < 2**24
    outbox = Outbox()
    outbox.send(
        REQUEST, 1, EncodedFrame(bytes(limits.MAX_MESSAGE_HEADER_BYTES), [memoryview(bytes(2 * CHUNK))], 2 * CHUNK)
    )
    assert [len(each.payload) for each in ChunkReader().read(taken(outbox))] == [limits.MAX_CHUNK_BYTES, CHUNK]


@pytest.mark.parametrize(
    ("wait_ms", "on_the_wire"), [(0, 0), (-5, 0), (1500, 1500), (limits.MAX_WAIT_MS + 1, limits.MAX_WAIT_MS)]
)
def test_how_long_the_caller_waits_is_cut_to_what_the_wire_can_say(wait_ms, on_the_wire):
    outbox = Outbox()
    outbox.send(REQUEST, 1, encode_frame(Frame(Ack())), wait_ms=wait_ms)
    began, _ = Inbox(REQUEST).receive(taken(outbox))
    assert isinstance(began, Began)
    assert began.wait_ms == on_the_wire


# --- what arrives ---


@given(
    st.lists(st.sampled_from([0, 1, 100, CHUNK, CHUNK + 1, 2 * CHUNK + 7]), min_size=1, max_size=4),
    st.lists(st.integers(1, 100_000) | st.integers(1, 20), max_size=12),
)
def test_however_a_stream_is_cut_the_same_comes_of_it(sizes, pieces):
    outbox = Outbox()
    outbox.signal(PING)
    for request_id, size in enumerate(sizes):
        outbox.send(REQUEST, request_id, encode_frame(message(size, fill=request_id)))
    data = taken(outbox)
    assert happened(data, *pieces) == happened(data)


def test_a_stream_that_comes_byte_by_byte_is_the_same_stream():
    data = sent((1, message(10)), (2, Frame(Ack()))) + chunk(PING, 0) + chunk(CANCEL, 1) + sent((3, message(1)))
    assert happened(data, *[1] * len(data)) == happened(data)


@given(st.lists(st.integers(0, 5 * CHUNK // 2), min_size=2, max_size=8))
@settings(max_examples=30)
def test_many_messages_at_once_arrive_whole_and_unmixed(sizes):
    frames = {request_id: message(size, fill=request_id) for request_id, size in enumerate(sizes)}
    events = happened(sent(*frames.items()))
    arrived = {event[1]: event for event in events if isinstance(event, tuple) and event[0] == "whole"}
    assert arrived.keys() == frames.keys()
    for request_id, (_, _, _, tensors, num_bytes) in arrived.items():
        assert tensors["x"] == bytes([request_id]) * sizes[request_id]
        assert num_bytes == encode_frame(frames[request_id]).num_bytes


def test_messages_take_turns_by_chunk():
    outbox = Outbox()
    for request_id, num_chunks in ((1, 3), (2, 1), (3, 2)):
        outbox.send(REQUEST, request_id, encode_frame(message(num_chunks * CHUNK)))
    turns = [(each.kind, each.request_id) for each in ChunkReader().read(taken(outbox))]
    assert turns == [(REQUEST, 1), (REQUEST, 2), (REQUEST, 3), (BODY, 1), (BODY, 3), (BODY, 1)]


def test_a_small_message_begun_after_a_large_one_is_whole_before_it():
    outbox = Outbox()
    outbox.send(REQUEST, 1, encode_frame(message(100 * CHUNK)))
    data = b"".join(b"".join(outbox.take()) for _ in range(3))
    outbox.send(REQUEST, 2, encode_frame(message(10)))
    events = happened(data + taken(outbox))
    assert [event[1] for event in events if isinstance(event, tuple) and event[0] == "whole"] == [2, 1]


def test_a_tensor_is_sent_from_its_own_memory():
    x, y = np.zeros(CHUNK + 5, np.uint8), np.zeros(CHUNK, np.uint8)
    outbox = Outbox()
    outbox.send(REQUEST, 1, encode_frame(Frame(Ack(), {"x": x, "empty": np.zeros(0), "y": y})))
    pieces = [piece for _ in range(3) for piece in outbox.take() if isinstance(piece, memoryview)]
    assert not outbox
    assert [len(piece) for piece in pieces] == [CHUNK, 5, CHUNK - 5, 5]
    for piece in pieces:
        assert np.shares_memory(np.frombuffer(piece, np.uint8), x) or np.shares_memory(
            np.frombuffer(piece, np.uint8), y
        )


def test_received_tensors_are_the_receivers_own():
    data = bytearray(sent((1, message(10, fill=1)), (2, message(10, fill=2))))
    first, second = (event.frame.tensors["x"] for event in Inbox(REQUEST).receive(data) if isinstance(event, Whole))
    data[:] = bytes(len(data))
    first[:] = 7
    np.testing.assert_array_equal(second, 2)


# --- dropping ---


def test_what_is_dropped_is_not_sent_on_and_the_others_are():
    outbox = Outbox()
    frames = {1: encode_frame(message(3 * CHUNK)), 2: encode_frame(message(2 * CHUNK)), 3: encode_frame(message(5))}
    for request_id, frame in frames.items():
        outbox.send(REQUEST, request_id, frame)
    data = b"".join(outbox.take() + outbox.take())
    assert outbox.drop(1) == 2 * CHUNK
    assert outbox.drop(3) == frames[3].num_bytes
    assert outbox.drop(3) == outbox.drop(99) == 0
    assert outbox.waiting_bytes == CHUNK
    assert outbox.num_messages == 1
    rest = taken(outbox)
    assert [(each.kind, each.request_id) for each in ChunkReader().read(rest)] == [(BODY, 2)]
    inbox = Inbox(REQUEST)
    events = list(inbox.receive(data + rest))
    assert [event.request_id for event in events if isinstance(event, Whole)] == [2]
    assert inbox.assembling_bytes == 3 * CHUNK
    assert list(inbox.receive(chunk(CANCEL, 1))) == [Signalled(CANCEL, 1)]
    assert inbox.assembling_bytes == 0


@pytest.mark.parametrize("num_bytes", [0, 10, 3 * CHUNK])
def test_a_message_that_is_dropped_as_it_begins_is_never_whole(num_bytes):
    inbox, events = Inbox(REQUEST), []
    for event in inbox.receive(sent((1, message(num_bytes)), (2, message(5)))):
        events.append(event)
        if isinstance(event, Began) and event.request_id == 1:
            inbox.drop(1)
    assert [event.request_id for event in events if isinstance(event, Whole)] == [2]
    assert inbox.assembling_bytes == 0


def test_the_rest_of_a_dropped_message_is_passed_over_and_its_id_may_begin_anew():
    inbox = Inbox(REQUEST)
    first, rest = FIVE, chunk(BODY, 1, bytes(5))
    assert len(list(inbox.receive(first))) == 1
    inbox.drop(1)
    inbox.drop(1)
    assert list(inbox.receive(rest)) == []
    assert [type(event) for event in inbox.receive(first + rest)] == [Began, Whole]


def test_signals_go_before_messages_and_the_same_one_waits_once():
    outbox = Outbox()
    outbox.send(REQUEST, 1, encode_frame(message(CHUNK)))
    for _ in range(1000):
        outbox.signal(PONG)
    outbox.signal(CANCEL, 1)
    outbox.signal(CANCEL, 2)
    first = outbox.take()
    assert first[:3] == [chunk_head(PONG, 0, 0), chunk_head(CANCEL, 1, 0), chunk_head(CANCEL, 2, 0)]
    assert not outbox
    outbox.signal(PONG)
    assert outbox.take() == [chunk_head(PONG, 0, 0)]
    assert outbox.take() == []


def test_what_waits_and_what_is_assembled_adds_up_and_ends_at_nothing():
    frame = encode_frame(message(2 * CHUNK + 1))
    outbox, inbox = Outbox(), Inbox(REQUEST)
    for request_id in (1, 2):
        outbox.send(REQUEST, request_id, frame)
    assert outbox.waiting_bytes == 2 * frame.num_bytes
    list(inbox.receive(b"".join(outbox.take())))
    assert outbox.waiting_bytes == 2 * frame.num_bytes - len(frame.header) - CHUNK
    assert inbox.assembling_bytes == frame.body_bytes
    list(inbox.receive(taken(outbox)))
    assert outbox.waiting_bytes == outbox.num_messages == inbox.assembling_bytes == 0


# --- what is refused ---


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", MalformedMessage),
        (chunk(0, 1), MalformedMessage),
        (chunk(7, 1), MalformedMessage),
        (chunk_head(BODY, 1, limits.MAX_CHUNK_BYTES + 1), FrameTooLarge),
        (b"\x01\xff\xff\xff\x00\x00\x00\x01", FrameTooLarge),
        (chunk_head(CANCEL, 1, 1), MalformedMessage),
        (chunk_head(PING, 0, 1), MalformedMessage),
        (chunk_head(PONG, 0, 2**24 - 1), FrameTooLarge),
        (chunk(REQUEST, 1, bytes(7)), MalformedMessage),
        (chunk(REQUEST, 1), MalformedMessage),
        (chunk(REQUEST, 1, BEGINNING.pack(10, 0) + bytes(9)), MalformedMessage),
        (chunk(REQUEST, 1, BEGINNING.pack(limits.MAX_MESSAGE_HEADER_BYTES + 1, 0)), FrameTooLarge),
        (chunk(REQUEST, 1, BEGINNING.pack(2**32 - 1, 0)), FrameTooLarge),
        (FIVE + chunk(BODY, 1, bytes(6)), MalformedMessage),
        (FIVE + chunk(BODY, 1, bytes(3)) * 2, MalformedMessage),
        (FIVE + FIVE, MalformedMessage),
        (sent((1, Frame(Ack())), kind=ANSWER), MalformedMessage),
        (chunk(PONG, 0), MalformedMessage),
    ],
)
def test_whatever_breaks_the_stream_is_refused_by_name_and_cannot_be_read_on(data, error):
    with pytest.raises(error):
        happened(data)
    with pytest.raises(error):
        happened(data, *[1] * len(data))


@pytest.mark.parametrize("data", [sent((1, Frame(Ack()))), chunk(CANCEL, 1), chunk(PING, 0)])
def test_what_comes_in_the_wrong_direction_is_refused(data):
    happened(data, begins=REQUEST)
    with pytest.raises(MalformedMessage):
        happened(data, begins=ANSWER)


def test_an_answer_whose_body_is_longer_than_announced_within_its_first_chunk_is_refused():
    header = encode_frame(message(2)).header
    with pytest.raises(MalformedMessage):
        happened(chunk(ANSWER, 1, BEGINNING.pack(len(header), 0) + header + bytes(3)), begins=ANSWER)


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"", MalformedMessage),
        (b"no header", MalformedMessage),
        (msgpack.packb({"message": {"type": "dance"}, "tensors": []}), MalformedMessage),
        (msgpack.packb({"message": {"type": "ack"}, "tensors": [["x", "uint8", [1]]] * 2}), MalformedTensor),
        (msgpack.packb({"message": {"type": "ack"}, "tensors": [["x", "int64", [2**26]]]}), FrameTooLarge),
    ],
)
def test_a_malformed_header_fails_one_message_and_the_stream_goes_on(header, error):
    inbox = Inbox(REQUEST)
    failed, *others = inbox.receive(beginning(header) + chunk(BODY, 1, bytes(1000)) + sent((2, message(3))))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, error)
    assert [(type(event), event.request_id) for event in others] == [(Began, 2), (Whole, 2)]
    assert inbox.assembling_bytes == 0


def test_a_malformed_body_fails_one_message_and_the_stream_goes_on():
    header = msgpack.packb({"message": {"type": "ack"}, "tensors": [["x", "bool", [2]]]})
    inbox = Inbox(REQUEST)
    began, failed, *others = inbox.receive(beginning(header) + chunk(BODY, 1, b"\x01\x02") + sent((2, message(3))))
    assert isinstance(began, Began)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, MalformedTensor)
    assert [(type(event), event.request_id) for event in others] == [(Began, 2), (Whole, 2)]
    assert inbox.assembling_bytes == 0


almost_chunks = st.builds(
    chunk,
    st.integers(0, 7),
    st.integers(0, 3),
    st.binary(max_size=20)
    | st.builds(
        lambda claimed, wait_ms, rest: BEGINNING.pack(claimed, wait_ms) + rest,
        st.integers(0, 60),
        st.integers(0, 9),
        st.binary(max_size=40),
    )
    | st.sampled_from([FIVE, beginning(encode_frame(Frame(Ack())).header)]).map(lambda data: data[CHUNK_HEAD_BYTES:]),
)


@given(
    st.sampled_from([REQUEST, ANSWER]),
    st.lists(st.binary(max_size=40) | almost_chunks, max_size=12).map(b"".join),
    st.integers(1, 50),
)
@settings(max_examples=400)
def test_no_bytes_whatever_raise_anything_but_what_is_documented(begins, data, piece):
    inbox = Inbox(begins)
    try:
        for start in range(0, len(data), piece):
            for event in inbox.receive(data[start : start + piece]):
                assert not isinstance(event, Failed) or isinstance(event.error, RefusedInput)
    except (MalformedMessage, FrameTooLarge):
        pass
    assert 0 <= inbox.assembling_bytes <= 5 * 4


# --- memory ---


def test_an_incomplete_chunk_takes_no_more_memory_than_one_chunk():
    reader, piece = ChunkReader(), bytes(1000)
    tracemalloc.start()
    try:
        assert list(reader.read(chunk_head(REQUEST, 1, limits.MAX_CHUNK_BYTES))) == []
        for _ in range(limits.MAX_CHUNK_BYTES // len(piece)):
            assert list(reader.read(piece)) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
        assert peak_bytes < 3 * limits.MAX_CHUNK_BYTES  # while a buffer is moved there are two of it
        assert len(list(reader.read(bytes(limits.MAX_CHUNK_BYTES % len(piece))))) == 1
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 2 * limits.MAX_CHUNK_BYTES


def test_a_body_is_handed_on_as_it_comes_and_not_held():
    reader = ChunkReader()
    data = chunk_head(BODY, 1, 5) + b"abcde" + chunk_head(BODY, 2, 0) + chunk_head(BODY, 3, 2) + b"xy"
    pieces = [
        [(each.request_id, bytes(each.payload), each.to_come) for each in reader.read(data[start : start + 10])]
        for start in range(0, len(data), 10)
    ]
    assert pieces == [[(1, b"ab", 3)], [(1, b"cde", 0)], [(2, b"", 0), (3, b"x", 1)], [(3, b"y", 0)]]


def test_a_chunk_that_is_too_large_is_refused_before_its_payload_is_waited_for():
    with pytest.raises(FrameTooLarge):
        list(ChunkReader().read(chunk_head(BODY, 1, limits.MAX_CHUNK_BYTES + 1)))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_body_that_is_announced_and_does_not_come_takes_no_memory():
    header = msgpack.packb({"message": {"type": "ack"}, "tensors": [["x", "uint8", [limits.MAX_FRAME_BYTES]]]})
    inbox = Inbox(REQUEST)
    before_bytes = resident_bytes()
    for request_id in range(8):
        assert len(list(inbox.receive(beginning(header, request_id)))) == 1
    assert inbox.assembling_bytes == 8 * limits.MAX_FRAME_BYTES
    assert resident_bytes() - before_bytes < limits.MAX_FRAME_BYTES // 2
