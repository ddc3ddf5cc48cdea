"""The kinds of names and numbers that cross the wire, and the bounds decoding puts on each.

A ``NewType`` says what a value is. The ``...Field`` beside it is the same type with msgspec constraints,
for the fields of structs that come from outside: ``msgspec.convert`` then refuses a value of the wrong
form. Patterns end in ``\\Z`` because ``$`` would let a trailing newline pass.
"""

from typing import Annotated, NewType

from msgspec import Meta

from protocol import limits

__all__ = [
    "AttemptField",
    "ClassName",
    "ClassNames",
    "CounterField",
    "Digest",
    "DigestField",
    "ErrorData",
    "ErrorText",
    "ExpertConfig",
    "ExpertUid",
    "ExpertUidField",
    "Kind",
    "MeshId",
    "MeshIdField",
    "MomentField",
    "Name",
    "PeerId",
    "PeerIdField",
    "SpanField",
]

PeerId = NewType("PeerId", str)
"""Base58 of the sha2-256 multihash of a peer's libp2p public key: 46 characters, "Qm..."."""

Digest = NewType("Digest", str)
"""SHA-256 of some bytes as 64 lowercase hexadecimal characters."""

MeshId = NewType("MeshId", str)
"""The digest of a mesh's spec."""

ExpertUid = NewType("ExpertUid", str)
"""The digest of what makes an expert itself: mesh, architecture, classes, lineage."""

_HEX64 = Meta(pattern=r"\A[0-9a-f]{64}\Z")

PeerIdField = Annotated[PeerId, Meta(pattern=r"\AQm[1-9A-HJ-NP-Za-km-z]{44}\Z")]
DigestField = Annotated[Digest, _HEX64]
MeshIdField = Annotated[MeshId, _HEX64]
ExpertUidField = Annotated[ExpertUid, _HEX64]

Name = Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME_CHARS)]
"""A mesh's, peer's or task's name, for people."""

Kind = Annotated[str, Meta(min_length=1, max_length=limits.MAX_KIND_CHARS)]
"""The registry name of an architecture."""

ClassName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_CLASS_NAME_CHARS)]
"""Classes are known by name everywhere outside a solved matrix."""

ClassNames = Annotated[tuple[ClassName, ...], Meta(min_length=1, max_length=limits.MAX_CLASSES_PER_EXPERT)]
"""The classes one expert answers for."""

_ConfigText = Annotated[str, Meta(max_length=limits.MAX_CONFIG_TEXT_CHARS)]
_ConfigNumber = Annotated[float, Meta(ge=-limits.MAX_COUNTER, le=limits.MAX_COUNTER)]
_ConfigInteger = Annotated[int, Meta(ge=-limits.MAX_COUNTER, le=limits.MAX_COUNTER)]

ExpertConfig = Annotated[
    dict[_ConfigText, bool | _ConfigInteger | _ConfigNumber | _ConfigText],
    Meta(max_length=limits.MAX_CONFIG_FIELDS),
]
"""Settings of an architecture by name, flat: true or false, finite numbers, words."""

ErrorText = Annotated[str, Meta(max_length=limits.MAX_ERROR_TEXT_CHARS)]

_ErrorValue = None | bool | int | float | ErrorText

ErrorData = Annotated[
    dict[ErrorText, _ErrorValue | Annotated[tuple[_ErrorValue, ...], Meta(max_length=limits.MAX_ERROR_ITEMS)]],
    Meta(max_length=limits.MAX_ERROR_FIELDS),
]
"""What an error is about, by name: plain values, and lists of them."""

CounterField = Annotated[int, Meta(ge=0, le=limits.MAX_COUNTER)]
"""A generation, version, round number or byte count."""

AttemptField = Annotated[int, Meta(ge=0, lt=limits.MAX_ATTEMPTS_PER_ROUND)]

MomentField = Annotated[float, Meta(ge=0.0, le=limits.MAX_MOMENT_S)]
"""Unix seconds; NaN and infinity fail both comparisons."""

SpanField = Annotated[float, Meta(ge=-limits.MAX_MOMENT_S, le=limits.MAX_MOMENT_S)]
"""A finite number of seconds."""
