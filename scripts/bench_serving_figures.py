"""From single requests to figures: percentiles, ratios of rivals measured in turn, goodput, and what a kill cost."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from bench_node import BenchFailed

from meshnode.bench.statistics import nearest_rank

__all__ = [
    "Goodput",
    "Interruption",
    "Paced",
    "all_latencies_ms",
    "goodput_of",
    "interruption_of",
    "latencies_ms",
    "p50",
    "p99",
    "paced_from",
    "paired_ratio",
]


class Paced(NamedTuple):
    """One request of an open loop; moments in seconds since its beginning."""

    due_s: float
    ended_s: float
    error: str | None
    """Code of its failure; None: it was answered."""


class Goodput(NamedTuple):
    """What became of the requests that were due within a window."""

    offered_per_s: float
    good_per_s: float
    """Answered within the deadline."""
    late: int
    """Answered after it."""
    failures: Mapping[str, int]
    """By code."""


class Interruption(NamedTuple):
    """What the death of a replica did to the requests around it."""

    failover_s: float
    """The longest of: a request that was hit, one that was due in the while after the kill, a pause between answers."""
    hit: int
    """Requests that a replica failed."""
    longest_hit_s: float
    longest_after_s: float
    longest_pause_s: float
    unanswered: int
    requests: int


def p50(values: Sequence[float]) -> float:
    """The median, by nearest rank."""
    return nearest_rank(sorted(values), 500)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile, by nearest rank."""
    return nearest_rank(sorted(values), 990)


def paired_ratio(ours: Sequence[float], rivals: Sequence[float]) -> float:
    """The median of the ratios of one round each: what the machine did in a round, it did to both."""
    return median(mine / rival for mine, rival in zip(ours, rivals, strict=True))


def paced_from(outcome: Mapping[str, Any]) -> list[Paced]:
    """The requests that `bench_serving_load.paced` returns."""
    return [Paced(*one) for one in zip(outcome["due_s"], outcome["ended_s"], outcome["error"], strict=True)]


def latencies_ms(requests: Sequence[Paced], *, from_s: float = 0.0) -> list[float]:
    """From when each was due to its answer, of those due from `from_s` on and answered."""
    return [1e3 * (one.ended_s - one.due_s) for one in requests if one.error is None and one.due_s >= from_s]


def all_latencies_ms(requests: Sequence[Paced]) -> list[float]:
    """The same of all requests: a percentile of those that were answered would hide those that were not.

    Raises:
        BenchFailed: One was not answered.
    """
    errors = {one.error for one in requests if one.error is not None}
    if errors:
        raise BenchFailed(f"not all of {len(requests)} requests were answered: {', '.join(sorted(errors))}")
    return latencies_ms(requests)


def goodput_of(requests: Sequence[Paced], *, from_s: float, to_s: float, deadline_s: float) -> Goodput:
    """Count by when requests were due: an answer counts if it came within `deadline_s` of that moment.

    Args:
        requests: Of all generators, which began at the same moment.
        from_s: Begin of the window; what is due before warms up.
        to_s: Its end.
        deadline_s: An answer later than this helps nobody.
    """
    counted = [one for one in requests if from_s <= one.due_s < to_s]
    answered = [one for one in counted if one.error is None]
    good = sum(one.ended_s - one.due_s <= deadline_s for one in answered)
    failures: dict[str, int] = {}
    for one in counted:
        if one.error is not None:
            failures[one.error] = failures.get(one.error, 0) + 1
    window_s = to_s - from_s
    return Goodput(len(counted) / window_s, good / window_s, len(answered) - good, failures)


def interruption_of(requests: Sequence[Paced], *, killed_s: float, hit: Sequence[int], within_s: float) -> Interruption:
    """What a kill cost.

    Args:
        requests: Of the whole run.
        killed_s: When a replica was killed.
        hit: Numbers of the requests that a replica failed, before another one answered or none did.
        within_s: Requests due for so long after the kill may have been hit without saying so.
    """
    answered = [one for one in requests if one.error is None]
    hit_s = [requests[number].ended_s - requests[number].due_s for number in hit]
    after = [one.ended_s - one.due_s for one in requests if killed_s <= one.due_s < killed_s + within_s]
    arrivals_s = sorted(one.ended_s for one in answered)
    pauses_s = [
        late - early
        for early, late in itertools.pairwise(arrivals_s)
        if late >= killed_s and early < killed_s + within_s
    ]
    longest = [max(spans_s, default=0.0) for spans_s in (hit_s, after, pauses_s)]
    return Interruption(max(longest), len(hit), *longest, len(requests) - len(answered), len(requests))
