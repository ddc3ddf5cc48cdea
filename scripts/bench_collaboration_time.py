"""The arithmetic of learning together: what a mesh would take if every node had a machine and a line of its own."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "EXPECTED_SPEED_UP",
    "HELD_TO_TARGET",
    "LINE",
    "ROUND_TRIPS",
    "ROUND_TRIPS_A_TASK",
    "WITHIN",
    "Line",
    "NodeWork",
    "Run",
    "mean_or_none",
    "simulated_s",
    "speed_ups",
    "target_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What joins a node to its peers."""

    bits_per_s: float
    """In each direction."""
    round_trip_s: float

    def sending_s(self, num_bytes: float) -> float:
        """Until so many bytes have left."""
        return 8 * num_bytes / self.bits_per_s


LINE = Line(bits_per_s=20e6, round_trip_s=0.05)
"""An uplink of a good home connection, and the way to another such home in the same part of the world."""

ROUND_TRIPS = 2
"""Each to hear of a task in the DHT, to fetch what was learned of it, and to take part in a round."""

ROUND_TRIPS_A_TASK = 3 * ROUND_TRIPS

WITHIN = 0.5
"""Points below the node that learned everything at which the target accuracy stands."""

HELD_TO_TARGET, EXPECTED_SPEED_UP = 4, 2.0
"""Nodes, and the lower end of what is expected of their working together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeWork:
    """What one node did from the arrival of its tasks until all of the mesh knew them."""

    cpu_s: float
    moved_bytes: int
    """Sent and received, payloads only."""
    foreign_tasks: int
    """Learned by others, whose statistics and experts it had to hear of and fetch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One mesh that learned all tasks of one class order."""

    works: Mapping[str, NodeWork]
    """By node."""
    wall_s: float
    accuracy: float
    """In the end, of the node that does worst, in percent."""


def simulated_s(run: Run, line: Line) -> float:
    """Seconds until the slowest node has computed, sent and received, one after the other.

    Nodes that wait for their line could compute meanwhile, so this is no less than what such machines would take.
    """
    return max(
        work.cpu_s + line.sending_s(work.moved_bytes) + ROUND_TRIPS_A_TASK * work.foreign_tasks * line.round_trip_s
        for work in run.works.values()
    )


def speed_ups(alone_s: Sequence[float], together_s: Sequence[float | None]) -> list[float | None]:
    """Of each run, how many times as soon the target was reached together; None where it was not reached."""
    return [None if many is None else one / many for one, many in zip(alone_s, together_s, strict=True)]


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean; None if one of the values is missing, so that a run that failed does not drop out of it."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if len(there) == len(values) and there else None


def target_of(speed_up: float | None) -> dict[str, object]:
    """What the speed-up of `HELD_TO_TARGET` nodes is held against; one that was not reached misses it."""
    return {
        "target": f">= {EXPECTED_SPEED_UP:g}",
        "met": speed_up is not None and speed_up >= EXPECTED_SPEED_UP,
        "value": speed_up,
    }
