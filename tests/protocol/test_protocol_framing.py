"""A frame is read back as it was written; what is no frame raises the documented errors and no others."""

import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage, MalformedTensor
from protocol.framing import EncodedFrame, Frame, decode_body, decode_header, encode_frame
from protocol.identifiers import digest_of
from protocol.messages import Ack, ErrorReply, Forward, Hello

FORWARD = Forward(experts=(digest_of(b"x"),))
DOCUMENTED = (MalformedMessage, MalformedTensor, FrameTooLarge)

frames = st.builds(
    Frame,
    st.sampled_from([Ack(), FORWARD, ErrorReply("code", "message", {"rows": (1, 2)})]),
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        hnp.arrays(st.sampled_from(["float32", "uint8", "bool", "int64"]), hnp.array_shapes(min_dims=0, max_side=3)),
        max_size=3,
    ),
)


def body_of(encoded: EncodedFrame) -> bytes:
    return b"".join(encoded.body)


def header_with(tensors: object) -> bytes:
    """The header of an Ack that announces these tensors."""
    return msgpack.packb({"message": {"type": "ack"}, "tensors": tensors})


def same(a: Frame, b: Frame) -> bool:
    return a.message == b.message and {n: (t.dtype, t.shape, t.tobytes()) for n, t in a.tensors.items()} == {
        n: (t.dtype, t.shape, t.tobytes()) for n, t in b.tensors.items()
    }


@given(frames)
def test_a_frame_survives_the_wire(frame):
    encoded = encode_frame(frame)
    assert same(decode_body(decode_header(encoded.header), body_of(encoded)), frame)


@given(frames)
def test_the_header_alone_tells_the_message_and_how_long_the_body_is(frame):
    encoded = encode_frame(frame)
    announced = decode_header(memoryview(encoded.header))
    assert announced.message == frame.message
    assert announced.body_bytes == encoded.body_bytes == len(body_of(encoded))
    assert encoded.num_bytes == len(encoded.header) + encoded.body_bytes
    assert [header.shape for header in announced.tensors] == [tensor.shape for tensor in frame.tensors.values()]


def test_a_large_tensor_is_handed_over_without_a_copy():
    features = np.zeros((1000, 640), np.float32)
    encoded = encode_frame(Frame(FORWARD, {"features": features}))
    (view,) = encoded.body
    assert np.shares_memory(np.frombuffer(view, np.uint8), features)
    received = bytearray(view)
    returned = decode_body(decode_header(encoded.header), received).tensors["features"]
    assert np.shares_memory(np.frombuffer(received, np.uint8), returned)


@given(st.binary(max_size=200))
def test_garbage_raises_documented_errors_only(data):
    with pytest.raises(DOCUMENTED):
        decode_header(data)


@given(frames, st.data())
def test_a_header_with_one_byte_changed_is_refused_or_still_announces_a_frame(frame, data):
    encoded = encode_frame(frame)
    damaged = bytearray(encoded.header)
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    body = body_of(encoded)
    try:
        decoded = decode_body(decode_header(bytes(damaged)), body)
    except DOCUMENTED:
        return
    assert sum(tensor.nbytes for tensor in decoded.tensors.values()) == len(body)


@given(frames, st.data())
def test_a_header_cut_short_or_overlong_is_refused(frame, data):
    header = encode_frame(frame).header
    with pytest.raises(MalformedMessage):
        decode_header(header[: data.draw(st.integers(0, len(header) - 1))])
    with pytest.raises(MalformedMessage):
        decode_header(header + b"\0")


@given(frames, st.data())
def test_a_body_cut_short_or_overlong_is_refused(frame, data):
    encoded = encode_frame(frame)
    announced, body = decode_header(encoded.header), body_of(encoded)
    with pytest.raises(MalformedTensor):
        decode_body(announced, body + b"\0")
    if body:
        with pytest.raises(MalformedTensor):
            decode_body(announced, body[: data.draw(st.integers(0, len(body) - 1))])


@pytest.mark.parametrize(
    "tensors",
    [
        [["x", "uint8", [limits.MAX_FRAME_BYTES + 1]]],
        [["x", "float64", [limits.MAX_FRAME_BYTES // 8 + 1]]],
        [["x", "uint8", [limits.MAX_FRAME_BYTES]], ["y", "uint8", [1]]],
        [["x", "uint8", [2**26] * 6]],
        [["x", "uint8", [2**24] * 6]],  # 0 modulo 2^64
        [[str(i), "uint8", [2**22]] for i in range(32)],
    ],
)
def test_a_body_beyond_the_limits_is_refused_from_the_header_alone(tensors):
    with pytest.raises(DOCUMENTED):
        decode_header(header_with(tensors))


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ([["x", "uint8", [1]], ["x", "uint8", [1]]], MalformedTensor),
        ([["x", "uint8", [-1]]], MalformedMessage),
        ([["x", "object", [1]]], MalformedMessage),
        ([["x", "uint8", [1] * 7]], MalformedMessage),
        ([["x", "uint8"]], MalformedMessage),
        ([[str(i), "uint8", [0]] for i in range(33)], MalformedMessage),
        ({}, MalformedMessage),
    ],
)
def test_tensors_that_cannot_be_are_refused_from_the_header_alone(tensors, error):
    with pytest.raises(error):
        decode_header(header_with(tensors))


def test_a_header_beyond_its_limit_is_not_decoded():
    with pytest.raises(FrameTooLarge):
        decode_header(header_with([]) + bytes(limits.MAX_MESSAGE_HEADER_BYTES))


def test_what_a_header_announces_is_not_allocated():
    header = header_with([["x", "uint8", [limits.MAX_FRAME_BYTES]]])
    decode_header(header)
    tracemalloc.start()
    try:
        assert decode_header(header).body_bytes == limits.MAX_FRAME_BYTES
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 1024


def test_the_layout_is_fixed():
    encoded = encode_frame(Frame(Hello(None), {"x": np.array([1, 2], "<u1"), "y": np.array([[3]], "<i4")}))
    assert encoded.header == (
        b"\x82\xa7message\x82\xa4type\xa5hello\xa7mesh_id\xc0"
        b"\xa7tensors\x92\x93\xa1x\xa5uint8\x91\x02\x93\xa1y\xa5int32\x92\x01\x01"
    )
    assert body_of(encoded) == b"\x01\x02" + b"\x03\x00\x00\x00"


def test_keys_of_a_newer_version_are_ignored():
    header = msgpack.packb({"novelty": {"x": [1]}, "message": {"type": "ack", "novelty": 1}, "tensors": []})
    assert decode_header(header).message == Ack()


def test_what_cannot_be_received_is_not_sent():
    largest = np.broadcast_to(np.uint8(0), (limits.MAX_FRAME_BYTES,))
    with pytest.raises(FrameTooLarge):
        encode_frame(Frame(Ack(), {"x": largest, "y": np.zeros(1, np.uint8)}))
    with pytest.raises(FrameTooLarge):
        encode_frame(Frame(ErrorReply("", "", {"x": "y" * limits.MAX_MESSAGE_HEADER_BYTES})))
    with pytest.raises(MalformedTensor):
        encode_frame(Frame(Ack(), {"": np.zeros(1, np.uint8)}))
