"""Continual learning in figures, all computed from one matrix a[t][i]: accuracy on task i after task t.

    average accuracy  1/T sum_i a[T][i]
    forgetting        1/(T-1) sum_{i<T} (max_{t<=T} a[t][i] - a[T][i])
    retention of i    a[T][i] / a[i][i], i < T; its mean and its least

Accuracies are shares in [0, 1], tasks are counted from 0 in code. In class-incremental learning a prediction
is the argmax over the classes seen so far.

Legend: B batch, C class, T tasks.
"""

from collections.abc import Collection, Sequence

from torch import Tensor

from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch, UnknownClasses

__all__ = ["AccuracyMatrix", "accuracy", "class_incremental_accuracy"]


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

    def to_dict(self) -> dict[str, object]:
        """Matrix (None where nothing was recorded) and figures, ready for JSON.

        Raises: KeyError: If an entry needed is not recorded.
        """
        tasks = range(self.num_tasks)
        return {
            "accuracy_matrix": [[self._entries.get((t, i)) for i in tasks] for t in tasks],
            "average_accuracy_ratio": self.average_accuracy(),
            "forgetting_ratio": self.forgetting(),
            "retention_mean_ratio": self.mean_retention(),
            "retention_least_ratio": self.least_retention(),
        }


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
