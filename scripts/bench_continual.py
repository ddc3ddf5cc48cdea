"""Continual learning on one machine: accuracy, forgetting, what was decided, detection of new tasks, restarts.

Experts and the router stand on tap B4 at 64 pixels, calibrated on the first task; the learner holds out one image in
five of each class or domain until there are 128. Split Fashion-MNIST in three class orders, as tasks and as a stream in
batches of 64 of which nobody says where a task begins; rotated Fashion-MNIST, whose domains are found by distance; four
data sets as told tasks. The exit code is 0 if every target is met, 10 if one is missed.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from bench_continual_detection import detection
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import PIXELS, QUICK_TEST, QUICK_TRAIN, TAP, load, trunk_inputs

from experts.continual.learner import ContinualLearner
from experts.continual.settings import LearnerConfig
from experts.continual.sizing import REFERENCE_PARAMETERS
from experts.evaluation.baselines.continual_learner import ContinualMethod
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import Inputs
from experts.evaluation.metrics import spread
from experts.evaluation.runner import RunResult, run_scenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from experts.router.ridge import RouterConfig
from meshnode.errors import ExitCode

STREAM_BATCH = 64
"""Images, as many as are judged together."""


class Row(NamedTuple):
    """One way of learning a scenario."""

    scenario: str
    stream_batch: int | None


ROWS = {
    "split-fashion-mnist, tasks": Row("split-fashion-mnist", None),
    "split-fashion-mnist, stream": Row("split-fashion-mnist", STREAM_BATCH),
    "rotated-fashion-mnist, tasks": Row("rotated-fashion-mnist", None),
    "rotated-fashion-mnist, stream": Row("rotated-fashion-mnist", STREAM_BATCH),
    "four-sets, tasks": Row("four-sets", None),
}


class Target(NamedTuple):
    """What a row is held against: the least accuracy and retention, the most forgetting, in percent and as a share."""

    accuracy: float | None = None
    forgetting: float | None = None
    retention: float | None = None
    least_retention: float | None = None


TARGETS = {
    "split-fashion-mnist, tasks": Target(forgetting=5.0, retention=0.95, least_retention=0.90),
    "rotated-fashion-mnist, tasks": Target(accuracy=88.9, forgetting=0.5, retention=0.99),
    "four-sets, tasks": Target(retention=1.0),
}

ADDED_RATIO = 0.08
"""Of the reference task model's parameters that a task may add."""


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    rows = {name: _run_row(name, options) for name in options.only}
    found = _detection(options)
    restart = _restart(options)
    document = _document(rows, found, restart, options)
    if options.write:
        write_document(document, "bench_continual")
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"one run on {QUICK_TRAIN} images a task; a minute")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="orders and seeds, from 0 (3)")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs = 1
    if options.write and (options.quick or set(options.only) != set(ROWS)):
        parser.error("--write is for all figures: leave out --only and --quick")
    return options


def _scenario(name: str, order: int, options: argparse.Namespace) -> tuple[Scenario, Inputs]:
    scenario = make_scenario(name, load, order=order)
    if options.quick:
        scenario = scenario.limited(QUICK_TRAIN, QUICK_TEST)
    say(f"{name}, order {order}: features")
    inputs = trunk_inputs(scenario, FeatureStore(platformdirs.user_cache_path("modulemesh") / "features"))
    for task in scenario.tasks:
        for part in (task.train, task.test):
            inputs(part.images)
    return scenario, inputs


def config_for(scenario: Scenario) -> LearnerConfig:
    """The defaults; of domains two are asked."""
    return LearnerConfig(
        setting=scenario.kind, router=RouterConfig(top_k=2 if scenario.kind == "domain-incremental" else 1)
    )


def _run_row(name: str, options: argparse.Namespace) -> list[tuple[RunResult, dict[str, int]]]:
    row = ROWS[name]
    runs = []
    for number in range(options.runs):
        scenario, inputs = _scenario(row.scenario, number, options)
        method = ContinualMethod(inputs, config_for(scenario), seed=number, stream_batch=row.stream_batch)
        began_s = time.perf_counter()
        result = run_scenario(method, scenario)
        accuracy, took_s = 100 * result.matrix.average_accuracy(), time.perf_counter() - began_s
        actions = Counter(decision.action for decision in method.decisions)
        say(f"{name}, seed {number}: {accuracy:.1f} in {took_s:.1f} s; {dict(actions)}")
        runs.append((result, dict(actions)))
    return runs


def _detection(options: argparse.Namespace) -> dict[str, Any]:
    """On the same scenarios, by what is known after each task but the last."""
    return {
        name: detection(*_scenario(name, 0, options), quick=options.quick)
        for name in ("split-fashion-mnist", "rotated-fashion-mnist")
    }


