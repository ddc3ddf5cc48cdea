"""What faults do to rounds: many trials in child processes, counted by kind of fault."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench_averaging_effort import Effort
from bench_children import together
from bench_serving_figures import p99
from bench_stage import Stage

__all__ = ["over_p2pd", "struck_in_memory", "tallied"]

CHILDREN = 2
"""Each has a core."""

GROUPS = 4
"""Of each child, at the same time: they wait for deadlines most of the time, and with more the processor makes members
late that no fault has struck."""

GROUPS_P2PD = 2

SURVIVORS = 3

WITHIN_S = 3600.0

IN_MEMORY_S, OVER_P2PD_S = 2.0, 5.0
"""Timeouts of the rounds."""


def struck_in_memory(stage: Stage[Effort]) -> dict[str, Any]:
    """Members killed, hung and slowed on networks in memory."""
    trials = dict.fromkeys(("killed", "hung", "slowed"), stage.effort.faults)
    return tallied(_tried(stage, "in_memory", trials, GROUPS), IN_MEMORY_S)


def over_p2pd(stage: Stage[Effort]) -> dict[str, Any]:
    """Members whose p2pd is ended by SIGKILL or stopped by SIGSTOP."""
    trials = dict.fromkeys(("killed", "hung"), stage.effort.faults_p2pd)
    return tallied(_tried(stage, "over_p2pd", trials, GROUPS_P2PD), OVER_P2PD_S)


def tallied(trials: Sequence[Mapping[str, Any]], timeout_s: float) -> dict[str, Any]:
    """Trials counted, by fault and in all.

    Args:
        trials: Each as a `bench_averaging_group.Trial`.
        timeout_s: Of their rounds.

    Returns: ``wrong``, trials in which something is not as it should be, and what; ``recovery_over_deadline``, the 99th
        percentile; ``survivors_ratio``, of those that committed in the round that was struck; and all of it by fault.
    """
    by_fault = {
        fault: _tally([trial for trial in trials if trial["fault"] == fault], timeout_s)
        for fault in dict.fromkeys(trial["fault"] for trial in trials)
    }
    return {**_tally(trials, timeout_s), "by_fault": by_fault, "timeout_s": timeout_s}


def _tally(trials: Sequence[Mapping[str, Any]], timeout_s: float) -> dict[str, Any]:
    recovery = [trial["recovery_s"] / timeout_s for trial in trials]
    return {
        "trials": len(trials),
        "wrong": sum(bool(trial["found"]) for trial in trials),
        "found": sorted({line for trial in trials for line in trial["found"]})[:20],
        "recovery_over_deadline": p99(recovery),
        "recovery_over_deadline_p50": median(recovery),
        "survivors_ratio": sum(trial["survivors_committed"] for trial in trials) / (SURVIVORS * len(trials)),
        "not_healed": sum(not trial["is_healed"] for trial in trials),
        "past_the_round": sum(trial["event"] is None for trial in trials),
        "recovery_by_event": sorted(
            (trial["event"], ratio) for trial, ratio in zip(trials, recovery, strict=True) if trial["event"] is not None
        ),
    }


def _tried(stage: Stage[Effort], where: str, number: Mapping[str, int], groups: int) -> list[dict[str, Any]]:
    stage.tell(f"faults {where}: {' and '.join(f'{count} {fault}' for fault, count in number.items())}")
    names = [f"faults-{where}-{child}" for child in range(CHILDREN)]
    children = stage.children.get(*names, role="faults")
    orders = []
    for place, child in enumerate(children):
        folder = stage.folder / names[place]
        folder.mkdir()
        share = {fault: count // CHILDREN + (place < count % CHILDREN) for fault, count in number.items()}
        seed = CHILDREN * stage.seed + place
        orders.append((child, where, {"folder": str(folder), "trials": share, "groups": groups, "seed": seed}))
    outcomes = together(orders, within_s=WITHIN_S)
    stage.children.end(*names)
    return [trial for outcome in outcomes for trial in outcome]
