"""What is still to be asked for a batch: rows that an expert is to answer, and the replicas that are left to ask.

Legend: R rows of one expert.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from meshnode.listings import ExpertListing
from protocol.identifiers import ExpertUid, PeerId

__all__ = ["Question", "Wanted"]

Holders = Mapping[PeerId, str]
"""Peers that hold a replica, with their names."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Wanted:
    """A current expert that is to answer rows; where it does not, the older ones that it supersedes do."""

    uid: ExpertUid
    """That the gates name."""
    rows: torch.Tensor
    """Int64 ``(R,)``."""
    gates: tuple[float, ...]
    left: tuple[tuple[ExpertListing, Holders], ...]
    """The current expert and the older ones, in the order in which they are asked, with the peers that have not been;
    none without any."""

    @property
    def num_left(self) -> int:
        """Replicas that have not been asked."""
        return sum(len(holders) for _, holders in self.left)

    def without(self, listing: ExpertListing, peer_id: PeerId) -> "Wanted":
        """The same once this replica was asked in vain."""
        left = []
        for other, holders in self.left:
            kept = {one: name for one, name in holders.items() if (other.uid, one) != (listing.uid, peer_id)}
            if kept:
                left.append((other, kept))
        return replace(self, left=tuple(left))


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Question:
    """Rows that one expert at one peer is asked about."""

    want: Wanted
    listing: ExpertListing
    """The expert asked: the one wanted, or an older one in its place."""
    peer_id: PeerId
    peer_name: str

    @property
    def uid(self) -> ExpertUid:
        return self.listing.uid

    @property
    def rows(self) -> torch.Tensor:
        return self.want.rows
