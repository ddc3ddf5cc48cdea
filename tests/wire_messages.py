"""One message as it stands in a frame's header, which is the way that peers' bytes come in."""

from protocol.framing import Frame, decode_header, encode_frame
from protocol.messages import Message

__all__ = ["decode_message", "encode_message"]

_BEFORE, _AFTER = b"\x82\xa7message", b"\xa7tensors\x90"
"""A map of two, whose tensors are none."""


def encode_message(message: Message) -> bytes:
    """Its MessagePack."""
    header = encode_frame(Frame(message)).header
    assert header.startswith(_BEFORE)
    assert header.endswith(_AFTER)
    return header[len(_BEFORE) : -len(_AFTER)]


def decode_message(data: bytes) -> Message:
    """The message that these bytes are; raises what a frame's header with them raises."""
    return decode_header(_BEFORE + data + _AFTER).message
