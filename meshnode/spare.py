"""Experts that the mesh could do without: what that is judged by, and how it is told."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experts.router.specialization import Specialization
from meshnode.listings import ExpertListing
from meshnode.state.rows import SpareRow

__all__ = ["MERGED", "TOLD", "UNUSED", "Spare", "TidyConfig", "by_information", "standing_in"]

UNUSED, MERGED, TOLD = "unused", "merged", "told"
"""Why the mesh could do without an expert: nobody asks it; another one of its classes says the same; or all others that
hold it say so, and this node has nothing to tell it by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TidyConfig:
    """When a node does without an expert."""

    every_s: float = 600.0
    """Two experts are held against each other again after so long: each time takes the trainer from its tasks."""
    lease_s: float = 7 * 24 * 3600.0
    """How long an expert has to be unused."""
    max_difference: float = 0.05
    """Mean total variation up to which two experts of the same classes say the same."""
    max_usage: float = 0.01
    """Share of the gate mass up to which an expert is unused."""
    max_information_nats: float = 0.005
    """What it may add to I(E;C) then."""
    margin: float = 0.005
    """Accuracy that may be lost by it, as a share."""
    slot_s: float = 15.0
    """Time of one turn, as of placement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spare:
    """An expert that the mesh could do without, as it stands."""

    row: SpareRow
    left_s: float
    """Of its lease."""
    holding_on: tuple[str, ...]
    """Names of the peers that hold it and do not say so."""
    is_gone: bool
    """Whether nobody advertises it any more."""

    def document(self) -> dict[str, Any]:
        """For programs."""
        row = self.row
        return {
            "uid": row.uid,
            "cause": row.cause,
            "since": row.since,
            "left_s": round(self.left_s, 1),
            "instead": row.instead,
            "handed_on": row.handed_on,
            "holding_on": list(self.holding_on),
            "gone": self.is_gone,
        }


def standing_in(listing: ExpertListing, current: Iterable[ExpertListing]) -> list[ExpertListing]:
    """Current experts of other families that stay and answer for some of an expert's classes."""
    family = {kin.uid for kin in listing.family}
    return [
        one
        for one in current
        if one.holders and family.isdisjoint((one.uid, *one.ancestors)) and {*one.classes} & {*listing.classes}
    ]


def by_information(
    measured: Specialization | None, pair: tuple[ExpertListing, ExpertListing]
) -> tuple[ExpertListing, ExpertListing]:
    """Two experts of the same classes, first the one that goes: it adds less to I(E;C), as far as that was measured.

    Of equals it has fewer replicas, or else the higher uid.
    """
    shares = {} if measured is None else dict(zip(measured.uids, measured.information_shares.tolist(), strict=True))
    stays, goes = sorted(pair, key=lambda one: (-shares.get(one.uid, 0.0), -len(one.replicas), one.uid))
    return goes, stays
