"""Frames: one message and its tensors, as a header that says everything and a body of raw bytes.

::

    header    MessagePack: {"message": ..., "tensors": [[name, dtype, shape], ...]}
    body      the tensors' bytes, one after another; how many follows from the header

A receiver decodes the header first. What it announces can be refused before a byte of the body is waited for or
allocated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy.typing as npt

from protocol import limits
from protocol.codec import decode_as, encode
from protocol.errors import FrameTooLarge
from protocol.messages import Message
from protocol.tensors import TensorHeaders, announced_bytes, pack_tensors, unpack_tensors

__all__ = ["Announced", "EncodedFrame", "Frame", "decode_body", "decode_header", "encode_frame"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message with the tensors that belong to it."""

    message: Message
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Announced(msgspec.Struct, frozen=True):
    """A frame of which only the header is here."""

    message: Message
    tensors: TensorHeaders

    @property
    def body_bytes(self) -> int:
        """Bytes of the body that belongs to it."""
        return sum(header.num_bytes for header in self.tensors)


class EncodedFrame(NamedTuple):
    """A frame as bytes, the tensors still in their own memory."""

    header: bytes
    body: list[memoryview]
    body_bytes: int

    @property
    def num_bytes(self) -> int:
        """Header and body."""
        return len(self.header) + self.body_bytes


def encode_frame(frame: Frame) -> EncodedFrame:
    """The frame as bytes to write one after another; tensors are views, not copies.

    Raises:
        MalformedTensor: A tensor that cannot travel.
        FrameTooLarge: The header or the whole is beyond its limit.
    """
    tensor_headers, views = pack_tensors(frame.tensors)
    header = encode(Announced(frame.message, tensor_headers))
    if len(header) > limits.MAX_MESSAGE_HEADER_BYTES:
        raise FrameTooLarge(len(header), limits.MAX_MESSAGE_HEADER_BYTES)
    return EncodedFrame(header, views, sum(len(view) for view in views))


def decode_header(header: bytes | memoryview) -> Announced:
    """What this header announces; the body may be of any size within the limits.

    Raises:
        MalformedMessage: No message.
        MalformedTensor: Tensors that cannot be.
        FrameTooLarge: The header, or the body it announces, is beyond its limit.
    """
    announced = decode_as(header, Announced, max_bytes=limits.MAX_MESSAGE_HEADER_BYTES)
    announced_bytes(announced.tensors)
    return announced


def decode_body(announced: Announced, body: bytes | bytearray | memoryview) -> Frame:
    """The whole frame; its tensors are views of `body`, as writable as that is, where they are aligned.

    Raises:
        MalformedTensor: The body is not what was announced.
    """
    return Frame(announced.message, unpack_tensors(announced.tensors, body))
