"""How peers have answered so far, and hence whom to ask first.

A peer's cost is the time that its answers took, a running mean, times the questions that it has under way: what a
question more will probably take. Peers that cost about the same are asked in turn, so that they share the load and
none goes long without being measured; what was measured long ago counts for less and less. A peer that fails is
banned, for twice as long each time, until it answers; banned peers are asked last and never left out. One that is new,
or back from a ban, is tried with one question at a time.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.identifiers import PeerId

__all__ = ["Standings"]

MEAN_SHARE: Final = 0.2
"""Weight of the newest answer in the running mean."""

FADING_S: Final = 2.0
"""After so long without an answer a peer is taken to be twice as fast as it was: it may no longer be as busy."""

ALIKE_RATIO: Final = 1.5
"""Peers whose cost is within this of the least are taken in turn: less is noise."""

FIRST_BAN_S: Final = 1.0
LONGEST_BAN_S: Final = 120.0
"""A peer is asked again after two minutes at the latest: the length of a restart on a slow machine."""

MOST_DOUBLINGS: Final = 10
"""More than from the first ban to the longest."""

PATIENCE_RATIO: Final = 10.0
LEAST_PATIENCE_S: Final = 0.5
"""A peer that takes ten times its usual time, and half a second, is not waited for while there is another one."""

FIRST_PATIENCE_S: Final = 1.0
"""Nor is one that takes a second for its first answer, for which a link has to be opened."""


@dataclass(slots=True)
class _Standing:
    """What is known of one peer."""

    mean_s: float | None = None
    measured_at: float = 0.0
    under_way: int = 0
    failures: int = 0
    """In a row."""
    banned_until: float = float("-inf")
    asked: int = 0
    """When it was last asked, as a place in the order of all questions."""


class Standings:
    """Remembers how peers answer. One for all that a node asks.

    Args:
        now_s: A clock in seconds that never goes back.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._peers: dict[PeerId, _Standing] = {}
        self._turns = itertools.count(1)

    def asking(self, peer_id: PeerId) -> None:
        """A question goes to this peer; `answered`, `failed`, `busy` or `left` tells how it ended."""
        standing = self._peers.setdefault(peer_id, _Standing())
        standing.under_way += 1
        standing.asked = next(self._turns)

    def answered(self, peer_id: PeerId, elapsed_s: float) -> None:
        """It answered, after so long."""
        standing = self._ended(peer_id)
        mean_s = standing.mean_s
        standing.mean_s = elapsed_s if mean_s is None else mean_s + MEAN_SHARE * (elapsed_s - mean_s)
        standing.measured_at = self._now_s()
        standing.failures, standing.banned_until = 0, float("-inf")

    def failed(self, peer_id: PeerId) -> None:
        """It was silent, or what it said was no answer: it is banned, for longer than the last time.

        What fails during a ban was asked before it, and failed of the same cause.
        """
        standing = self._ended(peer_id)
        if self._now_s() < standing.banned_until:
            return
        ban_s = min(FIRST_BAN_S * 2 ** min(standing.failures, MOST_DOUBLINGS), LONGEST_BAN_S)
        standing.failures += 1
        standing.banned_until = self._now_s() + ban_s

    def busy(self, peer_id: PeerId, retry_after_s: float) -> None:
        """It asks to be left alone for so long; that is no failure."""
        standing = self._ended(peer_id)
        standing.banned_until = max(standing.banned_until, self._now_s() + min(retry_after_s, LONGEST_BAN_S))

    def left(self, peer_id: PeerId) -> None:
        """The question was withdrawn, which tells nothing of the peer."""
        self._ended(peer_id)

    def banned(self, peer_id: PeerId) -> bool:
        """Whether it is asked only where there is nobody else."""
        return self._now_s() < self._peers.get(peer_id, _UNKNOWN).banned_until

    def order(self, peer_ids: Sequence[PeerId]) -> list[PeerId]:
        """All of these peers, the one to be asked first first."""
        now_s = self._now_s()
        costs = {peer_id: self._cost(self._peers.get(peer_id, _UNKNOWN), now_s) for peer_id in peer_ids}
        least = min((costs[peer_id] for peer_id in peer_ids if not self.banned(peer_id)), default=0.0)

        def place(peer_id: PeerId) -> tuple[float, float, int]:
            standing = self._peers.get(peer_id, _UNKNOWN)
            banned_for_s = max(0.0, standing.banned_until - now_s)
            alike = costs[peer_id] <= ALIKE_RATIO * least
            return banned_for_s, 0.0 if alike else costs[peer_id], standing.asked

        return sorted(peer_ids, key=place)

    def patience_s(self, peer_id: PeerId) -> float:
        """How long to wait for it while another one could be asked."""
        mean_s = self._peers.get(peer_id, _UNKNOWN).mean_s
        return FIRST_PATIENCE_S if mean_s is None else max(LEAST_PATIENCE_S, PATIENCE_RATIO * mean_s)

    def _cost(self, standing: _Standing, now_s: float) -> float:
        if standing.mean_s is None or standing.failures:
            return float("inf") if standing.under_way else 0.0  # to be measured, by one question
        # Only the first question is lured by what has faded: the others wait for what becomes of it.
        faded: float = 0.5 ** ((now_s - standing.measured_at) / FADING_S)
        return standing.mean_s * (faded + standing.under_way)

    def _ended(self, peer_id: PeerId) -> _Standing:
        standing = self._peers.setdefault(peer_id, _Standing())
        standing.under_way = max(0, standing.under_way - 1)
        return standing


_UNKNOWN: Final = _Standing()
"""What is known of a peer that was never asked; never changed."""
