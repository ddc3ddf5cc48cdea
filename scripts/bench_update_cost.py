"""What learning one more task costs, beside training the reference CNN anew on everything seen so far.

Split Fashion-MNIST in three orders of its classes. The update is of the last task: the trunk over its images, teachers,
the expert's lesson and the router's solution included. Retraining is one epoch of the reference CNN on the images of
all five tasks, and as many epochs as it is given elsewhere until it has converged. Progress goes to stderr, the table
to stdout. The exit code is 0 if the target is met, 10 if it is missed.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from bench_continual_rows import CNN_TRAINING
from bench_document import bench_document, say
from bench_main import Bench
from bench_scenarios import QUICK_TEST, QUICK_TRAIN, load

from experts.evaluation.cost import count_flops
from experts.evaluation.features import FeatureStore
from experts.evaluation.metrics import spread
from experts.evaluation.runner import RunResult, run_scenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from experts.evaluation.suite.methods import ROUTED, on_features
from experts.evaluation.suite.trunk import trunk_inputs
from experts.generators import torch_generator
from experts.teachers.cnn import untrained_cnn
from experts.trunk.images import prepare_images

__all__ = ["Form", "epoch_gflops", "update_figures", "update_targets"]

NAME = "bench_update_cost"
METHODS = (ROUTED, "continual learner")
ORDERS = 3


class Form(NamedTuple):
    """A trunk."""

    tap: str
    pixels: int

    def __str__(self) -> str:
        return f"{self.tap} at {self.pixels} px"


FORMS = (Form("B4", 32), Form("B4", 64), Form("E5", 64))
SMALLEST, MOST_OF_ONE_EPOCH = FORMS[0], 0.25
"""Share of one epoch that an update on the smallest trunk may take."""


def epoch_gflops(scenario: Scenario) -> float:
    """One epoch of the reference CNN on the training images of all tasks."""
    size = CNN_TRAINING.batch_size
    batch = scenario.tasks[0].train.select(range(size))
    network = untrained_cnn(
        scenario.classes, channels=1, pixels=batch.images.shape[1], generator=torch_generator(0, f"{NAME}/cnn")
    )
    images = prepare_images(batch.images, 1, batch.images.shape[1])

    def step() -> None:
        network(images).logsumexp(dim=1).sum().backward()

    _, flops = count_flops(step)
    return sum(len(task.train) for task in scenario.tasks) * flops / size / 1e9


def update_figures(runs: Mapping[str, Mapping[str, Sequence[RunResult]]], one_epoch_gflops: float) -> dict[str, Any]:
    """By trunk and method: the last task's update, and what share of retraining it is.

    Args:
        runs: By trunk and method, one an order.
        one_epoch_gflops: Of retraining.
    """
    figures: dict[str, Any] = {}
    for form, methods in runs.items():
        for method, results in methods.items():
            gflops = spread([result.costs[-1].flops / 1e9 for result in results]).mean
            accuracy = spread([100 * result.matrix.average_accuracy() for result in results])
            figures[f"{form}, {method}"] = {
                "accuracy": accuracy.mean,
                "std": accuracy.deviation,
                "update_gflops": gflops,
                "of_one_epoch_ratio": gflops / one_epoch_gflops,
                "of_convergence_ratio": gflops / (one_epoch_gflops * CNN_TRAINING.epochs),
            }
    return figures


def update_targets(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What `update_figures` are held against."""
    least = min(figures[f"{SMALLEST}, {method}"]["of_one_epoch_ratio"] for method in METHODS)
    name = f"{SMALLEST}: update over one epoch of the reference CNN"
    return {name: {"target": f"<= {MOST_OF_ONE_EPOCH:g}", "met": least <= MOST_OF_ONE_EPOCH, "value": least}}


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.perf_counter()
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    orders = range(1 if options.quick else ORDERS)
    runs: dict[str, dict[str, list[RunResult]]] = {str(form): {name: [] for name in METHODS} for form in FORMS}
    for order in orders:
        scenario = make_scenario("split-fashion-mnist", load, order=order)
        if options.quick:
            scenario = scenario.limited(QUICK_TRAIN, QUICK_TEST)
        for form in FORMS:
            say(f"[{time.perf_counter() - began_s:6.1f} s] order {order}: {form}")
            inputs = trunk_inputs(scenario, store, tap=form.tap, pixels=form.pixels)
            methods = {method.name: method for method in on_features(scenario, inputs)}
            for name in METHODS:
                runs[str(form)][name].append(run_scenario(methods[name].make(order), scenario))
    one_epoch_gflops = epoch_gflops(scenario)
    figures = update_figures(runs, one_epoch_gflops)
    return bench_document(
        f"python scripts/{NAME}.py{' --quick' if options.quick else ''}",
        orders,
        figures,
        targets=update_targets(figures),
        measured={
            "one_epoch_gflops": one_epoch_gflops,
            "epochs_to_convergence": CNN_TRAINING.epochs,
            "images_of_the_task": len(scenario.tasks[-1].train),
            "threads": torch.get_num_threads(),
            "seconds": time.perf_counter() - began_s,
        },
        digits=4,
    )


def _table(document: Mapping[str, Any]) -> str:
    lines = [f"{'':<32}{'accuracy':>16}{'update GFLOP':>14}{'of one epoch':>14}{'of convergence':>16}"]
    for name, row in document["figures"].items():
        deviation = "" if row["std"] is None else f" +- {row['std']:.2f}"
        accuracy = f"{row['accuracy']:.2f}{deviation}"
        lines.append(
            f"{name:<32}{accuracy:>16}{row['update_gflops']:>14.1f}"
            f"{100 * row['of_one_epoch_ratio']:>12.0f} %{100 * row['of_convergence_ratio']:>14.1f} %"
        )
    lines.append(f"one epoch of the reference CNN: {document['measured']['one_epoch_gflops']:.1f} GFLOP")
    for name, target in document["targets"].items():
        lines.append(f"{name}: {target['value']:.3f}, {target['target']}: {'met' if target['met'] else 'MISSED'}")
    return "\n".join(lines)


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy against what an update costs, beside one epoch of retraining."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second, and is for --write only

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, row in document["figures"].items():
        axes.errorbar(
            row["update_gflops"], row["accuracy"], yerr=row["std"], marker="o" if ROUTED in name else "s", label=name
        )
    axes.axvline(document["measured"]["one_epoch_gflops"], color="grey", linestyle="--", label="one epoch of the CNN")
    axes.set(xlabel="learning the last task, GFLOP", ylabel="accuracy, %", xscale="log")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


BENCH = Bench(
    name=NAME,
    about=str(__doc__),
    quick_help="the same on less, in one order, within a minute",
    measure=_measure,
    table=_table,
    draw=_draw,
    has_seed=False,
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