def _restart(options: argparse.Namespace) -> dict[str, Any]:
    """Half-way through the second task's first lesson the learner is saved, forgotten and read again."""
    scenario, inputs = _scenario("split-fashion-mnist", 0, options)
    config = config_for(scenario)

    def features(images: np.ndarray) -> torch.Tensor:
        return inputs(np.array(images))

    def learner() -> ContinualLearner:
        return ContinualLearner(features, config, seed=0)

    def taught(subject: ContinualLearner, number: int) -> None:
        subject.learn_task(scenario.tasks[number].train.images, scenario.tasks[number].train.labels)

    whole, stopped = learner(), learner()
    for subject in (whole, stopped):
        taught(subject, 0)
        taught(subject, 1)
    for _ in range(100):
        stopped.step()
    saved = stopped.to_bytes()
    began_s = time.perf_counter()
    stopped = ContinualLearner.from_bytes(saved, features, config, seed=0)
    restored_s = time.perf_counter() - began_s
    for subject in (whole, stopped):
        taught(subject, 2)
        subject.run()
    return {"equal": whole.to_bytes() == stopped.to_bytes(), "saved_kb": len(saved) / 1000, "restored_s": restored_s}


def _document(
    rows: Mapping[str, Any], found: Mapping[str, Any], restart: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    figures: dict[str, Any] = {name: _figures(runs) for name, runs in rows.items()}
    targets: dict[str, Any] = {}
    for name, target in TARGETS.items():
        if name in figures:
            targets |= _held_against(name, target, figures[name])
    added = max(figure["parameters_added_ratio"] for figure in figures.values())
    targets["parameters added by a task"] = {
        "target": f"<= {ADDED_RATIO:g}",
        "met": added <= ADDED_RATIO,
        "value": added,
    }
    for name, of_scenario in found.items():
        pure = of_scenario["relative"]["new_100_percent"]
        alarms = of_scenario["relative"]["known"]
        targets[f"{name}: detection of pure batches"] = {"target": ">= 0.95", "met": pure >= 0.95, "value": pure}
        targets[f"{name}: false alarms"] = {"target": "<= 0.01", "met": alarms <= 0.01, "value": alarms}
    targets["restart in the middle of a task"] = {
        "target": "equal to the bit",
        "met": restart["equal"],
        "value": restart["equal"],
    }
    figures["detection"] = found
    figures["restart"] = restart
    words = ["python scripts/bench_continual.py", *(["--quick"] if options.quick else [])]
    words += [f"--runs {options.runs}"] if not options.quick and options.runs != 3 else []
    measured = {
        "trunk": {"tap": TAP, "pixels": PIXELS},
        "stream_batch": STREAM_BATCH,
        "accuracy_matrices": {name: [result.matrix.rows() for result, _ in runs] for name, runs in rows.items()},
        "decisions": {name: [actions for _, actions in runs] for name, runs in rows.items()},
    }
    return bench_document(" ".join(words), range(options.runs), figures, targets=targets, measured=measured, digits=4)


def _figures(runs: Sequence[tuple[RunResult, Mapping[str, int]]]) -> dict[str, Any]:
    """Percent where it is an accuracy, means over the runs."""
    results = [result for result, _ in runs]

    def mean(value_of: Callable[[RunResult], float]) -> float:
        return spread([value_of(result) for result in results]).mean

    accuracy = spread([100 * result.matrix.average_accuracy() for result in results])
    added = [cost.parameters_added for result in results for cost in result.costs]
    return {
        "accuracy": accuracy.mean,
        "std": accuracy.deviation,
        "task_accuracy": mean(lambda result: 100 * result.task_matrix.average_accuracy()),
        "forgetting": mean(lambda result: 100 * result.matrix.forgetting()),
        "retention": mean(lambda result: result.matrix.mean_retention()),
        "least_retention": min(result.matrix.least_retention() for result in results),
        "kept_kb": max(cost.kept_bytes for result in results for cost in result.costs) / 1000,
        "sent_kb": mean(lambda result: sum(cost.sent_bytes for cost in result.costs) / 1000),
        "parameters": results[0].costs[-1].num_parameters,
        "parameters_added_ratio": max(added) / REFERENCE_PARAMETERS,
        "gflops": mean(lambda result: sum(cost.flops for cost in result.costs) / 1e9),
        "seconds": mean(lambda result: sum(cost.seconds for cost in result.costs)),
    }


def _held_against(name: str, target: Target, figure: Mapping[str, float]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for field, bound in target._asdict().items():
        if bound is not None:
            value, most = figure[field], field == "forgetting"
            held[f"{name}: {field}"] = {
                "target": f"{'<=' if most else '>='} {bound:g}",
                "met": value <= bound if most else value >= bound,
                "value": value,
            }
    return held


def _table(document: Mapping[str, Any]) -> str:
    figures = document["figures"]
    lines = [f"{'':<32} accuracy        forget  retain  least  kept kB  parameters  gflops"]
    for name, row in figures.items():
        if name in ROWS:
            std = "" if row["std"] is None else f" +- {row['std']:.2f}"
            lines.append(
                f"{name:<32} {row['accuracy']:6.2f}{std:<9} {row['forgetting']:6.2f} {row['retention']:7.3f} "
                f"{row['least_retention']:6.3f} {row['kept_kb']:8.0f} {row['parameters']:11,d} {row['gflops']:7.0f}"
            )
    for name, of_scenario in figures["detection"].items():
        for score, rates in of_scenario.items():
            words = ", ".join(f"{what} {rate:.3f}" for what, rate in rates.items())
            lines.append(f"judged new, {name}, {score}: {words}")
    lines.append("")
    for name, target in document["targets"].items():
        lines.append(f"{name}: {target['target']}: {'met' if target['met'] else 'MISSED'} ({target['value']})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
