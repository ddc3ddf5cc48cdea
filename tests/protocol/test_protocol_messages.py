"""Messages survive the wire; everything else is refused, and nothing but the two errors ever comes of it."""

import math

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import DIGEST, MESSAGES, PEER
from wire_messages import decode_message, encode_message

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage
from protocol.identifiers import digest_of
from protocol.messages import Ack, ErrorReply, Forward, Hello, RoundId

FORWARD = Forward(experts=(DIGEST,))

all_messages = st.one_of(*MESSAGES.values())

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def with_one_field_changed(struct: msgspec.Struct) -> st.SearchStrategy[dict]:
    """The struct as a plain dict in which one field has another, arbitrary value, or is gone."""
    plain = msgspec.to_builtins(struct, builtin_types=(bytes,))
    return st.tuples(st.sampled_from(sorted(plain)), plain_values, st.booleans()).map(
        lambda change: {
            key: change[1] if key == change[0] else value
            for key, value in plain.items()
            if not (change[2] and key == change[0])
        }
    )


def refused(data: bytes) -> bool:
    try:
        decode_message(data)
    except (MalformedMessage, FrameTooLarge):
        return True
    return False


@given(all_messages)
def test_every_message_survives_the_wire(message):
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_but_the_two_errors(data):
    refused(data)


@given(plain_values)
def test_valid_msgpack_that_is_no_message_is_refused(value):
    try:
        data = msgpack.packb(value)
    except OverflowError:
        return
    assert refused(data)


@given(all_messages.flatmap(with_one_field_changed))
def test_a_message_with_a_field_changed_is_refused_or_as_strictly_typed_as_before(plain):
    try:
        message = decode_message(msgpack.packb(plain))
    except (MalformedMessage, OverflowError):
        return
    # What came through is within bounds: it goes out and comes in again.
    assert decode_message(encode_message(message)) == message


