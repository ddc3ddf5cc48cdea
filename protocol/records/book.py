"""The mesh as one node knows it: the newest record of every peer, without I/O and without a clock."""

from collections.abc import Iterator
from dataclasses import dataclass

from protocol import limits
from protocol.errors import RecordRefusal, RecordRefused
from protocol.records.peers import PeerRecord, open_record
from protocol.wiretypes import MeshId, PeerId

__all__ = ["RecordBook"]


@dataclass(frozen=True, slots=True)
class _Page:
    record: PeerRecord

    @property
    def forgettable_at(self) -> float:
        """From then on every older record of the peer is expired by any clock, so none can be replayed."""
        return self.record.issued_at + limits.MAX_RECORD_TTL_S + limits.MAX_CLOCK_SKEW_S


class RecordBook:
    """Takes in records from anywhere and keeps the newest of each peer.

    A record that has expired, or says that its peer is leaving, is still remembered for as long as an older
    one might be replayed in its place.
    """

    def __init__(self, mesh_id: MeshId) -> None:
        self._mesh_id = mesh_id
        self._pages: dict[PeerId, _Page] = {}

    def accept(self, data: bytes, subkey: PeerId, now_s: float) -> PeerRecord:
        """The record in ``data`` (found under ``subkey`` at ``now_s``, Unix seconds), now the newest of its
        peer.

        The newest record once more is accepted without effect.

        Raises:
            RecordRefused: As `open_record`; or REPLAYED, if a newer one (or another one issued at the same
                moment) is known; or TOO_MANY_PEERS.
        """
        record = open_record(data, mesh_id=self._mesh_id, subkey=subkey, now_s=now_s)
        page = self._pages.get(subkey)
        if page is None:
            self._make_room(now_s)
        elif record == page.record:
            return page.record
        elif record.issued_at <= page.record.issued_at:
            age_s = page.record.issued_at - record.issued_at
            raise RecordRefused(RecordRefusal.REPLAYED, f"one issued {age_s:.3g} s later is known")
        self._pages[subkey] = _Page(record)
        return record

    def live(self, now_s: float) -> tuple[PeerRecord, ...]:
        """The records whose lease holds at ``now_s`` and whose peers are not leaving, sorted by peer id."""
        return tuple(record for record in self._held(now_s) if not record.leaving)

    def leaving(self, now_s: float) -> tuple[PeerRecord, ...]:
        """The records whose lease holds at ``now_s`` and whose peers say that they leave, sorted by peer id."""
        return tuple(record for record in self._held(now_s) if record.leaving)

    def _held(self, now_s: float) -> Iterator[PeerRecord]:
        records = (self._pages[peer_id].record for peer_id in sorted(self._pages))
        return (record for record in records if record.expires_at > now_s)

    def forget_expired(self, now_s: float) -> None:
        """Drops the records that nothing can be replayed against any more."""
        self._pages = {peer: page for peer, page in self._pages.items() if page.forgettable_at > now_s}

    def _make_room(self, now_s: float) -> None:
        if len(self._pages) >= limits.MAX_PEERS_PER_BOOK:
            self.forget_expired(now_s)
        if len(self._pages) >= limits.MAX_PEERS_PER_BOOK:
            raise RecordRefused(RecordRefusal.TOO_MANY_PEERS, f"{len(self._pages)} peers are known")
