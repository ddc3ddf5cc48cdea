"""A peer's share in the router: signed class statistics of one task, named by digest; and how it is taken back.

Contributions are kept apart by (peer, task, version), so that merging one twice counts once, and passed on
as they were signed, so that who relays one cannot change it. A withdrawal says of a peer and a task that nothing counts
up to a version. It is passed on likewise, so that an old copy from somebody who has not heard does not come back. Both
are listed in blobs, the indices: one of contributions, one of withdrawals.
"""

from typing import Annotated, Final

import msgspec

from protocol import limits
from protocol.codec import decode_as, encode
from protocol.errors import FrameTooLarge, RecordRefusal, RecordRefused
from protocol.records.unsealing import check_not_from_future, unseal
from protocol.signing import SigningKey, seal
from protocol.wiretypes import (
    ClassName,
    CounterField,
    DigestField,
    MeshId,
    MeshIdField,
    MomentField,
    Name,
    PeerId,
    PeerIdField,
)

__all__ = [
    "RouterContribution",
    "Withdrawal",
    "decode_contribution_index",
    "encode_contribution_index",
    "open_contribution",
    "open_withdrawal",
    "seal_contribution",
    "seal_withdrawal",
]

_DOMAIN: Final = "contribution"
_WITHDRAWAL_DOMAIN: Final = "withdrawal"

_INDEX = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(max_length=limits.MAX_CONTRIBUTION_BYTES)], ...],
    msgspec.Meta(max_length=limits.MAX_CONTRIBUTIONS_PER_INDEX),
]


class RouterContribution(msgspec.Struct, frozen=True):
    """What one peer's data of one task adds to the router."""

    mesh_id: MeshIdField
    peer_id: PeerIdField
    """Whose data it was; the signer."""
    task: Name
    version: CounterField
    """A higher one replaces a lower one of the same peer and task."""
    statistics: DigestField
    """Of the blob with the class statistics."""
    samples: Annotated[
        dict[ClassName, Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_COUNTER)]],
        msgspec.Meta(min_length=1, max_length=limits.MAX_CLASSES_PER_TASK),
    ]
    """Samples by class, as the statistics count them."""
    issued_at: MomentField


class Withdrawal(msgspec.Struct, frozen=True):
    """That what one peer's data of one task added to the router counts no more."""

    mesh_id: MeshIdField
    peer_id: PeerIdField
    """Whose data it was; the signer."""
    task: Name
    version: CounterField
    """Contributions of this peer and task count only from the next version on."""
    issued_at: MomentField


def seal_contribution(contribution: RouterContribution, key: SigningKey) -> bytes:
    """The contribution, signed.

    Raises:
        RecordRefused: Other peers would refuse it.
    """
    try:
        sealed = seal(key, _DOMAIN, encode(contribution), max_bytes=limits.MAX_CONTRIBUTION_BYTES)
    except FrameTooLarge as exc:
        raise RecordRefused(RecordRefusal.TOO_LARGE, exc.message) from exc
    open_contribution(sealed, mesh_id=contribution.mesh_id, now_s=contribution.issued_at)
    return sealed


def open_contribution(data: bytes, *, mesh_id: MeshId, now_s: float) -> RouterContribution:
    """The contribution in ``data``, whoever passed it on, as seen at ``now_s`` (Unix seconds).

    Raises:
        RecordRefused: With the reason TOO_LARGE, MALFORMED, FORGED, WRONG_OWNER (signed by another than the
            peer it names), WRONG_MESH or FROM_FUTURE.
    """
    signer, contribution = unseal(data, _DOMAIN, RouterContribution, max_bytes=limits.MAX_CONTRIBUTION_BYTES)
    _check(contribution, signer, mesh_id, now_s)
    return contribution


def seal_withdrawal(withdrawal: Withdrawal, key: SigningKey) -> bytes:
    """The withdrawal, signed.

    Raises:
        RecordRefused: Other peers would refuse it.
    """
    sealed = seal(key, _WITHDRAWAL_DOMAIN, encode(withdrawal), max_bytes=limits.MAX_CONTRIBUTION_BYTES)
    open_withdrawal(sealed, mesh_id=withdrawal.mesh_id, now_s=withdrawal.issued_at)
    return sealed


def open_withdrawal(data: bytes, *, mesh_id: MeshId, now_s: float) -> Withdrawal:
    """The withdrawal in ``data``, whoever passed it on, as seen at ``now_s`` (Unix seconds).

    Raises:
        RecordRefused: As `open_contribution`.
    """
    signer, withdrawal = unseal(data, _WITHDRAWAL_DOMAIN, Withdrawal, max_bytes=limits.MAX_CONTRIBUTION_BYTES)
    _check(withdrawal, signer, mesh_id, now_s)
    return withdrawal


def _check(said: RouterContribution | Withdrawal, signer: PeerId, mesh_id: MeshId, now_s: float) -> None:
    if signer != said.peer_id:
        raise RecordRefused(RecordRefusal.WRONG_OWNER, f"signed by {signer}, claims {said.peer_id}")
    if said.mesh_id != mesh_id:
        raise RecordRefused(RecordRefusal.WRONG_MESH, f"of the mesh {said.mesh_id}")
    check_not_from_future(said.issued_at, now_s)


def encode_contribution_index(sealed: list[bytes]) -> bytes:
    """Sealed contributions, or sealed withdrawals, as one blob, sorted: the same set always has the same digest.

    Raises:
        FrameTooLarge: More of them, or more bytes, than an index may have.
    """
    if len(sealed) > limits.MAX_CONTRIBUTIONS_PER_INDEX:
        raise FrameTooLarge(len(sealed), limits.MAX_CONTRIBUTIONS_PER_INDEX)
    data = encode(sorted(set(sealed)))
    if len(data) > limits.MAX_CONTRIBUTION_INDEX_BYTES:
        raise FrameTooLarge(len(data), limits.MAX_CONTRIBUTION_INDEX_BYTES)
    return data


def decode_contribution_index(data: bytes | memoryview) -> list[bytes]:
    """The sealed contributions or withdrawals in an index; each is still to be opened.

    Raises:
        FrameTooLarge: More bytes than an index may have.
        MalformedMessage: Not an index, or an entry too long for a contribution.
    """
    return list(decode_as(data, _INDEX, max_bytes=limits.MAX_CONTRIBUTION_INDEX_BYTES))
