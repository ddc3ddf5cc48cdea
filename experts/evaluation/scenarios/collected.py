"""Domains or tasks that somebody has collected: one task each, all images of its training and its test part."""

from collections.abc import Mapping

from experts.evaluation.scenarios.base import Kind, Scenario, ScenarioTask, shuffled
from experts.evaluation.scenarios.split import Parts

__all__ = ["collected"]


def collected(name: str, kind: Kind, parts: Mapping[str, Parts], *, order: int = 0) -> Scenario:
    """One task for each data set.

    In a domain-incremental scenario every class is every task's, also where a domain has no image of it; otherwise a
    task has the classes of its own images.

    Args:
        name: The scenario's.
        kind: Likewise.
        parts: By the name of the task or domain.
        order: Of the tasks: 0 as given, another number another one.
    Raises: MalformedDataset: If images differ in size, or a part is empty.
    """
    everybodys = tuple(sorted({label for both in parts.values() for part in both for label in part.classes}))
    tasks = []
    for task, (train, test) in parts.items():
        own = tuple(sorted({*train.classes, *test.classes}))
        classes = everybodys if kind == "domain-incremental" else own
        tasks.append(ScenarioTask(name=task, train=train, test=test, classes=classes))
    positions = shuffled(list(parts), order, f"{name}/tasks")
    return Scenario(name=name, kind=kind, tasks=tuple(tasks[position] for position in positions))
