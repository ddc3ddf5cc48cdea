"""Continual learning in figures, all computed from one matrix a[t][i]: accuracy on task i after task t.

    average accuracy   1/T sum_i a[T][i]
    forgetting         1/(T-1) sum_{i<T} (max_{t<=T} a[t][i] - a[T][i])
    excess forgetting  1/(T-1) sum_{i<T} (max_{i<=t<=T} e[t][i] - e[T][i]),  e[t][i] = a[t][i] - joint a[t][i]
    retention of i     a[T][i] / a[i][i], i < T; its mean and its least
    backward transfer  1/(T-1) sum_{i<T} (a[T][i] - a[i][i])
    forward transfer   1/(T-1) sum_{i>=2} (a[i-1][i] - b_i),  b_i of a randomly initialised net

Transfers are those of Lopez-Paz and Ranzato 2017 (arXiv:1706.08840, sec. 2). Part of what is lost in class-incremental
learning is only that there are more classes to tell apart; a model trained on all of them loses it too. Excess
forgetting is counted from that model at the same step.

Accuracies are shares in [0, 1], tasks are counted from 0 in code. In class-incremental learning a prediction
is the argmax over the classes seen so far.

Legend: B batch, C class, T tasks.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch, UndefinedFigure, UnknownClasses

__all__ = ["AccuracyMatrix", "Spread", "accuracy", "class_incremental_accuracy", "spread"]


class AccuracyMatrix:
    """The whole matrix, future tasks included; the figures need every entry they are computed from."""

    def __init__(self, num_tasks: int) -> None:
        """
        Args:
            num_tasks: T, at least 1.

        Raises:
            SettingOutOfRange: If it is less.
        """
        if num_tasks < 1:
            raise SettingOutOfRange("num_tasks", num_tasks, allowed="at least 1")
        self.num_tasks = num_tasks
        self._entries: dict[tuple[int, int], float] = {}

    def record(self, after_task: int, on_task: int, accuracy: float) -> None:
        """Enter a[t][i]; a second entry replaces the first.

        Args:
            after_task: t, in [0, T): the last task learned.
            on_task: i, in [0, T): the task tested; it may be one not yet learned.
            accuracy: Share of right answers, in [0, 1].

        Raises:
            SettingOutOfRange: If an argument is outside its range.
        """
        for name, task in (("after_task", after_task), ("on_task", on_task)):
            if not 0 <= task < self.num_tasks:
                raise SettingOutOfRange(name, task, allowed=f"0 to {self.num_tasks - 1}")
        if not 0.0 <= accuracy <= 1.0:
            raise SettingOutOfRange("accuracy", accuracy, allowed="in [0, 1]")
        self._entries[after_task, on_task] = accuracy

    def row(self, after_task: int) -> tuple[float, ...]:
        """a[t][i] for every task i up to t = ``after_task``.

        Raises: KeyError: If one of them is not recorded.
        """
        return tuple(self._entries[after_task, task] for task in range(after_task + 1))

    def rows(self) -> list[list[float | None]]:
        """The whole matrix, None where nothing is recorded: ready for JSON."""
        tasks = range(self.num_tasks)
        return [[self._entries.get((t, i)) for i in tasks] for t in tasks]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float | None]]) -> "AccuracyMatrix":
        """The inverse of `rows`.

        Raises:
            ShapeMismatch: If the rows are not a square.
            SettingOutOfRange: If there is none, or an entry is not in [0, 1].
        """
        matrix = cls(len(rows))
        for after_task, row in enumerate(rows):
            if len(row) != len(rows):
                raise ShapeMismatch("accuracy matrix", expected=(len(rows), len(rows)), got=(len(rows), len(row)))
            for on_task, value in enumerate(row):
                if value is not None:
                    matrix.record(after_task, on_task, value)
        return matrix

    def average_accuracy(self) -> float:
        """Mean over all tasks after the last one.

        Raises: KeyError: If an entry needed is not recorded; so do the other figures.
        """
        last = self.num_tasks - 1
        return sum(self._entries[last, task] for task in range(self.num_tasks)) / self.num_tasks

    def forgetting(self) -> float:
        """Mean loss of the earlier tasks from their best ever to the end, in [0, 1]; 0 with a single task."""
        last = self.num_tasks - 1
        if last == 0:
            return 0.0
        best = [max(a for (_, i), a in self._entries.items() if i == task) for task in range(last)]
        return sum(best[task] - self._entries[last, task] for task in range(last)) / last

    def retention(self) -> tuple[float, ...]:
        """a[T][i] / a[i][i] for each task but the last, at least 0, above 1 where later tasks helped.

        1 where a task was not learned at all (a[i][i] = 0): there was nothing to lose.
        """
        last = self.num_tasks - 1
        return tuple(
            self._entries[last, task] / self._entries[task, task] if self._entries[task, task] > 0 else 1.0
            for task in range(last)
        )

    def mean_retention(self) -> float:
        """Mean over the earlier tasks; 1 with a single task."""
        ratios = self.retention()
        return sum(ratios) / len(ratios) if ratios else 1.0

    def least_retention(self) -> float:
        """The worst-kept earlier task; 1 with a single task."""
        return min(self.retention(), default=1.0)

    def excess_forgetting(self, joint: "AccuracyMatrix") -> float:
        """Mean loss of the earlier tasks from their best to the end, beyond the joint model's at the same steps.

        Args:
            joint: The matrix of a model trained on all tasks so far, at every step anew.

        Returns: In [0, 2]: 0 for the joint model itself, and with a single task.

        Raises:
            SettingOutOfRange: If the joint model was measured on another number of tasks.
            KeyError: If an entry needed is not recorded.
        """
        if joint.num_tasks != self.num_tasks:
            raise SettingOutOfRange("joint.num_tasks", joint.num_tasks, allowed=str(self.num_tasks))
        last = self.num_tasks - 1
        if last == 0:
            return 0.0
        total = 0.0
        for task in range(last):
            over = [self._entries[t, task] - joint._entries[t, task] for t in range(task, self.num_tasks)]
            total += max(over) - over[-1]
        return total / last

    def backward_transfer(self) -> float:
        """Mean change of the earlier tasks since each was learned, in [-1, 1]; below 0 is forgetting.

        Raises:
            UndefinedFigure: With a single task.
            KeyError: If an entry needed is not recorded.
        """
        last = self.num_tasks - 1
        if last == 0:
            raise UndefinedFigure("backward transfer", reason="there is one task only")
        return sum(self._entries[last, task] - self._entries[task, task] for task in range(last)) / last

    def forward_transfer(self, untrained: Sequence[float], *, classes_grow: bool) -> float:
        """Mean gain on a task before it is learned, over a net that learned nothing, in [-1, 1].

        Args:
            untrained: b_i, the accuracy of a randomly initialised net on each of the T tasks. A trained net in its
                place would count what it knows against the method.
            classes_grow: Whether the scenario is class-incremental.

        Raises:
            UndefinedFigure: With a single task; if classes grow, since a class not yet seen cannot be named and
                every a[i-1][i] is 0; or if the method had no answer to a task not yet learned.
            ShapeMismatch: If ``untrained`` has not T entries.
        """
        if len(untrained) != self.num_tasks:
            raise ShapeMismatch("untrained", expected=(self.num_tasks,), got=(len(untrained),))
        if classes_grow:
            raise UndefinedFigure("forward transfer", reason="a class that was not seen yet cannot be named")
        if self.num_tasks == 1:
            raise UndefinedFigure("forward transfer", reason="there is one task only")
        before = [self._entries.get((task - 1, task)) for task in range(1, self.num_tasks)]
        gains = [a - b for a, b in zip(before, untrained[1:], strict=True) if a is not None]
        if len(gains) < len(before):
            raise UndefinedFigure("forward transfer", reason="a task has no answer before it is learned")
        return sum(gains) / len(gains)

    def to_dict(self) -> dict[str, object]:
        """Matrix (None where nothing was recorded) and figures, ready for JSON.

        Raises: KeyError: If an entry needed is not recorded.
        """
        return {
            "accuracy_matrix": self.rows(),
            "average_accuracy_ratio": self.average_accuracy(),
            "forgetting_ratio": self.forgetting(),
            "retention_mean_ratio": self.mean_retention(),
            "retention_least_ratio": self.least_retention(),
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several seeds or class orders."""

    mean: float

    deviation: float | None
    """Standard deviation of a sample (n - 1); None for a single run, which says nothing of it."""

    num_runs: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over runs.

    Raises:
        UndefinedFigure: If there is no run, or a value is not finite.
    """
    if not values:
        raise UndefinedFigure("mean", reason="there is no run")
    if not all(math.isfinite(value) for value in values):
        raise UndefinedFigure("mean", reason=f"{values!r} are not all finite")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def accuracy(predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Share of class names predicted right, in [0, 1].

    Raises:
        ShapeMismatch: If the two differ in length.
        NothingToLearnFrom: If both are empty.
    """
    if len(predicted) != len(labels):
        raise ShapeMismatch("predictions", expected=(len(labels),), got=(len(predicted),))
    if not labels:
        raise NothingToLearnFrom("accuracy")
    return sum(guess == label for guess, label in zip(predicted, labels, strict=True)) / len(labels)


def class_incremental_accuracy(
    outputs_BC: Tensor, classes: Sequence[str], labels: Sequence[str], seen: Collection[str]
) -> float:
    """Accuracy of the argmax over the classes seen so far; what other columns say does not count.

    Args:
        outputs_BC: Scores or probabilities ``(B, C)``.
        classes: C class names, the columns.
        labels: B class names, the truth; one that was never seen is a miss.
        seen: Class names, at least one of them a column.

    Raises:
        ShapeMismatch: If outputs, classes and labels disagree.
        UnknownClasses: If no column is of a class seen.
        NothingToLearnFrom: If there are no rows.
    """
    if tuple(outputs_BC.shape) != (len(labels), len(classes)):
        raise ShapeMismatch("outputs", expected=(len(labels), len(classes)), got=tuple(outputs_BC.shape))
    columns = [column for column, name in enumerate(classes) if name in seen]
    if not columns:
        raise UnknownClasses(seen, known=classes)
    best = outputs_BC[:, columns].argmax(dim=1).tolist()
    return accuracy([classes[columns[place]] for place in best], labels)
