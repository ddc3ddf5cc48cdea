"""Every message that can be sent is one that is decoded, round-trips, and is some kind of traffic."""

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import MESSAGES
from wire_messages import decode_message, encode_message

from meshnode.transport.interface import kind_of
from protocol import messages
from protocol.messages import ExpertAnswer, InferCall, Message, RoundAnswer, RoundId, RoundWord

WORDS = {*typing.get_args(RoundWord), *typing.get_args(RoundAnswer)} - set(typing.get_args(Message))
FIELDS = {ExpertAnswer, InferCall, RoundId, *WORDS}
"""Structs that stand in messages and are none."""


def test_every_struct_of_the_module_is_decoded_and_has_values_to_be_tested_with() -> None:
    structs = {value for value in vars(messages).values() if isinstance(value, type)}
    sent = {struct for struct in structs if issubclass(struct, msgspec.Struct)} - FIELDS
    assert sent == set(typing.get_args(Message)) == set(MESSAGES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_message_round_trips(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    returned = decode_message(encode_message(message))
    assert returned == message
    assert type(returned) is kind
    assert kind_of(returned) in {"averaging", "blobs", "control", "inference"}
