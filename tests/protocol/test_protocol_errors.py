"""Every error has one code and survives the wire with its data."""

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import DIGEST, ERRORS, PEER
from wire_messages import decode_message, encode_message

from protocol import errors, limits
from protocol.errors import ErrorCode, ModuleMeshError, RemoteFailure, error_from_wire
from protocol.messages import error_reply


def data_of(error: ModuleMeshError) -> dict[str, object]:
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


def test_there_is_an_example_of_every_code():
    assert sorted(type(error).code for error in ERRORS) == sorted(ErrorCode)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_wire_with_its_data(error):
    reply = decode_message(encode_message(error_reply(error)))
    returned = error_from_wire(reply.code, reply.message, reply.data)
    assert type(returned) is type(error)
    assert data_of(returned) == data_of(error)
    assert str(returned) == str(error) == error.message == reply.message


def test_what_a_newer_peer_says_becomes_a_remote_failure_of_that_peer():
    unknown_code = error_from_wire("novel", "new", {"x": 1}, peer_id=PEER)
    unknown_data = error_from_wire("busy", "wait", {"until": 5}, peer_id=PEER)
    assert data_of(unknown_code) == {"peer_id": PEER, "remote_code": "novel", "remote_message": "new"}
    assert data_of(unknown_data) == {"peer_id": PEER, "remote_code": "busy", "remote_message": "wait"}


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(ERRORS), st.data())
def test_hostile_data_gives_the_codes_class_in_bounds_or_a_remote_failure(example, data):
    fields = {name: data.draw(_PLAIN) for name in example.to_wire().data}
    error = error_from_wire(str(example.code), "text", fields)
    if type(error) is not RemoteFailure:
        hints = typing.get_type_hints(type(error), include_extras=True)
        for name, value in data_of(error).items():
            msgspec.convert(value, hints[name])
    assert isinstance(str(error), str)


def test_long_texts_and_lists_are_cut_to_what_a_reply_may_hold():
    error = errors.RowsUnanswered(tuple(range(5000)), (DIGEST,))
    reply = decode_message(encode_message(error_reply(error)))
    assert error_from_wire(reply.code, reply.message, reply.data).rows == tuple(range(limits.MAX_ERROR_ITEMS))
    reply = decode_message(encode_message(error_reply(errors.NotReady("x" * 10_000))))
    assert len(reply.data["reason"]) == len(reply.message) == limits.MAX_ERROR_TEXT_CHARS


def test_text_from_a_peer_cannot_steer_a_terminal():
    error = error_from_wire("remote", "\x1b[2Jowned\n", {}, peer_id=PEER)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)


def test_families_tell_bad_input_from_a_failed_call():
    assert {type(error) for error in ERRORS if isinstance(error, errors.CallFailed)} == {
        errors.BlobCorrupt,
        errors.Busy,
        errors.CallTimeout,
        errors.Draining,
        errors.MeshMismatch,
        errors.NotReady,
        errors.PeerUnreachable,
        errors.RemoteFailure,
        errors.UnknownBlob,
        errors.UnknownExpert,
        errors.UnknownMethod,
    }
    assert not any(isinstance(error, errors.CallFailed) and isinstance(error, errors.RefusedInput) for error in ERRORS)
