"""Which experts a round can afford: the stalest first, within what this node may send in a period."""

from collections.abc import Iterable
from typing import NamedTuple

from meshnode.pacing import Pacer
from protocol.identifiers import ExpertUid

__all__ = ["Candidate", "RoundBudget"]


class Candidate(NamedTuple):
    """An expert that is to be averaged."""

    uid: ExpertUid
    rounds_behind: int
    """Rounds since its last one: what waits longest goes first."""
    num_bytes: int
    """What its round makes this node send."""


class RoundBudget:
    """Bytes that rounds may send. What one round leaves is for the next, up to the dearest expert's round.

    Args:
        pacer: The node's pace, which blobs keep to as well: they wait for what rounds send.
        period_s: From one round to the next.
    """

    def __init__(self, pacer: Pacer, period_s: float) -> None:
        self._pacer = pacer
        self._period_s = period_s
        self._left = 0.0

    def choose(self, candidates: Iterable[Candidate]) -> frozenset[ExpertUid]:
        """The experts to average now. The first that does not fit is saved for: none that is less stale goes before."""
        ordered = sorted(candidates, key=lambda candidate: (-candidate.rounds_behind, candidate.uid))
        if self._pacer.bytes_per_second is None:
            return frozenset(candidate.uid for candidate in ordered)
        per_round = self._pacer.bytes_per_second * self._period_s
        dearest = max((candidate.num_bytes for candidate in ordered), default=0)
        self._left = min(self._left + per_round, max(per_round, dearest))
        chosen: set[ExpertUid] = set()
        for candidate in ordered:
            if candidate.num_bytes > self._left:
                break
            self._left -= candidate.num_bytes
            self._pacer.spend(candidate.num_bytes)
            chosen.add(candidate.uid)
        return frozenset(chosen)
