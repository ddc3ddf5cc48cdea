"""The benchmark of what an update costs: shares of retraining, and what they are held against."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_continual_rows import CNN_TRAINING
from bench_update_cost import FORMS, METHODS, epoch_gflops, update_figures, update_targets

from experts.data.dataset import ImageDataset
from experts.evaluation.cost import TaskCost
from experts.evaluation.metrics import AccuracyMatrix
from experts.evaluation.runner import RunResult
from experts.evaluation.scenarios.base import Scenario, ScenarioTask


def run_of(*gflops: float) -> RunResult:
    """Two tasks that are always answered rightly, each learned at these costs."""
    matrix = AccuracyMatrix(2)
    for entry in ((0, 0), (0, 1), (1, 0), (1, 1)):
        matrix.record(*entry, 1.0)
    costs = tuple(
        TaskCost(
            seconds=1.0, peak_memory_bytes=1, flops=round(of * 1e9), num_parameters=1, parameters_added=1,
            parameters_updated=1, kept_bytes=1, sent_bytes=1,
        )
        for of in gflops
    )  # fmt: skip
    return RunResult(matrix=matrix, task_matrix=matrix, costs=costs)


def test_an_update_is_the_last_task_alone_as_a_share_of_retraining() -> None:
    runs = {str(form): {name: [run_of(100.0, 2.0), run_of(100.0, 4.0)] for name in METHODS} for form in FORMS}
    figures = update_figures(runs, one_epoch_gflops=10.0)
    row = figures[f"{FORMS[0]}, {METHODS[0]}"]
    assert (row["update_gflops"], row["of_one_epoch_ratio"], row["accuracy"]) == (3.0, pytest.approx(0.3), 100.0)
    assert row["of_convergence_ratio"] == pytest.approx(0.3 / CNN_TRAINING.epochs)
    (target,) = update_targets(figures).values()
    assert not target["met"]
    cheaper = update_figures({form: {**runs[form], METHODS[1]: [run_of(9.0, 2.5)]} for form in runs}, 10.0)
    (target,) = update_targets(cheaper).values()
    assert target["met"]


def test_retraining_grows_with_the_images_of_all_tasks() -> None:
    def scenario(images: int) -> Scenario:
        part = ImageDataset(np.zeros((images, 28, 28), np.uint8), ["a", "b"] * (images // 2))
        task = ScenarioTask(name="t", train=part, test=part.select(range(2)), classes=("a", "b"))
        return Scenario(name="s", kind="domain-incremental", tasks=(task, task))

    once = epoch_gflops(scenario(64))
    assert epoch_gflops(scenario(128)) == pytest.approx(2 * once)
    # Forward and backward: 2.6 million multiply-accumulates an image or so, three times.
    assert 0.5e-2 < once / 128 < 1.5e-2
