"""hivemind's own DHT entries about experts: what a server of its kind declares, and whether bytes are such an entry.

A cell ``<name>.<a>.<b>.<c>`` at a peer is declared by several entries: under the cell itself the peer id, without a
subkey; under each of its prefixes ``<name>.<a>.<b>.`` and ``<name>.<a>.``, with the next coordinate as the subkey, the
pair of cell and peer id. hivemind's search goes from prefix to prefix.

Nothing of it is signed. Anyone can declare any cell for any peer; what is checked here is the form, so that nothing
else comes in beside it: which bytes an entry has, that a prefix's entry lies where its cell belongs, and how long it
may live. Where the entry of a cell lies cannot be checked, as the DHT knows only the digests of keys.
"""

import hashlib
import math
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from protocol import limits
from protocol.codec import encode
from protocol.errors import MalformedIdentifier
from protocol.grid import parse_any_peer_id, parse_cell

__all__ = ["Declaration", "MAX_DECLARATION_BYTES", "declarations_of", "dht_key_of", "is_declaration"]

MAX_DECLARATION_BYTES: Final = 512
"""A cell of 64 characters of up to four bytes and eight coordinates, and a peer id: 400."""

_NO_SUBKEY: Final = encode(None)
_TUPLE: Final = 0x40
"""hivemind's extension type for a tuple; its content is the MessagePack of a list."""
_FLAT: Final = -1
"""Subkey of the cell itself where it has a single coordinate, so that there is no shorter prefix."""


class Declaration(NamedTuple):
    """One entry, as hivemind's DHT node takes it."""

    key: str
    subkey: int | None
    """None for a value without a subkey."""
    value: str | tuple[str, str]


def dht_key_of(key: str) -> bytes:
    """Where hivemind's DHT keeps a key: SHA-1 of its MessagePack."""
    return hashlib.sha1(encode(key), usedforsecurity=False).digest()


def declarations_of(cell: str, peer_id: str) -> tuple[Declaration, ...]:
    """The entries by which `peer_id` declares a cell.

    Raises:
        MalformedIdentifier: It is no cell.
    """
    own = Declaration(cell, None, peer_id)
    return (own, *(Declaration(prefix, subkey, (cell, peer_id)) for prefix, subkey in _prefixes_of(cell)))


def is_declaration(key: bytes, subkey: bytes, value: bytes, expires_at: float, *, now_s: float) -> bool:
    """Whether an entry is one of those that `declarations_of` makes, for some cell and some peer.

    Args:
        key: Digest of the key, as `dht_key_of` makes it.
        subkey: MessagePack, as it is stored.
        value: MessagePack, as it is stored.
        expires_at: When the entry expires, Unix seconds. It may have passed: a reader whose clock is ahead would
            otherwise refuse all that lies beside it.
        now_s: The present, Unix seconds.
    """
    if not (math.isfinite(expires_at) and expires_at <= now_s + limits.MAX_RECORD_TTL_S):
        return False
    if max(len(subkey), len(value)) > MAX_DECLARATION_BYTES:
        return False
    try:
        if subkey == _NO_SUBKEY:
            return _is_of_a_cell(value)
        return _is_of_a_prefix(key, subkey, value)
    except MalformedIdentifier:
        return False


def _is_of_a_cell(value: bytes) -> bool:
    peer_id = _unpack(value)
    return isinstance(peer_id, str) and value == encode(parse_any_peer_id(peer_id))


def _is_of_a_prefix(key: bytes, subkey: bytes, value: bytes) -> bool:
    pair = _unpack(value)
    if not (isinstance(pair, msgpack.ExtType) and pair.code == _TUPLE):
        return False
    match _unpack(pair.data):
        case [str(cell), str(peer_id)]:
            # Packed again, so that there is one form: no second way to write a number or a length.
            if value != encode(msgspec.msgpack.Ext(_TUPLE, encode([cell, parse_any_peer_id(peer_id)]))):
                return False
            return any(
                subkey == encode(coordinate) and key == dht_key_of(prefix) for prefix, coordinate in _prefixes_of(cell)
            )
        case _:
            return False


def _prefixes_of(cell: str) -> list[tuple[str, int]]:
    """The prefixes under which a cell is found, longest first, each with its subkey there."""
    name, coordinates = parse_cell(cell)
    if len(coordinates) == 1:
        return [(f"{cell}.", _FLAT)]
    shown = [f"{name}.", *(f"{coordinate}." for coordinate in coordinates)]
    return [("".join(shown[: 1 + length]), coordinates[length]) for length in range(len(coordinates) - 1, 0, -1)]


def _unpack(data: bytes) -> Any:
    """One value that takes up all of `data`, an extension as code and bytes; None for anything unusable."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            max_str_len=MAX_DECLARATION_BYTES,
            max_bin_len=0,
            max_array_len=2,
            max_map_len=0,
            max_ext_len=MAX_DECLARATION_BYTES,
        )
    except (ValueError, msgpack.UnpackException):
        return None
