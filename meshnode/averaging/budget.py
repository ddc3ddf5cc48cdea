"""Which experts a round can afford: the stalest first, within what this node may send in a period."""

from collections.abc import Iterable
from typing import NamedTuple

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
        bytes_per_round: None for no limit.
    """

    def __init__(self, bytes_per_round: float | None) -> None:
        self._bytes_per_round = bytes_per_round
        self._left = 0.0

    def choose(self, candidates: Iterable[Candidate]) -> frozenset[ExpertUid]:
        """The experts to average now. The first that does not fit is saved for: none that is less stale goes before."""
        ordered = sorted(candidates, key=lambda candidate: (-candidate.rounds_behind, candidate.uid))
        if self._bytes_per_round is None:
            return frozenset(candidate.uid for candidate in ordered)
        dearest = max((candidate.num_bytes for candidate in ordered), default=0)
        self._left = min(self._left + self._bytes_per_round, max(self._bytes_per_round, dearest))
        chosen: set[ExpertUid] = set()
        for candidate in ordered:
            if candidate.num_bytes > self._left:
                break
            self._left -= candidate.num_bytes
            chosen.add(candidate.uid)
        return frozenset(chosen)
