"""A frame is read back as it was written; what is no frame raises the documented errors and no others."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage, MalformedTensor
from protocol.framing import PREFIX_BYTES, Frame, decode_frame, decode_parts, encode_frame, frame_lengths
from protocol.identifiers import digest_of
from protocol.messages import Ack, ErrorReply, Forward

DIGEST = digest_of(b"x")
DOCUMENTED = (MalformedMessage, MalformedTensor, FrameTooLarge)

frames = st.builds(
    Frame,
    st.sampled_from([Ack(), Forward(DIGEST), ErrorReply("code", "message", {"rows": (1, 2)})]),
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        hnp.arrays(st.sampled_from(["float32", "uint8", "bool", "int64"]), hnp.array_shapes(min_dims=0, max_side=3)),
        max_size=3,
    ),
)


def to_bytes(frame: Frame) -> bytes:
    return b"".join(encode_frame(frame))


def same(a: Frame, b: Frame) -> bool:
    return a.message == b.message and {n: (t.dtype, t.shape, t.tobytes()) for n, t in a.tensors.items()} == {
        n: (t.dtype, t.shape, t.tobytes()) for n, t in b.tensors.items()
    }


@given(frames)
def test_a_frame_survives_the_wire(frame):
    assert same(decode_frame(to_bytes(frame)), frame)


@given(frames)
def test_a_stream_reader_learns_from_the_prefix_what_to_read(frame):
    data = to_bytes(frame)
    header_bytes, body_bytes = frame_lengths(data[:PREFIX_BYTES])
    assert len(data) == PREFIX_BYTES + header_bytes + body_bytes
    header_end = PREFIX_BYTES + header_bytes
    assert same(decode_parts(data[PREFIX_BYTES:header_end], data[header_end:]), frame)


def test_a_large_tensor_is_handed_over_without_a_copy():
    features = np.zeros((1000, 640), np.float32)
    _, view = encode_frame(Frame(Forward(DIGEST), {"features": features}))
    assert np.shares_memory(np.frombuffer(view, np.uint8), features)


@given(st.binary(max_size=200))
def test_garbage_raises_documented_errors_only(data):
    with pytest.raises(DOCUMENTED):
        decode_frame(data)
    with pytest.raises(DOCUMENTED):
        frame_lengths(data[:PREFIX_BYTES] if data[:4] != b"MMF\x01" else b"")


@given(st.binary(max_size=100), st.binary(max_size=50))
def test_garbage_inside_a_well_formed_envelope_raises_documented_errors_only(header, body):
    with pytest.raises(DOCUMENTED):
        decode_frame(struct.pack("!4sIQ", b"MMF\x01", len(header), len(body)) + header + body)


@given(frames, st.data())
def test_a_frame_with_one_byte_changed_is_refused_or_still_a_frame(frame, data):
    damaged = bytearray(to_bytes(frame))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_frame(bytes(damaged))
    except DOCUMENTED:
        return
    assert sum(tensor.nbytes for tensor in decoded.tensors.values()) <= len(damaged)


@given(frames, st.data())
def test_a_frame_cut_short_or_overlong_is_refused(frame, data):
    encoded = to_bytes(frame)
    with pytest.raises(DOCUMENTED):
        decode_frame(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(MalformedMessage):
        decode_frame(encoded + b"\0")


@pytest.mark.parametrize(
    ("header_bytes", "body_bytes"),
    [(limits.MAX_MESSAGE_HEADER_BYTES + 1, 0), (2**32 - 1, 0), (10, limits.MAX_FRAME_BYTES), (10, 2**64 - 1)],
)
def test_an_announcement_beyond_the_limits_is_refused_from_the_prefix_alone(header_bytes, body_bytes):
    with pytest.raises(FrameTooLarge):
        frame_lengths(struct.pack("!4sIQ", b"MMF\x01", header_bytes, body_bytes))


def test_the_layout_and_its_version_are_fixed():
    assert to_bytes(Frame(Ack()))[:PREFIX_BYTES] == b"MMF\x01" + struct.pack("!IQ", 28, 0)
    with pytest.raises(MalformedMessage):
        frame_lengths(b"MMF\x02" + struct.pack("!IQ", 10, 0))


def test_what_cannot_be_received_is_not_sent():
    half = np.broadcast_to(np.uint8(0), (limits.MAX_FRAME_BYTES - 8,))
    with pytest.raises(FrameTooLarge):
        encode_frame(Frame(Ack(), {"x": half}))
    with pytest.raises(FrameTooLarge):
        encode_frame(Frame(ErrorReply("", "", {"x": "y" * limits.MAX_MESSAGE_HEADER_BYTES})))
