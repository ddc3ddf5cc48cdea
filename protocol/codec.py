"""MessagePack between bytes and typed structs.

Only what a type names is ever built: every container of a wire type has a limit, none holds values of any type, and so
neither extension types nor deep nesting have a place to stand. (Extension types nested a few thousand times are what
crashes a plain hivemind node.) Where a struct does not know a key, its value is passed over without being built.
"""

from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from protocol.errors import FrameTooLarge, MalformedMessage

__all__ = ["decode_as", "encode"]

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """MessagePack of structs and plain values; the same value always gives the same bytes."""
    return _encoder.encode(value)


def decode_as(data: bytes | memoryview, wanted: type[T], *, max_bytes: int) -> T:
    """One value of type ``wanted`` that takes up all of ``data``.

    Keys that ``wanted`` does not know are ignored: a newer peer may say more.

    Raises:
        FrameTooLarge: ``data`` is longer than ``max_bytes``; nothing was decoded.
        MalformedMessage: Not MessagePack, or not a ``wanted``.
    """
    if len(data) > max_bytes:
        raise FrameTooLarge(len(data), max_bytes)
    try:
        return cast("T", _decoder(cast("Any", wanted)).decode(data))
    # The decoder bounds its own recursion, which only a value that it passes over can reach.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedMessage(reason=str(exc)) from exc


@cache
def _decoder(wanted: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(wanted)
