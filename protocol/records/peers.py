"""A peer's record: the lease by which it says that it is alive and which experts it hosts.

Records are stored in the DHT under `record_key`, each under its writer's peer id as subkey. Any DHT replica
may be hostile, so a reader believes only what the signature, the times and the subkey prove together
(`open_record`).
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from protocol import limits
from protocol.codec import encode
from protocol.errors import FrameTooLarge, RecordRefusal, RecordRefused
from protocol.records.unsealing import check_not_from_future, unseal
from protocol.signing import SigningKey, seal
from protocol.spec import ExpertForm
from protocol.wiretypes import (
    ClassNames,
    CounterField,
    DigestField,
    ExpertUidField,
    MeshId,
    MeshIdField,
    MomentField,
    Name,
    PeerId,
    PeerIdField,
)

__all__ = [
    "ExpertAdvert",
    "PeerRecord",
    "SpareExpert",
    "fitting",
    "inspect_record",
    "open_record",
    "record_key",
    "seal_record",
]

_DOMAIN: Final = "record"
_HEAD_BYTES: Final = 2048
"""More than a record takes without its adverts: names, digests and moments are 700 bytes at most, what its peer could
do without 800."""


class ExpertAdvert(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica of an expert that the record's peer serves."""

    uid: ExpertUidField
    form: ExpertForm
    """Its architecture, but for the number of classes."""
    classes: ClassNames
    """Sorted, each once."""
    since: MomentField
    """From when on the peer has advertised it without a break, Unix seconds of the DHT's clock."""
    round: CounterField
    """Number of the last averaging round that the replica holds; 0 before any."""
    generation: CounterField
    weights: DigestField
    """Of this generation's safetensors bytes, which the peer serves as a blob."""
    ancestors: Annotated[tuple[ExpertUidField, ...], msgspec.Meta(max_length=limits.MAX_LINEAGE)] = ()
    """The experts that it succeeds, the oldest first, its direct parent last; its uid is a digest of them too. All of
    them and not the parent alone, so that it succeeds the oldest also where nobody advertises those between."""
    lineage: DigestField | None = None
    """Of the document that says how it was made of them (`protocol.lineage`), which the peer serves as a blob; None
    without ancestors."""

    def __post_init__(self) -> None:
        if list(self.classes) != sorted(set(self.classes)):
            raise ValueError("classes must be sorted and each named once")
        if len(set(self.ancestors)) != len(self.ancestors):
            raise ValueError("an ancestor is named twice")
        if bool(self.ancestors) != (self.lineage is not None):
            raise ValueError("an expert has ancestors and a lineage, or neither")


class SpareExpert(msgspec.Struct, frozen=True, omit_defaults=True):
    """That the record's peer finds that the mesh can do without an expert, hosted there or not."""

    uid: ExpertUidField
    handed_on: bool = False
    """Whether the peer has seen to it that those which answer for its classes have learned what it knows."""


class PeerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a peer says of itself from ``issued_at`` until ``expires_at``, Unix seconds of the DHT's clock."""

    mesh_id: MeshIdField
    peer_id: PeerIdField
    peer_name: Name
    issued_at: MomentField
    expires_at: MomentField
    leaving: bool
    """The peer is stopping: don't count on it. What it still advertises it hands over, and serves meanwhile."""
    experts: Annotated[tuple[ExpertAdvert, ...], msgspec.Meta(max_length=limits.MAX_EXPERTS_PER_RECORD)]
    contributions: DigestField | None
    """Of the blob that lists the signed router contributions this peer holds; None while it holds none."""
    withdrawals: DigestField | None = None
    """Of the blob that lists the signed withdrawals of such contributions that it knows of; None while it knows of
    none. A list of its own: a reader that knows of no withdrawals still reads the other one."""
    room_bytes: CounterField = 0
    """Bytes of other peers' experts that it would still take in (`protocol.placement`)."""
    spare: Annotated[tuple[SpareExpert, ...], msgspec.Meta(max_length=limits.MAX_SPARE_PER_RECORD)] = ()
    """Experts that it could do without; one goes once all that hold it say so, and one of all peers has handed on."""


