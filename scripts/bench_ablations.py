"""One setting of the continual learner at a time, away from its default: what each is worth.

Rotated Fashion-MNIST, where experts are of domains and add most to the router, as tasks; as a stream, whose lessons are
updates with replay, for the settings of those; Split Fashion-MNIST for the number of experts. Each value is run on
three orders and seeds. A figure is average accuracy in percent on test images, and nothing was chosen by it: the
defaults come from `bench_continual_tuning.py`. Routers, taps and random features are in `bench_router.py`, the
regularisers and the number of experts of a joint mixture in `bench_mixture.py`, what is carried over and by which
scores in `bench_preservation.py`, averaging against one machine in `bench_averaging_accuracy.py` and
`bench_decentralised.py`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from bench_ablations_plot import draw
from bench_continual_rows import STREAM_BATCH
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import PIXELS, TAP, load

from experts.continual.replay_kinds import ReplayConfig
from experts.continual.settings import BeginsAs, LearnerConfig
from experts.evaluation.baselines.continual_learner import ContinualMethod
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import TrunkInputs
from experts.evaluation.metrics import spread
from experts.evaluation.runner import RunResult, kept_run, run_scenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from experts.evaluation.scenarios.split import split_by_class
from experts.evaluation.suite.methods import learner_config
from experts.evaluation.suite.trunk import trunk_inputs
from meshnode.errors import ExitCode

DEFAULT = "default"

TRAIN = 20_000
"""Images of Split Fashion-MNIST, as in all benchmarks of it."""

FEW = 400
"""Images of a task, of which there are too few to learn all from them."""

QUICK_TRAIN, QUICK_TEST = 4000, 1000
"""Images of all tasks together."""

Change = Callable[[LearnerConfig], LearnerConfig]


class Knob(NamedTuple):
    """A setting and the values it is run with beside the default."""

    scenario: str
    values: Mapping[str, Change]
    is_stream: bool = False
    train: int | None = None
    """Images a task, at most; None for all."""


def _distilling(**changes: Any) -> Change:
    return lambda config: replace(config, distillation=replace(config.distillation, **changes))


def _routing(**changes: Any) -> Change:
    return lambda config: replace(config, router=replace(config.router, **changes))


def _remembering(**changes: Any) -> Change:
    return lambda config: replace(config, replay=ReplayConfig(**changes))


def _beginning(rule: BeginsAs) -> Change:
    return lambda config: replace(config, begins_as=rule)


def _unchanged(config: LearnerConfig) -> LearnerConfig:
    return config


ROTATED = "rotated-fashion-mnist"

KNOBS: Mapping[str, Knob] = {
    "alpha": Knob(ROTATED, {f"{alpha:g}": _distilling(alpha=alpha) for alpha in (0.0, 0.3, 0.8, 1.0)}),
    "temperature": Knob(ROTATED, {f"{value:g}": _distilling(temperature=value) for value in (1.0, 4.0, 8.0)}),
    "tau": Knob(ROTATED, {f"{tau:g}": _routing(tau=tau) for tau in (0.3, 3.0, 10.0)}),
    "top_k": Knob(ROTATED, {str(top_k): _routing(top_k=top_k) for top_k in (1, 3, 5)}),
    "gamma": Knob(ROTATED, {f"{gamma:g}": _distilling(gamma=gamma) for gamma in (0.0, 0.3, 3.0)}, is_stream=True),
    "replay_kb": Knob(
        ROTATED,
        {str(kb): _remembering(max_bytes=1000 * kb) for kb in (16, 80, 160, 800)},
        is_stream=True,
    ),
    "replay_kind": Knob(ROTATED, {kind: _remembering(kind=kind) for kind in ("reservoir", "herding")}, is_stream=True),
    "begins_as": Knob(ROTATED, {"informed": _beginning("informed"), "random": _beginning("random")}, train=FEW),
    "experts": Knob("split-fashion-mnist", {str(10 // each): _unchanged for each in (1, 5, 10)}),
}
"""``begins_as`` on few images, where a beginning makes a difference; ``experts`` by the number of tasks that the ten
classes are cut into, each of which has an expert."""

CLASSES_PER_TASK = {"10": 1, "2": 5, "1": 10, DEFAULT: 2}


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    began_s = time.perf_counter()
    runs: dict[str, dict[str, list[RunResult]]] = {}
    alone: dict[str, list[RunResult]] = {}
    for number in range(options.runs):
        for name in options.only:
            for value, results in _run_knob(name, number, options).items():
                runs.setdefault(name, {}).setdefault(value, []).append(results)
        for scenario in dict.fromkeys(KNOBS[name].scenario for name in options.only):
            alone.setdefault(scenario, []).append(_argmax_alone(scenario, number, options))
    document = _document(runs, alone, options, time.perf_counter() - began_s)
    if options.write:
        draw(document, write_document(document, "bench_ablations").with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"one run on {QUICK_TRAIN} images; two minutes")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/, with a plot")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="orders and seeds, from 0 (3)")
    parser.add_argument("--only", nargs="+", choices=KNOBS, default=list(KNOBS), metavar="SETTING")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="keep finished runs there, and go on from them")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs = 1
    if options.write and (options.quick or set(options.only) != set(KNOBS)):
        parser.error("--write is for all settings: leave out --only and --quick")
    return options


def _run_knob(name: str, number: int, options: argparse.Namespace) -> dict[str, RunResult]:
    """Each value of a setting on one order; the default's run serves all settings of the same scenario and way."""
    knob, results = KNOBS[name], {}
    for value, change in {DEFAULT: _unchanged, **knob.values}.items():
        scenario = _scenario(knob.scenario, number, value if name == "experts" else DEFAULT, options)
        if knob.train is not None:
            scenario = scenario.limited(knob.train, max(len(task.test) for task in scenario.tasks))
        began_s = time.perf_counter()
        results[value] = _learned(scenario, change, number, options, is_stream=knob.is_stream)
        accuracy, took_s = 100 * results[value].matrix.average_accuracy(), time.perf_counter() - began_s
        say(f"{name} {value}, order {number}: {accuracy:.2f} in {took_s:.1f} s")
    return results


