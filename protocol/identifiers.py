"""Identifiers: who a peer is, what some bytes are, which expert is meant.

All of them are digests, so nobody assigns them and two nodes that mean the same thing name it the same.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from protocol import limits
from protocol.codec import encode
from protocol.errors import MalformedIdentifier
from protocol.wiretypes import Digest, ExpertUid, MeshId, PeerId

__all__ = [
    "Digest",
    "ExpertUid",
    "MeshId",
    "PeerId",
    "digest_of",
    "expert_uid",
    "parse_digest",
    "parse_peer_id",
    "peer_id_of",
]

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SHA256_MULTIHASH: Final = b"\x12\x20"
_PEER_ID_CHARS: Final = 46
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def digest_of(data: bytes | memoryview) -> Digest:
    """SHA-256 of ``data`` in lowercase hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


def parse_digest(text: str) -> Digest:
    """``text`` as a `Digest`.

    Raises:
        MalformedIdentifier: If it is not 64 lowercase hexadecimal characters.
    """
    if not _DIGEST.fullmatch(text):
        raise MalformedIdentifier("digest", text, "64 lowercase hexadecimal characters are expected")
    return Digest(text)


def parse_peer_id(text: str) -> PeerId:
    """``text`` as a `PeerId`.

    Raises:
        MalformedIdentifier: If it is not base58 of a sha2-256 multihash, which is what the RSA keys of
            hivemind's peers give. (Ed25519 peer ids, "12D3Koo...", carry the key itself and are refused.)
    """
    if len(text) != _PEER_ID_CHARS:
        raise MalformedIdentifier("peer id", text, f"{_PEER_ID_CHARS} characters are expected")
    number = 0
    for char in text:
        digit = _BASE58.find(char)
        if digit < 0:
            raise MalformedIdentifier("peer id", text, f"{char!r} is not in base58")
        number = number * 58 + digit
    # 46 base58 digits can exceed 34 bytes by a little, hence 35 here.
    if not number.to_bytes(35, "big").startswith(b"\0" + _SHA256_MULTIHASH):
        raise MalformedIdentifier("peer id", text, "not a sha2-256 multihash")
    return PeerId(text)


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id that belongs to a libp2p ``PublicKey`` protobuf.

    It is base58 of the sha2-256 multihash of these bytes
    (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md), as for every key longer than 42 bytes.
    """
    number = int.from_bytes(_SHA256_MULTIHASH + hashlib.sha256(public_key).digest(), "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return PeerId("".join(reversed(digits)))


def expert_uid(
    mesh_id: MeshId,
    architecture_digest: Digest,
    classes: Iterable[str],
    lineage: tuple[ExpertUid, ...] = (),
) -> ExpertUid:
    """The uid of the expert with this architecture, these classes and these ancestors in this mesh.

    Two nodes that spawn an expert for the same classes thereby hold replicas of one expert, without talking.

    Args:
        mesh_id: The mesh; the same classes in another mesh mean another expert.
        architecture_digest: Digest of the architecture's configuration.
        classes: Class names in any order; they are sorted by code point.
        lineage: Uids of the experts it was made from, in the order they were used.

    Raises:
        MalformedIdentifier: No or too many classes, an empty, overlong or repeated name, too many ancestors.
    """
    names = sorted(classes)
    shown = ", ".join(names)
    if not 1 <= len(names) <= limits.MAX_CLASSES_PER_EXPERT:
        reason = f"1 to {limits.MAX_CLASSES_PER_EXPERT} classes are expected"
        raise MalformedIdentifier("expert uid", shown, reason)
    if len(set(names)) != len(names):
        raise MalformedIdentifier("expert uid", shown, "a class is named twice")
    if not all(1 <= len(name) <= limits.MAX_CLASS_NAME_CHARS for name in names):
        reason = f"class names have 1 to {limits.MAX_CLASS_NAME_CHARS} characters"
        raise MalformedIdentifier("expert uid", shown, reason)
    if len(lineage) > limits.MAX_LINEAGE:
        raise MalformedIdentifier("expert uid", shown, f"more than {limits.MAX_LINEAGE} ancestors")
    # The leading label keeps these bytes apart from everything else that is digested.
    return ExpertUid(digest_of(encode(["modulemesh/expert", mesh_id, architecture_digest, names, lineage])))