@given(all_messages, st.data())
def test_a_message_cut_short_is_refused(message, data):
    encoded = encode_message(message)
    assert refused(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


ANSWER = {"type": "expert_answer", "generation": 0, "weights": DIGEST, "classes": ["x"]}
INFER_CALL = [DIGEST, PEER, "name", 1, 1.0, None]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "nonsense"},
        {},
        {"type": "forward"},
        {"type": "forward", "experts": []},
        {"type": "forward", "experts": DIGEST},
        {"type": "forward", "experts": [DIGEST.upper()]},
        {"type": "forward", "experts": [DIGEST + "\n"]},
        {"type": "forward", "experts": [DIGEST.encode()]},
        {"type": "forward", "experts": [DIGEST, DIGEST]},
        {"type": "forward", "experts": [digest_of(bytes([i])) for i in range(limits.MAX_EXPERTS_PER_CALL + 1)]},
        {"type": "forward", "experts": [DIGEST], "num_rows": [1, 2]},
        {"type": "forward", "experts": [DIGEST], "num_rows": [-1]},
        {"type": "forward", "experts": [DIGEST], "num_rows": [2**53]},
        {"type": "blob_get", "digest": DIGEST, "offset": -1, "length": 1},
        {"type": "blob_get", "digest": DIGEST, "offset": 0, "length": 0},
        {"type": "blob_get", "digest": DIGEST, "offset": 0, "length": limits.BLOB_CHUNK_BYTES + 1},
        {"type": "blob_get", "digest": DIGEST, "offset": 0.5, "length": 1},
        {"type": "blob_get", "digest": DIGEST, "offset": True, "length": 1},
        {"type": "round_outcome", "round": [DIGEST, 1, 0], "outcome": "maybe"},
        {"type": "round_outcome_query", "round": [DIGEST, 1, limits.MAX_ATTEMPTS_PER_ROUND]},
        {"type": "round_outcome_query", "round": [DIGEST, 2**53, 0]},
        {"type": "round_attestation", "round": [DIGEST, 1, 0], "full": 1},
        {"type": "forward_reply", "answers": []},
        {"type": "forward_reply", "answers": [ANSWER] * (limits.MAX_EXPERTS_PER_CALL + 1)},
        {"type": "forward_reply", "answers": [{"type": "ack"}]},
        {"type": "forward_reply", "answers": [ANSWER | {"classes": []}]},
        {"type": "forward_reply", "answers": [ANSWER | {"classes": ["x" * 65]}]},
        {"type": "forward_reply", "answers": [ANSWER | {"classes": ["x"] * 257}]},
        {"type": "expert_answer", "generation": 0, "weights": DIGEST, "classes": ["x"]},
        {"type": "infer", "top_k": 0},
        {"type": "infer", "top_k": limits.MAX_EXPERTS_PER_RECORD + 1},
        {"type": "infer_reply", "classes": ["x"] * (limits.MAX_CLASSES_PER_TASK + 1), "calls": []},
        {"type": "infer_reply", "classes": [], "calls": [INFER_CALL] * (limits.MAX_CALLS_PER_REPLY + 1)},
        {"type": "infer_reply", "classes": [], "calls": [[*INFER_CALL[:4], math.nan, None]]},
        {"type": "infer_reply", "classes": [], "calls": [[DIGEST, DIGEST, *INFER_CALL[2:]]]},
        {"type": "infer_reply", "classes": [], "calls": [[*INFER_CALL[:5], "x" * 513]]},
        {"type": "error", "code": "x" * 513, "message": "", "data": {}},
        {"type": "error", "code": "", "message": "", "data": {"x": "y" * 513}},
        {"type": "error", "code": "", "message": "", "data": {"x" * 513: 0}},
        {"type": "error", "code": "", "message": "", "data": {"x": [0] * (limits.MAX_ERROR_ITEMS + 1)}},
        {"type": "error", "code": "", "message": "", "data": {str(i): 0 for i in range(limits.MAX_ERROR_FIELDS + 1)}},
        {"type": "error", "code": "", "message": "", "data": {"x": b"bytes"}},
        {"type": "error", "code": "", "message": "", "data": {"x": {}}},
        {"type": "error", "code": "", "message": "", "data": {"x": [[]]}},
        {"type": "error", "code": "", "message": "", "data": {1: 0}},
    ],
)
def test_a_field_out_of_its_bounds_is_refused(fields):
    with pytest.raises(MalformedMessage):
        decode_message(msgpack.packb(fields))


def test_text_that_is_no_text_is_refused():
    assert refused(b"\x81\xa4type\xa2\xff\xfe")
    assert refused(msgpack.packb({"type": "error", "code": "", "message": "?", "data": {}}).replace(b"?", b"\xff"))


@pytest.mark.parametrize("now_s", [math.nan, math.inf, -math.inf, -1.0, 1e12])
def test_a_moment_that_is_no_moment_is_refused(now_s):
    fields = {"mesh_id": None, "mesh_name": None, "peer_name": "n", "version": "1", "now_s": now_s}
    with pytest.raises(MalformedMessage):
        decode_message(msgpack.packb({"type": "hello_reply", **fields}))


def test_what_is_too_long_is_refused_on_both_sides():
    with pytest.raises(FrameTooLarge):
        decode_message(bytes(limits.MAX_MESSAGE_HEADER_BYTES + 1))
    with pytest.raises(FrameTooLarge):
        encode_message(ErrorReply("", "", {"x": "y" * limits.MAX_MESSAGE_HEADER_BYTES}))


def test_keys_of_a_newer_version_are_ignored():
    assert decode_message(msgpack.packb({"type": "ack", "novelty": 1})) == Ack()
    assert decode_message(msgpack.packb({"type": "hello", "mesh_id": None, "novelty": [{"x": [1]}]})) == Hello(None)


def test_messages_cannot_be_changed():
    with pytest.raises(AttributeError):
        FORWARD.experts = ()
    assert len({RoundId(DIGEST, 1, 0), RoundId(DIGEST, 1, 0), RoundId(DIGEST, 1, 1)}) == 2
    assert msgspec.structs.replace(FORWARD, experts=(digest_of(b"y"),)) != FORWARD