def _learned(
    scenario: Scenario, change: Change, number: int, options: argparse.Namespace, *, is_stream: bool
) -> RunResult:
    config = change(learner_config(scenario))
    batch = STREAM_BATCH if is_stream else None
    terms = ("learner", scenario.digest(), str(config), str(batch), str(number), TAP, str(PIXELS))

    def run() -> RunResult:
        method = ContinualMethod(_inputs(scenario), config, seed=number, stream_batch=batch)
        return run_scenario(method, scenario)

    return _once(terms, run, options.resume)


def _argmax_alone(name: str, number: int, options: argparse.Namespace) -> RunResult:
    """The router without experts, beside them."""
    scenario = _scenario(name, number, DEFAULT, options)
    terms = ("argmax", scenario.digest(), TAP, str(PIXELS))
    return _once(
        terms, lambda: run_scenario(RouterArgmax(_inputs(scenario), learner_config(scenario).router), scenario), None
    )


_ran: dict[tuple[str, ...], RunResult] = {}


def _once(terms: tuple[str, ...], run: Callable[[], RunResult], folder: Path | None) -> RunResult:
    if terms not in _ran:
        _ran[terms] = kept_run(folder, terms, run)
    return _ran[terms]


def _inputs(scenario: Scenario) -> TrunkInputs:
    """Features, computed before anything is timed or read from the disk."""
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    return trunk_inputs(scenario, store, tap=TAP, pixels=PIXELS)


def _scenario(name: str, number: int, experts: str, options: argparse.Namespace) -> Scenario:
    """One order of a scenario; of Split Fashion-MNIST with as many tasks as there are to be experts."""
    if experts == DEFAULT:
        scenario = make_scenario(name, load, order=number)
    else:
        train, test = load("fashion-mnist")
        classes = [label for task in make_scenario(name, load, order=number).tasks for label in task.classes]
        parts = train.select(range(TRAIN)), test
        scenario = split_by_class(f"{name}, {experts}", parts, classes, classes_per_task=CLASSES_PER_TASK[experts])
    tasks = len(scenario.tasks)
    return scenario.limited(QUICK_TRAIN // tasks, QUICK_TEST // tasks) if options.quick else scenario


def _document(
    runs: Mapping[str, Mapping[str, Sequence[RunResult]]],
    alone: Mapping[str, Sequence[RunResult]],
    options: argparse.Namespace,
    seconds: float,
) -> dict[str, Any]:
    figures = {
        name: {value: _figures(results, values[DEFAULT]) for value, results in values.items()}
        for name, values in runs.items()
    }
    only = f" --only {' '.join(options.only)}" if set(options.only) != set(KNOBS) else ""
    return bench_document(
        f"python scripts/bench_ablations.py{' --quick' if options.quick else ''}{only}",
        range(options.runs),
        {**figures, "argmax_alone": {name: _figures(results, results) for name, results in alone.items()}},
        measured={
            "trunk": {"tap": TAP, "pixels": PIXELS},
            "scenarios": {name: _words(KNOBS[name]) for name in runs},
            "accuracy_matrices": {
                name: {value: [result.matrix.rows() for result in results] for value, results in values.items()}
                for name, values in runs.items()
            },
            "seconds": seconds,
        },
        digits=4,
    )


def _words(knob: Knob) -> str:
    few = "" if knob.train is None else f", {knob.train} images a task"
    return f"{knob.scenario}{', stream' * knob.is_stream}{few}"


def _figures(results: Sequence[RunResult], defaults: Sequence[RunResult]) -> dict[str, float | None]:
    """Points over the default are of pairs of runs on the same order."""
    accuracies = [100 * result.matrix.average_accuracy() for result in results]
    pairs = zip(accuracies, (100 * result.matrix.average_accuracy() for result in defaults), strict=True)
    is_sequence = len(results[0].costs) > 1  # one expert for all classes has nothing to forget
    gain = spread([ours - default for ours, default in pairs])
    return {
        "accuracy": spread(accuracies).mean,
        "std": spread(accuracies).deviation,
        "over_default": gain.mean,
        "over_default_std": gain.deviation,
        "forgetting": 100 * statistics.fmean(result.matrix.forgetting() for result in results) if is_sequence else None,
        "parameters": statistics.fmean(result.costs[-1].num_parameters for result in results),
        "kept_kb": max(cost.kept_bytes for result in results for cost in result.costs) / 1000,
    }


def _table(document: Mapping[str, Any]) -> str:
    lines = [f"{'setting':14} {'value':>10} {'accuracy %':>16} {'over the default':>18} {'forgetting':>11}"]
    for name, values in document["figures"].items():
        where = document["measured"]["scenarios"].get(name)
        lines += ["", f"{name}  ({where})" if where else name]
        for value, row in values.items():
            accuracy = _with_spread(row["accuracy"], row["std"], "")
            gain = _with_spread(row["over_default"], row["over_default_std"], "+")
            forgetting = "-" if row["forgetting"] is None else f"{row['forgetting']:.2f}"
            lines.append(f"{'':14} {value:>10} {accuracy:>16} {gain:>18} {forgetting:>11}")
    return "\n".join(lines)


def _with_spread(mean: float, deviation: float | None, sign: str) -> str:
    return f"{mean:{sign}.2f}" + ("" if deviation is None else f" +- {deviation:.2f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
