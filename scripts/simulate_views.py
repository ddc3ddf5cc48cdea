"""Who sees whom: the mesh's records as they come into the DHT, and each node's view, as old as its last look-up.

A view is a prefix of the records in the order in which they became readable. Which replicas a round has follows from
`protocol.membership.replicas_of`, asked of all records once a round and of every further record by itself: it judges
each record alone, so what differs between two views are those records. Nodes with one view share one answer, and the
members of a group share what `protocol.mixing.group_in_round` says to the first of them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from simulate_sizes import EXPERT

from protocol.membership import replicas_of
from protocol.mixing import MixingMethod, cycle_of, group_in_round
from protocol.records import PeerRecord
from protocol.wiretypes import PeerId

__all__ = ["Group", "Mixing", "Views"]


class Mixing(NamedTuple):
    """How the replicas of a mesh are averaged."""

    method: MixingMethod
    most: int = 16
    period_s: float = 10.0


class Group(NamedTuple):
    """Whom a replica is averaged with in a round."""

    members: tuple[PeerId, ...]
    cycle: int
    is_whole: bool


NOBODY = Group((), 0, is_whole=False)


@dataclass(slots=True)
class _Log:
    """Records as one side of the network can read them."""

    records: list[PeerRecord] = field(default_factory=list)
    readable_s: list[float] = field(default_factory=list)
    latest: dict[PeerId, PeerRecord] = field(default_factory=dict)
    rounds: dict[int, "_Round"] = field(default_factory=dict)
    judged: dict[PeerId, PeerRecord] = field(default_factory=dict)
    """The newest record of each peer among the first `num_judged`."""
    num_judged: int = 0

    def append(self, record: PeerRecord, now_s: float) -> None:
        known = self.latest.get(record.peer_id)
        if known is not None and known.issued_at >= record.issued_at:
            return
        self.latest[record.peer_id] = record
        self.records.append(record)
        self.readable_s.append(now_s)


class Views:
    """What every node can know of the others.

    Args:
        mixing: How replicas are averaged.
        num_sides: Parts that the network can fall into.
    """

    def __init__(self, mixing: Mixing, num_sides: int = 1) -> None:
        self._mixing = mixing
        self._logs = [_Log() for _ in range(num_sides)]

    def publish(self, record: PeerRecord, now_s: float, sides: Iterable[int]) -> None:
        """A record becomes readable on these sides."""
        for side in sides:
            self._logs[side].append(record, now_s)

    def heal(self, now_s: float) -> None:
        """Every side can read what the others have published meanwhile."""
        known = [record for log in self._logs for record in log.latest.values()]
        for log in self._logs:
            for record in known:
                log.append(record, now_s)

    def readable(self, side: int, at_s: float) -> int:
        """How many records a look-up finds that is answered at this moment."""
        return bisect_right(self._logs[side].readable_s, at_s)

    def begin(self, number: int, oldest_seen: Iterable[tuple[int, int]]) -> None:
        """Make ready for a round.

        Args:
            number: The round's.
            oldest_seen: For each side, how many records its most outdated node has seen.
        """
        for side, seen in oldest_seen:
            log = self._logs[side]
            for record in log.records[log.num_judged : seen]:
                log.judged[record.peer_id] = record
            log.num_judged = max(log.num_judged, seen)
            log.rounds[number] = _Round(number, log, self._mixing)
            log.rounds.pop(number - 2, None)

    def group(self, me: PeerId, side: int, seen: int, number: int) -> Group:
        """Whom this node averages with, by what it has seen; nobody if it is not known to hold a replica yet."""
        return self._logs[side].rounds[number].group(me, seen)

    def replicas(self, side: int, seen: int, number: int) -> tuple[PeerId, ...]:
        """All replicas of the round, by what this node has seen."""
        return self._logs[side].rounds[number].replicas(seen)


class _Round:
    """The replicas of one round, by how many records one has seen."""

    def __init__(self, number: int, log: _Log, mixing: Mixing) -> None:
        self._number = number
        self._log = log
        self._mixing = mixing
        self._present = set(self._judge(log.judged.values()))
        self._judged = log.num_judged
        self._from = [log.num_judged]
        """From which number of records on each of the following is seen."""
        self._replicas = [tuple(sorted(self._present))]
        self._groups: list[dict[PeerId, Group]] = [{}]

    def _judge(self, records: Iterable[PeerRecord]) -> tuple[PeerId, ...]:
        return replicas_of(EXPERT, records, number=self._number, period_s=self._mixing.period_s)

    def _index(self, seen: int) -> int:
        while self._judged < seen:
            record = self._log.records[self._judged]
            self._judged += 1
            if bool(self._judge((record,))) != (record.peer_id in self._present):
                self._present ^= {record.peer_id}
                self._from.append(self._judged)
                self._replicas.append(tuple(sorted(self._present)))
                self._groups.append({})
        return max(0, bisect_right(self._from, seen) - 1)

    def replicas(self, seen: int) -> tuple[PeerId, ...]:
        return self._replicas[self._index(seen)]

    def group(self, me: PeerId, seen: int) -> Group:
        index = self._index(seen)
        groups, replicas = self._groups[index], self._replicas[index]
        if me not in groups:
            place = bisect_left(replicas, me)
            if place == len(replicas) or replicas[place] != me:
                return NOBODY
            method, most = self._mixing.method, self._mixing.most
            members = group_in_round(me, replicas, self._number, method=method, most=most)
            cycle = cycle_of(len(replicas), method=method, most=most)
            group = Group(members, cycle, is_whole=members == replicas)
            groups.update(dict.fromkeys(members, group))
        return groups[me]
