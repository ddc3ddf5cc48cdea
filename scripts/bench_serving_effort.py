"""How much the benchmark of serving measures, at full size and quickly."""

from typing import NamedTuple

__all__ = ["FULL", "QUICK", "Effort"]


class Effort(NamedTuple):
    """How much of each thing is measured."""

    rounds: int
    """Of latencies and throughput, rivals in turn."""
    calls: int
    """Of 1 KB, by one caller, in a round; of larger messages fewer."""
    throughput_s: float
    p99_runs: int
    p99_requests: int
    """Of each run and rival; a 99th percentile of 5,000 stands on the slowest 50."""
    sweep: tuple[float, ...]
    """Offered rates, in shares of what callers that wait get."""
    overload_runs: int
    overload_s: float
    kills: int
    questions: int
    """Routed ones, fanned out and one after another."""
    look_ups: int


FULL = Effort(
    rounds=7,
    calls=500,
    throughput_s=3.0,
    p99_runs=5,
    p99_requests=5000,
    sweep=(0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 4.0),
    overload_runs=5,
    overload_s=8.0,
    kills=5,
    questions=15,
    look_ups=7,
)
QUICK = Effort(
    rounds=3,
    calls=150,
    throughput_s=1.0,
    p99_runs=3,
    p99_requests=800,
    sweep=(0.8, 1.0, 1.2),
    overload_runs=2,
    overload_s=3.0,
    kills=1,
    questions=5,
    look_ups=3,
)
