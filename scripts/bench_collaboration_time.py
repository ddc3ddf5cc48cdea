"""The arithmetic of learning together: what a mesh would take if every node had a machine and a line of its own."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Line", "NodeWork", "Run", "mean_or_none", "simulated_s", "speed_ups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What joins a node to its peers."""

    bits_per_s: float
    """In each direction; both take turns."""
    round_trip_s: float


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


ROUND_TRIPS_A_TASK = 6
"""To hear of a task in the DHT, to fetch its statistics and its expert, and to take part in a round: two for each."""


def simulated_s(run: Run, line: Line) -> float:
    """Seconds until the slowest node has computed and moved its bytes, one after the other.

    Nodes that wait for their line could compute meanwhile, so this is no less than what such machines would take.
    """
    return max(
        work.cpu_s
        + 8 * work.moved_bytes / line.bits_per_s
        + ROUND_TRIPS_A_TASK * work.foreign_tasks * line.round_trip_s
        for work in run.works.values()
    )


def speed_ups(alone_s: Sequence[float], together_s: Sequence[float], reached: Sequence[bool]) -> list[float | None]:
    """Of each class order, how many times as soon the target was reached together; None where it was not reached."""
    return [one / many if there else None for one, many, there in zip(alone_s, together_s, reached, strict=True)]


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean; None if one of the values is missing, so that a run that failed does not drop out of it."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if len(there) == len(values) and there else None
