"""The messages of hivemind's calls with a stream, on a libp2p stream: bounded before they are read.

::

    1 byte    0: a message; 1: an error, or without content the end of what this side has to say
    8 bytes   length, unsigned, big-endian
    content   protobuf

hivemind's own reader takes any length it is told, and logs every refusal with a traceback; hence this one.
"""

import asyncio
from typing import Any, Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message
from hivemind.proto.p2pd_pb2 import RPCError

from protocol.errors import FrameTooLarge, MalformedMessage
from protocol.limits import MAX_COUNTER

__all__ = [
    "MAX_STREAM_MESSAGE_BYTES",
    "RemoteError",
    "read_message",
    "write_end",
    "write_message",
    "write_refusal",
]

MAX_STREAM_MESSAGE_BYTES: Final = 4 * 1024 * 1024 + 64 * 1024
"""hivemind's clients and servers cut tensors into parts of 4 MiB, to which the cell and the shape are added."""

_MESSAGE: Final = b"\x00"
_ERROR: Final = b"\x01"
_LENGTH_BYTES: Final = 8

M = TypeVar("M", bound=Message)  # of protobuf, which carries no types


class RemoteError(Exception):
    """The other side says that it failed; its words are the exception's."""


async def read_message(reader: asyncio.StreamReader, kind: type[M]) -> M | None:
    """The next message; None at the end of what the other side has to say.

    Raises:
        asyncio.IncompleteReadError: The stream broke off within a message.
        FrameTooLarge: It announces more than `MAX_STREAM_MESSAGE_BYTES`; nothing of it was read.
        MalformedMessage: It is something else.
        RemoteError: It is an error.
    """
    try:
        marker = await reader.readexactly(1)
    except asyncio.IncompleteReadError:
        return None
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if length > MAX_STREAM_MESSAGE_BYTES:
        raise FrameTooLarge(min(length, MAX_COUNTER), MAX_STREAM_MESSAGE_BYTES)
    data = await reader.readexactly(length)
    if marker == _MESSAGE:
        return cast("M", _parsed(data, kind))
    if marker != _ERROR:
        raise MalformedMessage(reason="neither a message nor an error of hivemind's")
    said = _parsed(data, RPCError)
    if said.message:
        raise RemoteError(said.message)
    return None


async def write_message(writer: asyncio.StreamWriter, message: Message) -> None:
    await _write(writer, _MESSAGE, message)


async def write_end(writer: asyncio.StreamWriter) -> None:
    """Say that there is nothing more to come."""
    await _write(writer, _ERROR, RPCError())


async def write_refusal(writer: asyncio.StreamWriter, reason: str) -> None:
    await _write(writer, _ERROR, RPCError(message=reason))


async def _write(writer: asyncio.StreamWriter, marker: bytes, message: Message) -> None:
    data = message.SerializeToString()
    writer.writelines((marker + len(data).to_bytes(_LENGTH_BYTES, "big"), data))
    await writer.drain()


def _parsed(data: bytes, kind: Any) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise MalformedMessage(reason=f"no {kind.__name__} of hivemind's") from exc
