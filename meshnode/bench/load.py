"""What a mesh is asked to bear: how many requests, when, and of what size.

The moments of an open loop are drawn before the first request goes out. Users do not wait for each other's answers, so
neither may a load that stands for them: one that sends the next request only when the last is answered asks less of a
mesh exactly while it is slow, and the time its users would have waited is in no figure (Gil Tene's "coordinated
omission"; Schroeder et al. 2006, "Open versus closed: a cautionary tale", NSDI).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experts.generators import portable_uniform

__all__ = ["DEFAULT_OUTSTANDING", "DEFAULT_RATE_PER_S", "Load", "poisson_arrivals"]

DEFAULT_RATE_PER_S = 50.0
"""What a mesh of a few small machines bears without a queue."""

DEFAULT_OUTSTANDING = 256
"""Five seconds' worth of the default rate: a stall as long as the default timeout is seen whole."""

_BLOCK = 4096
"""Arrivals drawn at a time; part of what a seed means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One run's requests. The command line checks what people write; what is wrong here is a bug."""

    rate_per_s: float | None
    """Mean arrivals a second of an open loop; None is a closed loop, whose workers each wait for their answer."""
    concurrency: int = DEFAULT_OUTSTANDING
    """Open loop: requests that may be outstanding, one more is not sent. Closed loop: workers."""
    duration_s: float = 10.0
    """How long is measured, after the warm-up."""
    warm_up_s: float = 2.0
    """Requests due before this are sent as all others, and counted nowhere: connections open, caches fill."""
    batch: int = 1
    """Images a request."""
    top_k: int | None = None
    """Experts asked per image; None leaves it to the mesh."""
    timeout_s: float = 5.0
    """A request's deadline, from when it is sent."""
    seed: int = 0
    """Of the arrivals and of the images' order."""

    def __post_init__(self) -> None:
        assert self.rate_per_s is None or self.rate_per_s > 0
        assert min(self.concurrency, self.batch) >= 1
        assert min(self.duration_s, self.timeout_s) > 0
        assert self.warm_up_s >= 0

    @property
    def span_s(self) -> float:
        """From the first request on, until none is due any more."""
        return self.warm_up_s + self.duration_s


def poisson_arrivals(rate_per_s: float, span_s: float, *, seed: int) -> NDArray[np.float64]:
    """The moments of a Poisson process: independent of each other, as those of many users are.

    The gaps are -ln(1 - u) / rate with u uniform in [0, 1). Equal seeds give equal moments on every machine.

    Args:
        rate_per_s: Mean number a second, above 0.
        span_s: The process ends here; 0 has no arrival.
        seed: Any integer.

    Returns:
        Seconds from the start, ascending, in [0, span_s).
    """
    blocks: list[NDArray[np.float64]] = [np.empty(0)]
    reached_s = 0.0
    while reached_s < span_s:
        uniform = portable_uniform(str(seed), f"arrivals/{len(blocks)}", (_BLOCK,)).numpy().astype(np.float64)
        blocks.append(reached_s + np.cumsum(-np.log1p(-uniform)) / rate_per_s)
        reached_s = float(blocks[-1][-1])
    due_s = np.concatenate(blocks)
    return due_s[due_s < span_s]
