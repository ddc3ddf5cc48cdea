"""The row of figures that several runs of one method give together: one configuration, all of its metrics."""

from collections.abc import Sequence
from typing import Any

from experts.errors import UndefinedFigure
from experts.evaluation.cost import accuracy_per_kilobyte
from experts.evaluation.metrics import spread
from experts.evaluation.runner import RunResult

__all__ = ["row_figures"]


def row_figures(
    runs: Sequence[RunResult],
    joints: Sequence[RunResult] | None,
    untrained: Sequence[Sequence[float]] | None,
    *,
    classes_grow: bool,
) -> dict[str, Any]:
    """Means over the runs, accuracies in percent, and the deviation of the accuracy; None for what is undefined.

    Args:
        runs: Of one method, each in an order of its own.
        joints: Of the joint model on the same orders, which excess forgetting counts from; None if it was not run.
        untrained: By run, how a randomly initialised net answers each task, which forward transfer counts from.
        classes_grow: Whether the scenario is class-incremental.
    """
    accuracy = spread([100 * run.matrix.average_accuracy() for run in runs])
    of_tasks = spread([100 * run.task_matrix.average_accuracy() for run in runs])
    costs = [run.costs for run in runs]
    kept_bytes = max(cost.kept_bytes for of_run in costs for cost in of_run)
    peaks = [cost.peak_memory_bytes for of_run in costs for cost in of_run]
    return {
        "accuracy": accuracy.mean,
        "std": accuracy.deviation,
        "task_accuracy": of_tasks.mean,
        "task_std": of_tasks.deviation,
        "forgetting": spread([100 * run.matrix.forgetting() for run in runs]).mean,
        "excess_forgetting": None if joints is None else _excess_forgetting(runs, joints),
        "retention": spread([run.matrix.mean_retention() for run in runs]).mean,
        "least_retention": min(run.matrix.least_retention() for run in runs),
        "backward_transfer": _backward_transfer(runs),
        "forward_transfer": None if untrained is None else _forward_transfer(runs, untrained, classes_grow),
        "kept_kb": kept_bytes / 1000,
        "points_per_kept_kb": accuracy_per_kilobyte(accuracy.mean / 100, kept_bytes) if kept_bytes else None,
        "sent_kb": spread([sum(cost.sent_bytes for cost in of_run) / 1000 for of_run in costs]).mean,
        "parameters": costs[0][-1].num_parameters,
        "parameters_added_last": costs[0][-1].parameters_added,
        "parameters_updated_last": costs[0][-1].parameters_updated,
        "parameters_added_mean": spread([cost.parameters_added for cost in costs[0]]).mean,
        "parameters_updated_mean": spread([cost.parameters_updated for cost in costs[0]]).mean,
        "gflops": spread([sum(cost.flops for cost in of_run) / 1e9 for of_run in costs]).mean,
        "seconds": spread([sum(cost.seconds for cost in of_run) for of_run in costs]).mean,
        "peak_mb": None if None in peaks else max(peak for peak in peaks if peak is not None) / 1e6,
    }


def _excess_forgetting(runs: Sequence[RunResult], joints: Sequence[RunResult]) -> float:
    pairs = zip(runs, joints, strict=True)
    return spread([100 * run.matrix.excess_forgetting(joint.matrix) for run, joint in pairs]).mean


def _backward_transfer(runs: Sequence[RunResult]) -> float | None:
    """None of a single task."""
    try:
        return spread([100 * run.matrix.backward_transfer() for run in runs]).mean
    except UndefinedFigure:
        return None


def _forward_transfer(
    runs: Sequence[RunResult], untrained: Sequence[Sequence[float]], classes_grow: bool
) -> float | None:
    """None where the method has no answer about a task that it has not learned."""
    try:
        return spread(
            [
                100 * run.matrix.forward_transfer(tuple(row), classes_grow=classes_grow)
                for run, row in zip(runs, untrained, strict=True)
            ]
        ).mean
    except UndefinedFigure:
        return None
