"""The benchmark of the router alone on all images: tasks merged one by one, and what it is held against."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_all_images import AT_LEAST, all_images_targets, merged_accuracy


def rows_of(label: str, place: float, count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=draw) + place, [label] * count


def test_statistics_that_come_task_by_task_name_classes_of_all_tasks() -> None:
    tasks = [rows_of("a", -3.0, 60, 0), rows_of("b", 0.0, 60, 1), rows_of("c", 3.0, 60, 2)]
    features, labels = zip(rows_of("a", -3.0, 50, 3), rows_of("c", 3.0, 50, 4), strict=True)
    test = torch.cat(features), [name for of_task in labels for name in of_task]
    right = merged_accuracy(tasks, test, 1e-4)
    assert right > 95
    assert merged_accuracy(tasks[::-1], test, 1e-4) == pytest.approx(right)
    assert merged_accuracy(tasks[1:], test, 1e-4) == pytest.approx(50, abs=5)  # half of it is of a class never seen


def test_each_trunk_has_its_own_bound() -> None:
    figures = {name: {"accuracy": least + 0.05} for name, least in AT_LEAST.items()}
    assert all(target["met"] for target in all_images_targets(figures).values())
    for name in AT_LEAST:
        lower = {**figures, name: {"accuracy": AT_LEAST[name] - 0.05}}
        assert [of for of, target in all_images_targets(lower).items() if not target["met"]] == [name]
