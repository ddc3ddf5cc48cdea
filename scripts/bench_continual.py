"""Continual learning on one machine: accuracy, forgetting, what was decided, detection of new tasks, restarts.

Split Fashion-MNIST in three class orders, as tasks and as a stream in batches of 64 of which nobody says where a task
begins, beside a network retrained on everything seen; rotated Fashion-MNIST, whose domains are found by distance; four
data sets as told tasks, with all labels and with one in ten, beside a reference CNN for each task. The exit code is 0
if every target is met, 10 if one is missed.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_continual_detection import detection
from bench_continual_plot import draw
from bench_continual_rows import QUICK_ROWS, ROWS, STREAM_BATCH, TAPS, Sizes, prepared
from bench_continual_targets import targets_of
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import PIXELS, QUICK_TEST

from experts.continual.learner import ContinualLearner
from experts.continual.sizing import REFERENCE_PARAMETERS
from experts.evaluation.baselines.continual_learner import ContinualMethod
from experts.evaluation.baselines.task_networks import TaskNetworks
from experts.evaluation.metrics import spread
from experts.evaluation.runner import RunResult, run_scenario
from experts.evaluation.suite.methods import learner_config
from meshnode.errors import ExitCode

QUICK = Sizes(train=800, test=QUICK_TEST, epochs=3)


class Run(NamedTuple):
    """One run of a row."""

    result: RunResult
    tasks: tuple[str, ...]
    """Their names, in the order in which they came."""
    decisions: Mapping[str, int]
    best_epochs: tuple[int, ...]
    """Of networks that are trained to their best one; else empty."""


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    began_s = time.perf_counter()
    rows = {name: _run_row(name, options) for name in options.only}
    found = {name: detection(*prepared(name, 0, options.sizes), quick=options.quick) for name in _detected(options)}
    document = _document(rows, found, _restart(options), options, began_s)
    if options.write:
        draw(document, write_document(document, "bench_continual").with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    quick = f"one run on {QUICK.train} images a task of one row of each scenario; a minute"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/, with a plot")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="orders and seeds, from 0 (3)")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="these rows (all; a few with --quick)")
    options = parser.parse_args(arguments)
    if options.write and (options.quick or options.only is not None):
        parser.error("--write is for all figures: leave out --only and --quick")
    if options.quick:
        options.runs = 1
    options.is_part = options.only is not None
    options.only = options.only or list(QUICK_ROWS if options.quick else ROWS)
    options.sizes = QUICK if options.quick else Sizes()
    return options


def _detected(options: argparse.Namespace) -> tuple[str, ...]:
    """The scenarios on whose images new tasks are detected."""
    named = ("split-fashion-mnist", "rotated-fashion-mnist")
    return tuple(name for name in named if any(ROWS[row].scenario == name for row in options.only))


def _run_row(name: str, options: argparse.Namespace) -> list[Run]:
    row = ROWS[name]
    runs = []
    for number in range(options.runs):
        scenario, inputs = prepared(row.scenario, number, options.sizes)
        method = row.make(scenario, inputs, number, options.sizes)
        began_s = time.perf_counter()
        result = run_scenario(method, scenario)
        accuracy, took_s = 100 * result.matrix.average_accuracy(), time.perf_counter() - began_s
        decisions = method.decisions if isinstance(method, ContinualMethod) else []
        actions = dict(Counter(str(decision.action) for decision in decisions))
        best = tuple(method.best_epochs) if isinstance(method, TaskNetworks) else ()
        say(f"{name}, seed {number}: {accuracy:.1f} in {took_s:.1f} s; {actions or best or ''}")
        runs.append(Run(result, tuple(task.name for task in scenario.tasks), actions, best))
    return runs


def _restart(options: argparse.Namespace) -> dict[str, Any]:
    """Half-way through the second task's first lesson the learner is saved, forgotten and read again."""
    scenario, inputs = prepared("split-fashion-mnist", 0, options.sizes)
    config = learner_config(scenario)

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
    rows: Mapping[str, Sequence[Run]],
    found: Mapping[str, Any],
    restart: Mapping[str, Any],
    options: argparse.Namespace,
    began_s: float,
) -> dict[str, Any]:
    figures: dict[str, Any] = {name: _figures(name, rows) for name in rows}
    figures |= {"detection": found, "restart": restart}
    words = ["python scripts/bench_continual.py", *(["--quick"] if options.quick else [])]
    words += [f"--runs {options.runs}"] if not options.quick and options.runs != 3 else []
    words += [f"--only {' '.join(repr(name) for name in options.only)}"] if options.is_part else []
    measured = {
        "trunk": {"taps": TAPS, "pixels": PIXELS},
        "stream_batch": STREAM_BATCH,
        "accuracy_matrices": {name: [run.result.matrix.rows() for run in runs] for name, runs in rows.items()},
        "decisions": {name: [run.decisions for run in runs] for name, runs in rows.items() if ROWS[name].is_ours},
        "best_epochs": {name: [run.best_epochs for run in runs] for name, runs in rows.items() if runs[0].best_epochs},
        "seconds": time.perf_counter() - began_s,
    }
    targets = targets_of(figures)
    return bench_document(" ".join(words), range(options.runs), figures, targets=targets, measured=measured, digits=4)


