"""How much the benchmark of averaging measures, at full size and quickly."""

from typing import NamedTuple

__all__ = ["FULL", "QUICK", "Effort"]


class Effort(NamedTuple):
    """How much of each thing is measured."""

    rounds: int
    """Of ours and of each rival, in turn."""
    stall_rounds: int
    training_s: float
    """Of each of the runs with and without averaging."""
    training_runs: int
    """With averaging; and as many without."""
    faults: int
    """Of each kind, over the network in memory."""
    faults_p2pd: int
    """Of each kind, over real p2pd."""
    pulls: int


FULL = Effort(rounds=7, stall_rounds=7, training_s=60.0, training_runs=3, faults=500, faults_p2pd=20, pulls=7)
QUICK = Effort(rounds=3, stall_rounds=3, training_s=12.0, training_runs=1, faults=24, faults_p2pd=2, pulls=3)
