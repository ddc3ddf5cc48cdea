"""The table of a study: many methods on one scenario, order after order, and the row of figures that each gives."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experts.evaluation.metrics import AccuracyMatrix
from experts.evaluation.runner import RunProgress, RunResult, kept_run, run_scenario, untrained_row
from experts.evaluation.scenarios.base import Kind, Scenario
from experts.evaluation.suite.figures import row_figures
from experts.evaluation.suite.method import Method
from experts.evaluation.suite.methods import ROUTED

__all__ = ["MethodTable", "constant_answer"]

TOLD_EVERY_S = 10.0
"""Of a method that learns for long, a line after a task, if the last one is so old."""


class MethodTable:
    """The runs of each method so far."""

    def __init__(self, *, terms: Sequence[str], folder: Path | None, tell: Callable[[str], None]) -> None:
        """
        Args:
            terms: All that a run depends on beside scenario, method and seed: what the trunk is.
            folder: Where finished runs are kept; None to keep none.
            tell: Takes a line of progress.
        """
        self._terms = tuple(terms)
        self._folder = folder
        self._tell = tell
        self.kind: Kind | None = None
        """The scenario's; None before it was run."""
        self.runs: dict[str, list[RunResult]] = {}
        """By row, one for each order."""
        self.settings: dict[str, str] = {}
        self.untrained: dict[str, list[tuple[float, ...]]] = {}
        """By input and order, how a network that has learned nothing answers."""
        self.constant: Counter[str] = Counter()
        """By row, the runs that ended with one answer to every image: see `constant_answer`."""

    def run_order(
        self,
        scenario: Scenario,
        methods: Sequence[Method],
        order: int,
        *,
        same_bytes: Callable[[int], Sequence[Method]] | None = None,
    ) -> None:
        """Add one order of the scenario; its number is the seed as well.

        Args:
            scenario: In this order.
            methods: Each becomes a row, or goes on with its own.
            order: Which, from 0.
            same_bytes: More methods, given how many bytes routed experts on the trunk keep; not asked without those.
        """
        self.kind = scenario.kind
        for method in methods:
            if method.name == "SGD":
                self.untrained.setdefault(method.input, []).append(untrained_row(method.make(order), scenario))
        for method in methods:
            self._add(method, scenario, order)
        routed = self.runs.get(f"{ROUTED}, trunk")
        if routed and same_bytes is not None:
            for method in same_bytes(routed[order].costs[-1].kept_bytes):
                self._add(method, scenario, order)

    def run(self, method: Method, scenario: Scenario, seed: int) -> RunResult:
        """One run, which becomes no part of the table; a kept one if there is one."""
        told_s = began_s = time.monotonic()
        was_kept = True

        def after(progress: RunProgress) -> None:
            nonlocal told_s
            if time.monotonic() - told_s > TOLD_EVERY_S:
                told_s = time.monotonic()
                self._tell(f"  {method.row}: task {progress.task} of {progress.num_tasks} learned")

        def learn() -> RunResult:
            nonlocal was_kept
            was_kept = False
            return run_scenario(method.make(seed), scenario, on_progress=after)

        terms = (scenario.digest(), method.input, method.name, method.settings, str(seed), *self._terms)
        result = kept_run(self._folder, terms, learn)
        accuracy = 100 * result.matrix.average_accuracy()
        took = ", kept from before" if was_kept else f" in {time.monotonic() - began_s:.1f} s"
        self._tell(f"  {method.row}: {accuracy:.1f} %{took}")
        return result

    def figures(self) -> dict[str, Any]:
        """A row of each method, as `row_figures` makes it."""
        return {
            row: row_figures(
                runs,
                self.runs.get(f"joint, {row.rpartition(', ')[2]}"),
                self.untrained.get(row.rpartition(", ")[2]),
                classes_grow=self.kind == "class-incremental",
            )
            for row, runs in self.runs.items()
        }

    def accuracy_matrices(self) -> dict[str, Any]:
        """The whole matrix of every run, by row."""
        return {row: [run.matrix.rows() for run in runs] for row, runs in self.runs.items()}

    def _add(self, method: Method, scenario: Scenario, order: int) -> None:
        result = self.run(method, scenario, order)
        self.runs.setdefault(method.row, []).append(result)
        self.settings[method.row] = method.settings
        self.constant[method.row] += constant_answer(result.matrix, scenario)


def constant_answer(matrix: AccuracyMatrix, scenario: Scenario) -> bool:
    """Whether the accuracies at the end are those of one answer to every image, which is how diverged networks end.

    Where tasks are told, of one answer within each task. Accuracies on a few test images can be so by chance.
    """
    last = [row[-1] for row in zip(*matrix.rows(), strict=True)]  # a[T][i] of every task
    shares = [Counter(task.test.labels) for task in scenario.tasks]

    def fits(position: int, name: str) -> bool:
        share = shares[position][name] / len(scenario.tasks[position].test)
        return last[position] is not None and math.isclose(share, last[position], abs_tol=1e-9)

    tasks = range(len(scenario.tasks))
    if scenario.kind == "task-incremental":
        return all(any(fits(position, name) for name in scenario.tasks[position].classes) for position in tasks)
    return any(all(fits(position, name) for position in tasks) for name in scenario.classes)