def _figures(name: str, rows: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Percent where it is an accuracy, means over the runs."""
    runs = rows[name]
    results = [run.result for run in runs]

    def mean(value_of: Callable[[RunResult], float]) -> float:
        return spread([value_of(result) for result in results]).mean

    accuracy = spread([100 * result.matrix.average_accuracy() for result in results])
    costs = [cost for result in results for cost in result.costs]
    joint = rows.get(f"{ROWS[name].scenario}, joint")
    return {
        "accuracy": accuracy.mean,
        "std": accuracy.deviation,
        "task_accuracy": mean(lambda result: 100 * result.task_matrix.average_accuracy()),
        "forgetting": mean(lambda result: 100 * result.matrix.forgetting()),
        "excess_forgetting": None if joint is None else _excess(runs, joint),
        "retention": mean(lambda result: result.matrix.mean_retention()),
        "least_retention": min(result.matrix.least_retention() for result in results),
        "first_order": {
            "accuracy": 100 * results[0].matrix.average_accuracy(),
            "forgetting": 100 * results[0].matrix.forgetting(),
            "retention": results[0].matrix.mean_retention(),
            "least_retention": results[0].matrix.least_retention(),
        },
        "error_by_task": _errors(runs),
        "decisions": dict(sum((Counter(run.decisions) for run in runs), Counter())),
        "kept_kb": max(cost.kept_bytes for cost in costs) / 1000,
        "sent_kb": mean(lambda result: sum(cost.sent_bytes for cost in result.costs) / 1000),
        "parameters": results[0].costs[-1].num_parameters,
        "parameters_added_ratio": max(cost.parameters_added for cost in costs) / REFERENCE_PARAMETERS,
        "gflops": mean(lambda result: sum(cost.flops for cost in result.costs) / 1e9),
        "seconds": mean(lambda result: sum(cost.seconds for cost in result.costs)),
    }


def _excess(runs: Sequence[Run], joint: Sequence[Run]) -> float:
    """Points beyond the forgetting of the network that is trained on everything seen at each step."""
    pairs = zip(runs, joint, strict=True)
    return spread([100 * run.result.matrix.excess_forgetting(other.result.matrix) for run, other in pairs]).mean


def _errors(runs: Sequence[Run]) -> dict[str, float] | None:
    """Percent wrong in the end on each task, where all runs have the same ones, in whatever order."""
    if len({frozenset(run.tasks) for run in runs}) > 1:
        return None
    last: dict[str, list[float]] = {}
    for run in runs:
        for name, accuracy in zip(run.tasks, run.result.matrix.row(len(run.tasks) - 1), strict=True):
            last.setdefault(name, []).append(100 * (1 - accuracy))
    return {name: spread(errors).mean for name, errors in sorted(last.items())}


def _table(document: Mapping[str, Any]) -> str:
    figures = document["figures"]
    lines = [f"{'':<31} accuracy        forget excess  retain  least  added  kept kB parameters  gflops  decisions"]
    for name, row in figures.items():
        if name not in ROWS:
            continue
        std = "" if row["std"] is None else f" +- {row['std']:.2f}"
        excess = "" if row["excess_forgetting"] is None else f"{row['excess_forgetting']:.2f}"
        decisions = ", ".join(f"{count} {action}" for action, count in row["decisions"].items())
        lines.append(
            f"{name:<31} {row['accuracy']:6.2f}{std:<9} {row['forgetting']:6.2f} {excess:>6} {row['retention']:7.3f} "
            f"{row['least_retention']:6.3f} {row['parameters_added_ratio']:6.1%} {row['kept_kb']:8.0f} "
            f"{row['parameters']:10,d} {row['gflops']:7.0f}  {decisions}".rstrip()
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
