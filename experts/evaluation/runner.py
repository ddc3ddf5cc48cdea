"""One method on one scenario: the whole accuracy matrix, the costs, and a file of a finished run to go on from.

Both matrices come from one run: the scenario's own kind, and the task-incremental one, where the classes of other tasks
are masked.

Legend: T tasks.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.data.dataset import ImageDataset
from experts.errors import CorruptState, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.evaluation.baselines.base import Baseline, named_answers
from experts.evaluation.cost import TaskCost, measured
from experts.evaluation.metrics import AccuracyMatrix, accuracy
from experts.evaluation.scenarios.base import Scenario

__all__ = ["RunProgress", "RunResult", "kept_run", "run_scenario", "untrained_row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """Where a run stands after a task."""

    task: int
    """Tasks learned, from 1."""
    num_tasks: int
    name: str
    """The task's."""
    seconds: float
    """Spent on learning it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunResult:
    """What a run gave."""

    matrix: AccuracyMatrix
    """By the scenario's kind; entries of tasks that the method had no answer to are missing."""

    task_matrix: AccuracyMatrix
    """The same run, asked among the classes of the tested task alone."""

    costs: tuple[TaskCost, ...]
    """Of the T tasks."""

    def to_dict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {
            "matrix": self.matrix.rows(),
            "task_matrix": self.task_matrix.rows(),
            "costs": [dataclasses.asdict(cost) for cost in self.costs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "RunResult":
        """The inverse of `to_dict`.

        Raises:
            CorruptState: If it is not what `to_dict` writes.
        """
        try:
            matrices = [AccuracyMatrix.from_rows(data[name]) for name in ("matrix", "task_matrix")]  # type: ignore[arg-type]
            costs = tuple(TaskCost(**cost) for cost in data["costs"])  # type: ignore[attr-defined]
        except (KeyError, TypeError, ShapeMismatch, SettingOutOfRange) as exc:
            raise CorruptState("run", reason=str(exc)) from exc
        return cls(matrix=matrices[0], task_matrix=matrices[1], costs=costs)


def run_scenario(
    method: Baseline, scenario: Scenario, *, on_progress: Callable[[RunProgress], None] | None = None
) -> RunResult:
    """Let a method learn all tasks, and test it on all of them after each, future ones included.

    Args:
        method: Fresh: it has learned nothing.
        scenario: What it learns.
        on_progress: Called after each task; None for nobody.

    Raises:
        NothingToLearnFrom: If a test part is empty.
    """
    num_tasks = len(scenario.tasks)
    matrix, task_matrix = AccuracyMatrix(num_tasks), AccuracyMatrix(num_tasks)
    costs = []
    for number, task in enumerate(scenario.tasks):
        train: ImageDataset = task.train
        costs.append(measured(lambda train=train: method.learn(train), method.holdings))  # type: ignore[misc]
        for on_task, tested in enumerate(scenario.tasks):
            own = tuple(sorted(tested.classes))
            allowed = scenario.allowed(number, on_task)
            of_task = _tested(method, tested.test, own)
            if allowed == own:
                by_kind = of_task
            elif not set(own) & set(allowed):
                # Classes not seen yet: every answer names another class than the true one.
                by_kind = 0.0
            else:
                by_kind = _tested(method, tested.test, allowed)
            _record(matrix, (number, on_task), by_kind)
            _record(task_matrix, (number, on_task), of_task)
        if on_progress is not None:
            on_progress(RunProgress(task=number + 1, num_tasks=num_tasks, name=task.name, seconds=costs[-1].seconds))
    return RunResult(matrix=matrix, task_matrix=task_matrix, costs=tuple(costs))


def untrained_row(network: Baseline, scenario: Scenario) -> tuple[float, ...]:
    """b_i: how a randomly initialised net answers each task, among the classes of that task.

    Args:
        network: A method with a network that has learned nothing.
        scenario: What it is tested on.

    Raises:
        NothingToLearnFrom: If the method has no answer before it learned, and so no such row.
    """
    row = [_tested(network, task.test, tuple(sorted(task.classes))) for task in scenario.tasks]
    answered = [value for value in row if value is not None]
    if len(answered) < len(row):
        raise NothingToLearnFrom(f"untrained {network.name}")
    return tuple(answered)


def kept_run(folder: Path | None, terms: Sequence[str], run: Callable[[], RunResult]) -> RunResult:
    """A finished run out of a folder, or a new one that is put there.

    An interrupted study goes on with the first run that it has not finished. The code is not among the terms: who
    changes it begins with another folder.

    Args:
        folder: Where finished runs are; None runs anew and keeps nothing.
        terms: All that the run depends on: the scenario's digest, the method with its settings, the seed.
        run: Makes it.
    """
    if folder is None:
        return run()
    path = folder / f"{hashlib.sha256(json.dumps(list(terms)).encode()).hexdigest()}.json"
    try:
        return RunResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, CorruptState, ValueError):
        result = run()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result.to_dict()), encoding="utf-8")
    partial.replace(path)
    return result


def _tested(method: Baseline, test: ImageDataset, allowed: Sequence[str]) -> float | None:
    answers = named_answers(method.scores(test.images, allowed), allowed)
    return None if answers is None else accuracy(answers, test.labels)


def _record(matrix: AccuracyMatrix, entry: tuple[int, int], value: float | None) -> None:
    if value is not None:
        matrix.record(*entry, value)
