"""Messages survive the wire; everything else is refused, and nothing but the two errors ever comes of it."""

import math

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import DIGEST, MESSAGES

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage
from protocol.identifiers import digest_of
from protocol.messages import Ack, ErrorReply, Forward, Hello, RoundId, decode_message, encode_message

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


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "nonsense"},
        {},
        {"type": "forward"},
        {"type": "forward", "expert": DIGEST.upper()},
        {"type": "forward", "expert": DIGEST + "\n"},
        {"type": "forward", "expert": DIGEST.encode()},
        {"type": "blob_get", "digest": DIGEST, "offset": -1, "length": 1},
        {"type": "blob_get", "digest": DIGEST, "offset": 0, "length": 0},
        {"type": "blob_get", "digest": DIGEST, "offset": 0, "length": limits.BLOB_CHUNK_BYTES + 1},
        {"type": "blob_get", "digest": DIGEST, "offset": 0.0, "length": 1},
        {"type": "blob_get", "digest": DIGEST, "offset": True, "length": 1},
        {"type": "round_outcome", "round": [DIGEST, 1, 0], "outcome": "maybe"},
        {"type": "round_outcome_query", "round": [DIGEST, 1, limits.MAX_ATTEMPTS_PER_ROUND]},
        {"type": "round_outcome_query", "round": [DIGEST, 2**53, 0]},
        {"type": "round_attestation", "round": [DIGEST, 1, 0], "full": 1},
        {"type": "forward_reply", "expert": DIGEST, "generation": 0, "weights": DIGEST, "classes": []},
        {
            "type": "forward_reply",
            "expert": DIGEST,
            "generation": 0,
            "weights": DIGEST,
            "classes": ["x" * 65],
        },
        {
            "type": "forward_reply",
            "expert": DIGEST,
            "generation": 0,
            "weights": DIGEST,
            "classes": ["x"] * 257,
        },
        {"type": "error", "code": "x" * 513, "message": "", "data": {}},
    ],
)
def test_a_field_out_of_its_bounds_is_refused(fields):
    with pytest.raises(MalformedMessage):
        decode_message(msgpack.packb(fields))


@pytest.mark.parametrize("now_s", [math.nan, math.inf, -math.inf, -1.0, 1e12])
def test_a_moment_that_is_no_moment_is_refused(now_s):
    fields = {"mesh_id": None, "mesh_name": None, "peer_name": "n", "version": "1", "now_s": now_s}
    with pytest.raises(MalformedMessage):
        decode_message(msgpack.packb({"type": "hello_reply", **fields}))


@pytest.mark.parametrize("levels", [limits.MAX_MSGPACK_DEPTH, 100, 500, 2_000, 60_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["arrays", "maps"])
def test_deeply_nested_containers_are_refused(levels, opening):
    bomb = b"\x82\xa4type\xa5error\xa4data" + opening * levels + b"\x00"
    assert refused(bomb)


def test_nesting_up_to_the_limit_passes():
    data: object = 0
    for _ in range(limits.MAX_MSGPACK_DEPTH - 2):
        data = {"deeper": data}
    message = ErrorReply("code", "message", {"deep": data})
    assert decode_message(encode_message(message)) == message
    with pytest.raises(MalformedMessage):
        decode_message(encode_message(ErrorReply("code", "message", {"deep": {"deeper": data}})))


def test_the_extension_bomb_that_crashes_a_plain_node_is_refused():
    bomb = b"\x00"
    while len(bomb) < 14_000:
        bomb = msgpack.packb(msgpack.ExtType(0x50, bomb))
    assert refused(bomb)


@pytest.mark.parametrize("extension", [msgpack.ExtType(1, b""), msgpack.ExtType(1, b"x"), msgpack.Timestamp(1)])
def test_no_extension_type_gets_in_even_where_any_value_may_stand(extension):
    error = {"type": "error", "code": "", "message": "", "data": {"x": extension}}
    assert refused(msgpack.packb(error))


@pytest.mark.parametrize(
    "claim",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"],
)
def test_a_length_beyond_the_data_is_refused_without_allocating_it(claim):
    assert refused(claim)


def test_what_is_too_long_is_refused_on_both_sides():
    with pytest.raises(FrameTooLarge):
        decode_message(bytes(limits.MAX_MESSAGE_HEADER_BYTES + 1))
    with pytest.raises(FrameTooLarge):
        encode_message(ErrorReply("", "", {"x": "y" * limits.MAX_MESSAGE_HEADER_BYTES}))


def test_keys_of_a_newer_version_are_ignored():
    assert decode_message(msgpack.packb({"type": "ack", "novelty": 1})) == Ack()
    assert decode_message(msgpack.packb({"type": "hello", "mesh_id": None, "novelty": [1]})) == Hello(None)


def test_messages_cannot_be_changed():
    with pytest.raises(AttributeError):
        Forward(DIGEST).expert = DIGEST
    assert len({RoundId(DIGEST, 1, 0), RoundId(DIGEST, 1, 0), RoundId(DIGEST, 1, 1)}) == 2
    assert msgspec.structs.replace(Forward(DIGEST), expert=digest_of(b"y")) != Forward(DIGEST)
