"""What the figures of continual learning are held against."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench_continual_rows import SCORES

__all__ = ["targets_of"]


class Bounds(NamedTuple):
    """What a row is held against: the least accuracy and retention, the most forgetting, in percent and as a share."""

    accuracy: float | None = None
    forgetting: float | None = None
    retention: float | None = None
    least_retention: float | None = None


BOUNDS = {
    "split-fashion-mnist, tasks": Bounds(accuracy=90.9, forgetting=5.0, retention=0.95, least_retention=0.90),
    "rotated-fashion-mnist, tasks": Bounds(accuracy=88.9, forgetting=0.5, retention=0.99),
    "four-sets, tasks": Bounds(retention=1.0),
}
"""Of the mean over orders, in which the least retention is the worst of any."""

IN_LABEL_ORDER = {
    "split-fashion-mnist, tasks": Bounds(accuracy=90.9, forgetting=5.0, retention=0.95, least_retention=0.90)
}
"""Of the first order alone."""

ADDED_RATIO = 0.08
"""Of the reference task model's parameters that a task may add."""

WITHIN_CNN = 0.5
"""Points by which a task's accuracy may be below the reference CNN's of that task."""

FEWER_ERRORS, FEWER_ERRORS_ON = 0.25, 2
"""Share of the CNN's errors that is to be gone, on so many tasks."""

TRUE_POSITIVES, FALSE_ALARMS = 0.95, 0.01


def targets_of(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name: what it is held against, whether it is met, and the value; of the rows that there are."""
    targets: dict[str, dict[str, Any]] = {}
    for name, bounds in BOUNDS.items():
        if name in figures:
            targets |= _bounded(name, bounds, figures[name])
    for name, bounds in IN_LABEL_ORDER.items():
        if name in figures:
            targets |= _bounded(f"{name}, label order", bounds, figures[name]["first_order"])
    added = [row["parameters_added_ratio"] for row in figures.values() if row.get("decisions")]
    if added:
        targets["parameters added by a task"] = _target(f"<= {ADDED_RATIO:g}", max(added) <= ADDED_RATIO, max(added))
    if {"four-sets, tasks", "four-sets, reference CNN"} <= figures.keys():
        targets |= _against_cnn(figures["four-sets, tasks"], figures["four-sets, reference CNN"])
    for name, of_scenario in figures["detection"].items():
        rates = of_scenario[SCORES[name]]
        pure, alarms = rates["new_100_percent"], rates["known"]
        targets[f"{name}: detection of pure batches"] = _target(f">= {TRUE_POSITIVES}", pure >= TRUE_POSITIVES, pure)
        targets[f"{name}: false alarms"] = _target(f"<= {FALSE_ALARMS}", alarms <= FALSE_ALARMS, alarms)
    equal = figures["restart"]["equal"]
    targets["restart in the middle of a task"] = _target("equal to the bit", equal, equal)
    return targets


def _bounded(name: str, bounds: Bounds, figure: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    held: dict[str, dict[str, Any]] = {}
    for field, bound in bounds._asdict().items():
        if bound is not None:
            value, at_most = figure[field], field == "forgetting"
            met = value <= bound if at_most else value >= bound
            held[f"{name}: {field}"] = _target(f"{'<=' if at_most else '>='} {bound:g}", met, value)
    return held


def _against_cnn(ours: Mapping[str, Any], cnn: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Errors on each task beside the reference CNN's, which was trained to its best validation epoch for it alone."""
    more = {task: error - cnn["error_by_task"][task] for task, error in ours["error_by_task"].items()}
    fewer = {task: 1 - error / max(cnn["error_by_task"][task], 1e-9) for task, error in ours["error_by_task"].items()}
    most = max(more.values())
    num_fewer = sum(share >= FEWER_ERRORS for share in fewer.values())
    return {
        "four-sets: points below the reference CNN, worst task": _target(
            f"<= {WITHIN_CNN:g}", most <= WITHIN_CNN, most
        ),
        f"four-sets: tasks with {FEWER_ERRORS:.0%} fewer errors than the reference CNN": _target(
            f">= {FEWER_ERRORS_ON}", num_fewer >= FEWER_ERRORS_ON, num_fewer
        ),
    }


def _target(bound: str, met: bool, value: Any) -> dict[str, Any]:
    return {"target": bound, "met": met, "value": value}