def fitting(adverts: Iterable[ExpertAdvert]) -> tuple[ExpertAdvert, ...]:
    """The first of these adverts that fit one record, however long the rest of it is."""
    left = limits.MAX_RECORD_BYTES - limits.MAX_PUBLIC_KEY_BYTES - limits.MAX_SIGNATURE_BYTES - _HEAD_BYTES
    fitted: list[ExpertAdvert] = []
    for advert in adverts:
        left -= len(encode(advert))
        if left < 0 or len(fitted) == limits.MAX_EXPERTS_PER_RECORD:
            break
        fitted.append(advert)
    return tuple(fitted)


def record_key(mesh_id: MeshId) -> str:
    """The DHT key under which the peers of a mesh store their records; the subkey is the peer id."""
    return f"modulemesh/1/{mesh_id}/peers"


def seal_record(record: PeerRecord, key: SigningKey) -> bytes:
    """The record, signed, as the value to store.

    Raises:
        RecordRefused: Other peers would refuse it: too large, a field out of its bounds, or not the key's
            own.
    """
    try:
        sealed = seal(key, _DOMAIN, encode(record))
    except FrameTooLarge as exc:
        raise RecordRefused(RecordRefusal.TOO_LARGE, exc.message) from exc
    # What is published is what every reader will take in: the same check, here and now.
    open_record(sealed, mesh_id=record.mesh_id, subkey=key.peer_id, now_s=record.issued_at)
    return sealed


def open_record(data: bytes, *, mesh_id: MeshId, subkey: PeerId, now_s: float) -> PeerRecord:
    """The record in ``data``, found under ``subkey`` in the mesh ``mesh_id`` at ``now_s`` (Unix seconds).

    Whether it is the newest of its peer is for `RecordBook` to say.

    Raises:
        RecordRefused: As `inspect_record`; or WRONG_MESH, FROM_FUTURE or EXPIRED.
    """
    record = inspect_record(data, subkey=subkey)
    if record.mesh_id != mesh_id:
        raise RecordRefused(RecordRefusal.WRONG_MESH, f"of the mesh {record.mesh_id}")
    check_not_from_future(record.issued_at, now_s)
    if record.expires_at <= now_s:
        raise RecordRefused(RecordRefusal.EXPIRED, f"{now_s - record.expires_at:.3g} s ago")
    return record


def inspect_record(data: bytes, *, subkey: PeerId) -> PeerRecord:
    """The record in ``data``, as far as it can be judged in any mesh and at any time.

    This is what a node checks that stores records for others.

    Raises:
        RecordRefused: With the reason TOO_LARGE, MALFORMED, FORGED, WRONG_OWNER (signed, stored or claimed by
            different peers), TTL_TOO_LONG or DUPLICATE_EXPERTS.
    """
    signer, record = unseal(data, _DOMAIN, PeerRecord, max_bytes=limits.MAX_RECORD_BYTES)
    if not signer == record.peer_id == subkey:
        detail = f"signed by {signer}, claims {record.peer_id}, stored for {subkey}"
        raise RecordRefused(RecordRefusal.WRONG_OWNER, detail)
    ttl_s = record.expires_at - record.issued_at
    if ttl_s <= 0:
        raise RecordRefused(RecordRefusal.MALFORMED, "expires before it is issued")
    if ttl_s > limits.MAX_RECORD_TTL_S:
        detail = f"{ttl_s:.0f} s, at most {limits.MAX_RECORD_TTL_S:.0f}"
        raise RecordRefused(RecordRefusal.TTL_TOO_LONG, detail)
    if len({advert.uid for advert in record.experts}) != len(record.experts):
        raise RecordRefused(RecordRefusal.DUPLICATE_EXPERTS, "an expert is advertised twice")
    return record
