"""How a mesh averages."""

from dataclasses import dataclass
from typing import Literal

from protocol.mixing import MixingMethod

__all__ = ["AveragerConfig"]

ATTEMPT_SHARE = 0.5
"""Share of a round's time that an attempt may take, so that one more without a silent member fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragerConfig:
    period_s: float = 10.0
    """DHT time from one round to the next; the same at all members of a mesh, or they never meet."""
    timeout_s: float = 5.0
    """How long a round may take; at most the period."""
    method: MixingMethod = "group"
    group: int = 16
    """Most members of a group."""
    compression: str = "none"
    """Name of the codec that parts travel in."""
    weighting: Literal["uniform", "samples"] = "uniform"
    min_drift: float = 1e-4
    """By how much a replica must differ from the last mean to be averaged again, relative to the mean's norm."""

    @property
    def attempt_s(self) -> float:
        return ATTEMPT_SHARE * self.timeout_s

    @property
    def agreement(self) -> str:
        """What the members of a round must have in common, as one word of each."""
        return f"{self.method} {self.group} {self.compression} {self.weighting}"
