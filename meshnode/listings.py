"""Experts as a mesh's records list them, and which of them are current.

A successor supersedes the experts that it names among its ancestors: it answers for the same classes, so a router that
counted both would give each of them a part of what is one expert's gate mass. So those that descend from one expert,
and answer for its classes, are a family, of which exactly one is current. The others are its older ones: whoever does
not get an answer of the current one asks them.

Which one is current follows from the records alone, so that all who have read the same records agree:

1. One that another one of the family names among its ancestors is not.
2. Where several are left, as two peers have carried one expert over to two architectures, it is the one with the most
   replicas. Each replica is a peer that keeps it, and peers that follow have judged it by their own data. (The newest
   would be whatever a peer has made last, and when that was is only its own word.)
3. Where these are equally many, it is the one with the lowest uid.

Views that differ for a moment may choose differently; each of them is one whole family's gate mass all the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from protocol.identifiers import ExpertUid, PeerId
from protocol.records import ExpertAdvert

__all__ = ["ExpertListing", "Replica", "current_ones"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One peer's advertised copy of an expert."""

    peer_id: PeerId
    peer_name: str
    advert: ExpertAdvert
    leaving: bool = False
    """Its peer stops, and serves it until another one has taken it over; listed only where there is no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertListing:
    """An expert as the mesh knows it: what it answers for and who holds a replica."""

    uid: ExpertUid
    classes: tuple[str, ...]
    replicas: tuple[Replica, ...]
    ancestors: tuple[ExpertUid, ...] = ()
    """The experts that it succeeds, the oldest first."""
    older: tuple["ExpertListing", ...] = ()
    """Of a current expert: the others of its family, in the order in which they are asked where it does not answer."""

    @property
    def family(self) -> tuple["ExpertListing", ...]:
        """It and its older ones."""
        return (self, *self.older)

    @property
    def holders(self) -> frozenset[PeerId]:
        """The peers that hold a replica of it, or of one of the older ones, and do not leave."""
        return frozenset(held.peer_id for listing in self.family for held in listing.replicas if not held.leaving)


def current_ones(listings: Mapping[ExpertUid, ExpertListing]) -> Mapping[ExpertUid, ExpertListing]:
    """The current expert of each family, by uid, in uid order, with its older ones."""
    families: dict[tuple[ExpertUid, tuple[str, ...]], list[ExpertListing]] = {}
    for listing in listings.values():
        oldest = (*listing.ancestors, listing.uid)[0]
        families.setdefault((oldest, listing.classes), []).append(listing)
    chosen = [_with_older(family) for family in families.values()]
    return {listing.uid: listing for listing in sorted(chosen, key=lambda listing: listing.uid)}


def _with_older(family: Sequence[ExpertListing]) -> ExpertListing:
    if len(family) == 1:
        return family[0]
    superseded = {ancestor for listing in family for ancestor in listing.ancestors}
    heads = [listing for listing in family if listing.uid not in superseded]
    current = min(heads, key=_by_replicas)

    def place(listing: ExpertListing) -> tuple[bool, int, int, ExpertUid]:
        # Its own ancestors, the newest first; then what others have made of them.
        return listing.uid not in current.ancestors, -len(listing.ancestors), *_by_replicas(listing)

    older = sorted((listing for listing in family if listing is not current), key=place)
    return replace(current, older=tuple(older))


def _by_replicas(listing: ExpertListing) -> tuple[int, ExpertUid]:
    return -len(listing.replicas), listing.uid
