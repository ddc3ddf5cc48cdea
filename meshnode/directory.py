"""What a node knows of its mesh: the live, verified records of its peers, re-read from the DHT at intervals.

The DHT keeps a record until it expires, however dead its owner is: who of those that are listed answers, and how well,
whoever asks them finds out (`meshnode.inference.standings`).
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshnode.listings import ExpertListing, Replica, current_ones
from meshnode.logs import get_logger
from meshnode.telemetry import Telemetry
from meshnode.transport.interface import Transport
from protocol.errors import MalformedIdentifier, RecordRefused
from protocol.identifiers import ExpertUid, MeshId, PeerId, parse_peer_id
from protocol.records import ExpertAdvert, PeerRecord, RecordBook, SpareExpert, record_key

__all__ = ["Directory", "LeftOut"]

log = get_logger(__name__)

Objection = Callable[[ExpertAdvert], str | None]
"""Why an advertised expert does not count here; None if it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """An advertised expert that does not count."""

    uid: ExpertUid
    peer_name: str
    reason: str


class Directory:
    """The node's view of the mesh.

    Args:
        transport: Where records are looked up.
        mesh_id: The mesh whose records count.
        refresh_s: Seconds between two look-ups of `run`.
        objection: Tells of each advert why it does not count, if it does not; it is then left out, and said once.
        telemetry: Is told of peers that come and go.
    """

    def __init__(
        self,
        transport: Transport,
        mesh_id: MeshId,
        *,
        refresh_s: float,
        objection: Objection,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._transport = transport
        self._events = (telemetry or Telemetry()).events
        self._listed: tuple[tuple[PeerRecord, ...], tuple[PeerRecord, ...]] = ((), ())
        """The live records and those of leaving peers that the listings were made from."""
        self._listings: Mapping[ExpertUid, ExpertListing] = {}
        self._current: Mapping[ExpertUid, ExpertListing] = {}
        self._spare: Mapping[ExpertUid, Mapping[PeerId, SpareExpert]] = {}
        self._others: dict[PeerId, str] = {}
        """Names of the live peers but this node, as of the last look-up."""
        self._mesh_id = mesh_id
        self._refresh_s = refresh_s
        self._objection = objection
        self._left_out: tuple[LeftOut, ...] = ()
        self._book = RecordBook(mesh_id)
        self.refreshed = asyncio.Event()
        """Set after every look-up; whoever waits clears it first."""

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._refresh_s)

    async def refresh(self) -> None:
        """Look the mesh's records up once and take in those that are valid and new."""
        found = await self._transport.lookup(record_key(self._mesh_id))
        now_s = self._transport.now_s()
        for subkey, data in found.items():
            try:
                self._book.accept(data, parse_peer_id(subkey), now_s)
            except (RecordRefused, MalformedIdentifier) as refusal:
                log.debug("record refused", peer=subkey, reason=str(refusal))
        self._book.forget_expired(now_s)
        self._tell_of_changes()
        self.refreshed.set()

    def _tell_of_changes(self) -> None:
        mine = self._transport.peer_id
        now = {record.peer_id: record.peer_name for record in self.records() if record.peer_id != mine}
        for peer_id in now.keys() - self._others.keys():
            self._events.emit("peer_joined", peer=peer_id, name=now[peer_id])
        for peer_id in self._others.keys() - now.keys():
            self._events.emit("peer_left", peer=peer_id, name=self._others[peer_id])
        self._others = now

    def take(self, record: bytes, peer_id: PeerId) -> None:
        """Take in a record that came another way than through the DHT; it is checked the same.

        Raises:
            RecordRefused: It is not valid, or a newer one is known.
        """
        self._book.accept(record, peer_id, self._transport.now_s())

    def records(self) -> tuple[PeerRecord, ...]:
        """Live records, ordered by peer id."""
        return self._book.live(self._transport.now_s())

    def experts(self) -> Mapping[ExpertUid, ExpertListing]:
        """Every advertised expert, by uid, in uid order; those of leaving peers too that nobody else holds."""
        records = (self.records(), self._book.leaving(self._transport.now_s()))
        if records != self._listed:  # to tell a genuine advert takes a digest, and this is asked all the time
            self._listed, self._listings = records, self._list(*records)
            self._current, self._spare = current_ones(self._listings), _spare_in(records[0])
        return self._listings

    def current(self) -> Mapping[ExpertUid, ExpertListing]:
        """Those that no other one has succeeded, each with those that it supersedes; see `meshnode.listings`."""
        self.experts()
        return self._current

    def _list(self, live: tuple[PeerRecord, ...], leaving: tuple[PeerRecord, ...]) -> Mapping[ExpertUid, ExpertListing]:
        replicas: dict[ExpertUid, list[Replica]] = {}
        left_out: list[LeftOut] = []
        staying = {advert.uid for record in live for advert in record.experts}
        for record in (*live, *leaving):
            for advert in record.experts:
                if record.leaving and advert.uid in staying:
                    continue
                reason = self._objection(advert)
                if reason is not None:
                    left_out.append(LeftOut(uid=advert.uid, peer_name=record.peer_name, reason=reason))
                    continue
                replica = Replica(
                    peer_id=record.peer_id, peer_name=record.peer_name, advert=advert, leaving=record.leaving
                )
                replicas.setdefault(advert.uid, []).append(replica)
        for news in set(left_out) - set(self._left_out):
            log.warning(
                "an advertised expert is left out", expert=news.uid, peer_name=news.peer_name, reason=news.reason
            )
        self._left_out = tuple(left_out)
        return {
            uid: ExpertListing(
                uid=uid,
                classes=held[0].advert.classes,
                replicas=tuple(held),
                ancestors=held[0].advert.ancestors,
            )
            for uid, held in sorted(replicas.items())
        }

    def spare(self) -> Mapping[ExpertUid, Mapping[PeerId, SpareExpert]]:
        """Of which experts which peers say that the mesh can do without them."""
        self.experts()
        return self._spare

    def is_let_go(self, listing: ExpertListing) -> bool:
        """Whether all that hold an expert say so: it is about to go, and nobody is to take it in."""
        return bool(listing.holders) and listing.holders <= self.spare().get(listing.uid, {}).keys()

    def left_out(self) -> tuple[LeftOut, ...]:
        """Adverts that do not count, each with the reason."""
        self.experts()
        return self._left_out


def _spare_in(records: tuple[PeerRecord, ...]) -> Mapping[ExpertUid, Mapping[PeerId, SpareExpert]]:
    found: dict[ExpertUid, dict[PeerId, SpareExpert]] = {}
    for record in records:
        for spare in record.spare:
            found.setdefault(spare.uid, {})[record.peer_id] = spare
    return found
