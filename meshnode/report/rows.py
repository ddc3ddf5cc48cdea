"""What documents have in common, whatever they measure: rows with an accuracy, accuracy matrices, maps of routing.

A document is taken as it comes: a benchmark may say more of a row than this knows, and what it does not say is absent.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from meshnode.report.documents import Document

__all__ = ["Group", "Matrices", "RoutingMap", "Row", "groups_of", "is_number", "matrices_of", "routing_maps_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One method on one scenario."""

    name: str
    values: Mapping[str, Any]

    def number(self, key: str) -> float | None:
        """A finite figure of it, if it has that."""
        value = self.values.get(key)
        return float(value) if is_number(value) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows of one document that can be compared with each other."""

    name: str
    """Of the scenario; empty where the document has one group alone."""
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matrices:
    """Accuracy in [0, 1] after each task (row) on each task (column), of the runs of one row; NaN: not measured."""

    group: str
    name: str
    runs: NDArray[np.float64]
    """``(runs, T, T)``."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """Over runs, ``(T, T)``."""
        mean: NDArray[np.float64] = self.runs.mean(axis=0)
        return mean

    def course(self) -> NDArray[np.float64]:
        """Mean accuracy over the tasks learned so far, ``(runs, T)``."""
        num_tasks = self.runs.shape[1]
        return np.stack([self.runs[:, task, : task + 1].mean(axis=1) for task in range(num_tasks)], axis=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingMap:
    """How much of each class goes to each expert."""

    name: str
    classes: Sequence[str]
    experts: Sequence[str]
    shares: NDArray[np.float64]
    """``(classes, experts)``, in [0, 1], each row sums to one."""


def groups_of(document: Document) -> list[Group]:
    """The rows that have an accuracy, by what they can be compared with."""
    groups: dict[str, list[Row]] = {}
    for path, found in _mappings(document.figures, lambda value: is_number(value.get("accuracy"))):
        group, name = _place(path)
        groups.setdefault(group, []).append(Row(name=name, values=found))
    return [Group(name=name, rows=rows) for name, rows in groups.items()]


def matrices_of(document: Document) -> list[Matrices]:
    """The accuracy matrices, all runs of a row together."""
    found = []
    for path, value in _leaves(document.measured.get("accuracy_matrices")):
        runs = _runs(value)
        if runs is not None:
            group, name = _place(path)
            found.append(Matrices(group=group, name=name, runs=runs))
    return found


def routing_maps_of(document: Document) -> list[RoutingMap]:
    """The maps of classes to experts, wherever they stand."""
    maps = []
    for path, found in _mappings(document.measured, lambda value: {"classes", "experts", "mass"} <= value.keys()):
        classes, experts = ([str(name) for name in found[key]] for key in ("classes", "experts"))
        mass = _array(found["mass"])
        if mass is not None and mass.shape == (len(classes), len(experts)) and mass.size and np.all(mass >= 0):
            shares = mass / np.maximum(mass.sum(axis=1, keepdims=True), np.finfo(float).tiny)
            maps.append(RoutingMap(name=", ".join(path[1:]), classes=classes, experts=experts, shares=shares))
    return maps


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a finite number; a flag is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _place(path: Sequence[str]) -> tuple[str, str]:
    """The group and the name of what stands at a path; ``scenario, method`` at the top belongs to the scenario."""
    if len(path) == 1 and ", " in path[0]:
        group, _, name = path[0].partition(", ")
        return group, name
    return ", ".join(path[:-1]), path[-1]


def _mappings(
    value: object, wanted: Callable[[dict[str, Any]], bool], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Mappings that are wanted, with where they stand; none within another."""
    if not isinstance(value, dict):
        return
    if path and wanted(value):
        yield path, value
        return
    for name, part in value.items():
        yield from _mappings(part, wanted, (*path, name))


def _leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    elif path:
        yield path, value


def _runs(value: object) -> NDArray[np.float64] | None:
    runs = _array(value)
    return runs if runs is not None and runs.ndim == 3 and 0 < runs.shape[1] == runs.shape[2] else None


def _array(value: object) -> NDArray[np.float64] | None:
    """Numbers in nested lists of equal lengths, None as NaN; None where it is anything else."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
