"""A daemon that is offered more than it can do: answers in time against requests.

The expert that is overloaded is heavy and its requests are small, so that computing is the bottleneck and not those who
ask: on a machine of few cores they take theirs from the same ones. They have processes of their own, follow a schedule
that nothing slows down, and do not hold back when they are told that the daemon is busy.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from bench_children import Child, together
from bench_serving_figures import Goodput, goodput_of, p99, paced_from
from bench_serving_modules import architecture
from bench_stage import Stage, address_of

__all__ = ["measure_overload"]

HIDDEN = 60_000
"""15.5 million parameters, the most that an expert may have but for little: 31 million FLOPs a row."""

ROWS = 32
"""A request of 32 KB, which takes the daemon some 25 ms."""

DEADLINE_S = 0.5
"""Of a request, from when it was due."""

GENERATORS = 2
TIMES = 10.0
CALLERS = 32

WARM_S = 1.0
"""Of each run: until the queue is as long as it gets."""

REST_S = 1.0
"""After each run: nothing of it is left."""


def measure_overload(stage: Stage) -> dict[str, Any]:
    """Goodput by offered rate, and of the peak's rate and ten times that in turn."""
    expert = stage.ground.expert("heavy", "heavier", architecture=architecture(HIDDEN))
    with ExitStack() as resources:
        stage.tell("overload: starting a daemon with a heavy expert, and two load generators")
        (daemon,) = stage.daemons([("overloaded", [expert])], resources)
        generators = resources.enter_context(stage.hands(GENERATORS))
        how = {"uid": expert.uid, "sizes": [ROWS], "is_checked": False}
        address = address_of(daemon)
        together(
            (child, "connect", {"way": "ours", "address": address, "timeout_s": DEADLINE_S, **how})
            for child in generators
        )
        together(
            (child, "connect", {"way": "ours-patient", "address": address, "timeout_s": 60.0, **how})
            for child in generators
        )
        together((child, "settle", {}) for child in generators)
        load = {
            "name": f"ours-patient/{ROWS}",
            "callers": CALLERS // len(generators),
            "span_s": stage.effort.overload_s,
        }
        waiting = together((child, "closed", load) for child in generators)
        patient_per_s = sum(len(one["ms"]) / one["elapsed_s"] for one in waiting)
        stage.tell(f"overload: {patient_per_s:.0f}/s for {CALLERS} callers that wait")
        offer = _Offer(stage, generators)
        sweep = [offer(share * patient_per_s) for share in stage.effort.sweep]
        peak_rate = max(sweep, key=lambda one: one.good_per_s).offered_per_s
        peaks, over = [], []
        for _ in range(stage.effort.overload_runs):
            peaks.append(offer(peak_rate))
            over.append(offer(TIMES * peak_rate))
    # Whichever of both is more: a peak that is taken too low would flatter.
    peak_per_s = max(median(one.good_per_s for one in peaks), *(one.good_per_s for one in sweep))
    at_10x_per_s = median(one.good_per_s for one in over)
    return {
        "ratio": at_10x_per_s / peak_per_s,
        "peak_per_s": peak_per_s,
        "at_10x_per_s": at_10x_per_s,
        "offered_10x_per_s": median(one.offered_per_s for one in over),
        "peak_rate_per_s": peak_rate,
        "patient_per_s": patient_per_s,
        "sweep": [one._asdict() for one in sweep],
        "at_peak": [one._asdict() for one in peaks],
        "at_10x": [one._asdict() for one in over],
        "deadline_s": DEADLINE_S,
        "rows": ROWS,
        "hidden": HIDDEN,
        "sent_late_p99_ms": offer.late_ms,
    }


class _Offer:
    """Offers a rate from all generators at the same time, and counts what comes of it."""

    def __init__(self, stage: Stage, generators: Sequence[Child]) -> None:
        self._stage = stage
        self._generators = generators
        self._runs = 0
        self.late_ms: list[float] = []
        """p99 of how late requests were sent, by run."""

    def __call__(self, rate_per_s: float) -> Goodput:
        span_s = self._stage.effort.overload_s + WARM_S
        self._runs += 1
        begin_at_s = time.monotonic() + 0.5
        outcomes = together(
            (
                child,
                "paced",
                {
                    "name": f"ours/{ROWS}",
                    "rate_per_s": rate_per_s / len(self._generators),
                    "requests": round(rate_per_s * span_s / len(self._generators)),
                    "seed": self._stage.seed + 100 * self._runs + number,
                    "begin_at_s": begin_at_s,
                },
            )
            for number, child in enumerate(self._generators)
        )
        requests = [one for outcome in outcomes for one in paced_from(outcome)]
        good = goodput_of(requests, from_s=WARM_S, to_s=span_s, deadline_s=DEADLINE_S)
        self.late_ms.append(p99([late for outcome in outcomes for late in outcome["late_ms"]]))
        told = ", ".join(f"{count} {code}" for code, count in good.failures.items())
        self._stage.tell(
            f"overload: {good.offered_per_s:.0f}/s offered, {good.good_per_s:.1f}/s in time, {good.late} late, "
            f"{told or 'none failed'}"
        )
        time.sleep(REST_S)
        return good
