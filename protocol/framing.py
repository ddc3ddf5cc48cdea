"""Frames: one message and its tensors, laid out so that a reader knows from 16 bytes how much follows.

::

    4 bytes   "MMF" and the version, 1
    4 bytes   length of the header, unsigned big-endian
    8 bytes   length of the body, unsigned big-endian
    header    MessagePack: {"message": ..., "tensors": [[name, dtype, shape], ...]}
    body      the tensors' bytes, one after another
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy.typing as npt

from protocol import limits
from protocol.codec import decode_as, encode
from protocol.errors import FrameTooLarge, MalformedMessage
from protocol.messages import Message
from protocol.tensors import TensorHeaders, pack_tensors, unpack_tensors

__all__ = ["PREFIX_BYTES", "Frame", "decode_frame", "decode_parts", "encode_frame", "frame_lengths"]

_MAGIC: Final = b"MMF\x01"
_PREFIX: Final = struct.Struct("!4sIQ")
PREFIX_BYTES: Final = _PREFIX.size
"""What a stream reader reads first: the argument of `frame_lengths`."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message with the tensors that belong to it."""

    message: Message
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class _Header(msgspec.Struct, frozen=True):
    message: Message
    tensors: TensorHeaders


def encode_frame(frame: Frame) -> list[bytes | memoryview]:
    """The frame as pieces to write one after another; tensors are views, not copies.

    Raises:
        MalformedTensor: A tensor that cannot travel.
        FrameTooLarge: The header or the whole is beyond its limit.
    """
    tensor_headers, views = pack_tensors(frame.tensors)
    header = encode(_Header(frame.message, tensor_headers))
    body_bytes = sum(len(view) for view in views)
    _check_lengths(len(header), body_bytes)
    prefix = _PREFIX.pack(_MAGIC, len(header), body_bytes)
    return [prefix + header, *views]


def frame_lengths(prefix: bytes | memoryview) -> tuple[int, int]:
    """``(header_bytes, body_bytes)`` that follow this prefix of ``PREFIX_BYTES``.

    Raises:
        MalformedMessage: Not the start of a frame of this version.
        FrameTooLarge: It announces more than the limits; the stream cannot be read on.
    """
    if len(prefix) != PREFIX_BYTES:
        raise MalformedMessage(reason=f"a frame starts with {PREFIX_BYTES} bytes, not {len(prefix)}")
    magic, header_bytes, body_bytes = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise MalformedMessage(reason="not a frame of this version")
    _check_lengths(header_bytes, body_bytes)
    return header_bytes, body_bytes


def decode_parts(header: bytes | memoryview, body: bytes | memoryview) -> Frame:
    """The frame whose header and body were read separately, which saves copying the body.

    Raises:
        MalformedMessage, MalformedTensor, FrameTooLarge: As for `decode_frame`.
    """
    decoded = decode_as(header, _Header, max_bytes=limits.MAX_MESSAGE_HEADER_BYTES)
    return Frame(decoded.message, unpack_tensors(decoded.tensors, body))


def decode_frame(data: bytes | memoryview) -> Frame:
    """The frame that takes up all of ``data``; its tensors are read-only views of it where aligned.

    Raises:
        MalformedMessage: Not a frame, or its lengths are not those of ``data``.
        MalformedTensor: The tensor headers contradict the body.
        FrameTooLarge: Beyond a limit.
    """
    view = memoryview(data)
    header_bytes, body_bytes = frame_lengths(view[:PREFIX_BYTES])
    if len(view) != PREFIX_BYTES + header_bytes + body_bytes:
        raise MalformedMessage(reason=f"{len(view)} bytes are not what the frame announces")
    header_end = PREFIX_BYTES + header_bytes
    return decode_parts(view[PREFIX_BYTES:header_end], view[header_end:])


def _check_lengths(header_bytes: int, body_bytes: int) -> None:
    if header_bytes > limits.MAX_MESSAGE_HEADER_BYTES:
        raise FrameTooLarge(header_bytes, limits.MAX_MESSAGE_HEADER_BYTES)
    total_bytes = PREFIX_BYTES + header_bytes + body_bytes
    if total_bytes > limits.MAX_FRAME_BYTES:
        raise FrameTooLarge(min(total_bytes, limits.MAX_COUNTER), limits.MAX_FRAME_BYTES)
