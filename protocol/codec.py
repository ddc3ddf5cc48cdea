"""MessagePack between bytes and typed structs, with every limit set.

``msgpack`` reads bytes into plain values under hard limits (no extension types, string keys only, bounded
lengths and depth); ``msgspec`` then converts these to the wanted type. Two steps, because msgspec alone has
no such limits, and an extension type nested a few thousand times is what crashes a plain hivemind node.
"""

from typing import Any, TypeVar, cast

import msgpack
import msgspec

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedMessage

__all__ = ["decode_as", "encode"]

T = TypeVar("T")


def encode(value: object) -> bytes:
    """MessagePack of structs and plain values; the same value always gives the same bytes."""
    return msgspec.msgpack.encode(value)


def decode_as(data: bytes | memoryview, wanted: type[T], *, max_bytes: int) -> T:
    """One value of type ``wanted`` that takes up all of ``data``.

    Keys that ``wanted`` does not know are ignored: a newer peer may say more.

    Raises:
        FrameTooLarge: ``data`` is longer than ``max_bytes``; nothing was decoded.
        MalformedMessage: Not MessagePack within the limits, or not a ``wanted``.
    """
    if len(data) > max_bytes:
        raise FrameTooLarge(len(data), max_bytes)
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=limits.MAX_MSGPACK_ITEMS,
            max_map_len=limits.MAX_MSGPACK_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as exc:
        raise MalformedMessage(reason=f"not MessagePack within the limits: {exc}") from exc
    _check_depth(plain, limits.MAX_MSGPACK_DEPTH)
    try:
        # msgspec's overloads know classes only, but unions of structs are converted too.
        return cast("T", msgspec.convert(plain, type=cast("Any", wanted), strict=True))
    except msgspec.ValidationError as exc:
        raise MalformedMessage(reason=str(exc)) from exc


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def _check_depth(value: object, levels_left: int) -> None:
    """Recurses at most ``levels_left`` deep; msgpack's own parser keeps a stack of fixed size."""
    if not isinstance(value, tuple | dict):
        return
    if levels_left == 0:
        raise MalformedMessage(reason=f"nested deeper than {limits.MAX_MSGPACK_DEPTH} levels")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, levels_left - 1)
