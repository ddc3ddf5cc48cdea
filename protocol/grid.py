"""Where experts stand in the grids that hivemind's own clients search.

hivemind names an expert by a cell, ``<name>.<a>.<b>.<c>``, and keeps one peer a cell. So each replica has a cell of its
own, which follows from the expert and the peer: nobody assigns it, and a node that starts again finds itself where it
was. Two replicas that meet in one cell are parted by another attempt.
"""

import hashlib
import re
from typing import Final

from protocol.codec import encode
from protocol.errors import MalformedIdentifier
from protocol.identifiers import ExpertUid, MeshId, PeerId, parse_peer_id

__all__ = ["GRID", "MAX_CELL_ATTEMPTS", "cell_of", "grid_name", "parse_any_peer_id", "parse_cell"]

GRID: Final = (16, 256, 256)
"""Cells along each axis: a million in all, so that replicas rarely meet. The first axis is short because hivemind's
search looks up each of its places as long as it has found fewer experts than it wants."""

MAX_CELL_ATTEMPTS: Final = 16
"""Cells a replica tries: with one cell in a hundred taken, all of them are in one case of 10^32."""

_MESH_ID_CHARS: Final = 12
_CELL: Final = re.compile(r"([^.]{1,64})((?:\.(?:0|[1-9][0-9]{0,8})){1,8})")
"""hivemind's own form, with an end to each part."""

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ED25519_CHARS: Final = 52
_ED25519_HEADER: Final = bytes.fromhex("002408011220")
"""An identity multihash of 36 bytes, a libp2p ``PublicKey`` of type Ed25519 with a key of 32 bytes."""


def grid_name(mesh_id: MeshId) -> str:
    """What the cells of this mesh begin with; also the ``uid_prefix`` of hivemind's mixture, without its full stop."""
    return f"mm_{mesh_id[:_MESH_ID_CHARS]}"


def cell_of(mesh_id: MeshId, expert: ExpertUid, peer_id: PeerId, attempt: int) -> str:
    """The cell that this peer's replica of the expert takes at this attempt, of which there are `MAX_CELL_ATTEMPTS`."""
    seed = encode(["modulemesh/cell", expert, peer_id, attempt])
    number = int.from_bytes(hashlib.sha256(seed).digest(), "big")
    cell = grid_name(mesh_id)
    for size in GRID:  # powers of two, so the remainders are even
        number, coordinate = divmod(number, size)
        cell += f".{coordinate}"
    return cell


def parse_cell(text: str) -> tuple[str, tuple[int, ...]]:
    """A cell of any grid as its name and its coordinates, of which there is at least one.

    Raises:
        MalformedIdentifier: If it is none, or one beyond the bounds.
    """
    found = _CELL.fullmatch(text)
    if found is None or not text.isprintable():
        reason = "a name of up to 64 characters and one to eight coordinates are expected, as in mm_0123456789ab.1.20.3"
        raise MalformedIdentifier("cell", text, reason)
    return found[1], tuple(int(coordinate) for coordinate in found[2][1:].split("."))


def parse_any_peer_id(text: str) -> str:
    """A libp2p peer id of an RSA or an Ed25519 key.

    Peers of a mesh have RSA keys, which sign their records; hivemind makes Ed25519 keys unless it is given one.

    Raises:
        MalformedIdentifier: If it is neither.
    """
    if len(text) != _ED25519_CHARS:
        return parse_peer_id(text)
    number = 0
    for char in text:
        digit = _BASE58.find(char)
        if digit < 0:
            raise MalformedIdentifier("peer id", text, f"{char!r} is not in base58")
        number = number * 58 + digit
    # 52 base58 digits can exceed 38 bytes by a little, hence 40 here.
    if not number.to_bytes(40, "big").startswith(b"\0\0" + _ED25519_HEADER):
        raise MalformedIdentifier("peer id", text, "not the identity of an Ed25519 key")
    return text
