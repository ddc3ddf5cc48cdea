"""Methods of continual learning on five scenarios: accuracy, forgetting, retention, memory, parameters, FLOPs.

Three runs of each, every one with another order of classes, tasks or images, and another seed. Experts and the router
stand on tap B4 at 64 pixels, calibrated on the first task; on the first scenario they do so once more on E5, which a
node has by default. No setting was chosen on a test image: see `experts.evaluation.suite`. Two more scenarios repeat
protocols of Mammoth (github.com/aimagelab/mammoth) on raw pixels, whose figures ours are held against. A cell is one
method on one order of one scenario: with --resume each is kept as it is finished, and may be made in any order, by
--only and --methods. With these --write replaces the rows in question and leaves the others as they are. The exit code
is 0 if every target is met, 10 if one is missed.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios_plot import draw
from bench_scenarios_targets import (
    ON_NODES_TRUNK,
    PROTOCOL,
    PROTOCOLS,
    ROTATED_AS_HARD,
    ROTATED_DRAWS,
    ROTATED_PROTOCOL,
    SEEDS,
    SPLIT,
    as_hard,
    targets_of,
)

from experts.data.dataset import ImageDataset
from experts.data.named import load_named
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import TrunkInputs
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from experts.evaluation.suite.method import Method
from experts.evaluation.suite.methods import (
    EXPERT_STEPS,
    METHOD_NAMES,
    ROUTED,
    on_features,
    on_pixels,
    published,
    same_bytes,
)
from experts.evaluation.suite.settings import CLASSES_ON_E5, SAME_BYTES, TUNED, Given
from experts.evaluation.suite.table import MethodTable
from experts.evaluation.suite.trunk import trunk_inputs
from meshnode.datasets import find_dataset
from meshnode.errors import ExitCode

NAME = "bench_scenarios"

TAP, PIXELS = "B4", 64

_ByRow = Mapping[str, Mapping[str, Any]]
"""Of each scenario, by the row of a method, or by input."""

SCENARIOS = (
    SPLIT,
    ON_NODES_TRUNK,
    "rotated-fashion-mnist",
    "split-mnist-5k",
    "split-digits",
    "four-sets",
    *PROTOCOLS,
)

RUNS = 3

QUICK_TRAIN, QUICK_TEST = 300, 200
"""Images a task."""

QUICK_STEPS = 300
"""Of distillation for each expert."""

ROWS = [f"{name}, {on}" for on in ("pixels", "trunk") for name in METHOD_NAMES]


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    studies: dict[str, _Study] = {}
    for name in options.only:
        studies[name] = _run_all(name, options)
        if name == ROTATED_PROTOCOL and not options.quick:
            studies |= _as_hard(studies[name].table, options)
    document = _document(studies, options)
    if options.write:
        draw(document, write_document(document, NAME).with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"one run on {QUICK_TRAIN} images a task; a minute")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/, with a plot")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"orders and seeds, from 0 ({RUNS})")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=ROWS,
        metavar="NAME",
        help="these alone, such as 'EWC, pixels', and what they are told against",
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="keep finished runs there, and go on from them")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs = 1
    if options.write and (options.quick or options.runs != RUNS):
        parser.error(f"--write is for {RUNS} runs on all images: leave out --runs and --quick")
    return options


@dataclass(frozen=True, slots=True)
class _Study:
    """What one scenario gave."""

    table: MethodTable
    sgd_task_accuracy: list[float]
    """Of `SEEDS` runs, on the protocol in label order; elsewhere none."""
    draw: int | None = None
    """Of angles, where there is one alone."""


def _run_all(name: str, options: argparse.Namespace) -> _Study:
    """All methods on all orders of one scenario."""
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    table = MethodTable(terms=(tap_of(name), str(PIXELS)), folder=options.resume, tell=say)
    draws = ROTATED_DRAWS if name == ROTATED_PROTOCOL and not options.quick else options.runs
    for number in range(draws):
        scenario = scenario_of(name, order=0 if name == PROTOCOL else number)
        if options.quick:
            scenario = scenario.limited(QUICK_TRAIN, QUICK_TEST)
        say(f"{name}, order {number}")
        inputs = None if name in PROTOCOLS else trunk_inputs(scenario, store, tap=tap_of(name), pixels=PIXELS)
        given = _once(given_of(name, scenario)) if options.quick else given_of(name, scenario)
        methods = _methods(scenario, inputs, given, options)
        beside = None if inputs is None else functools.partial(_same_bytes, scenario, inputs, given, options)
        table.run_order(scenario, methods, number, same_bytes=beside)
    sgd_runs = list(table.runs.get("SGD, pixels", ())) if name == PROTOCOL else []
    if sgd_runs:
        sgd_runs += [table.run(methods[0], scenario, seed) for seed in range(options.runs, SEEDS)]
    return _Study(table, [100 * run.task_matrix.average_accuracy() for run in sgd_runs])


def _as_hard(draws: MethodTable, options: argparse.Namespace) -> dict[str, _Study]:
    """The rotated protocol on one draw with many seeds, the last step of a rate of .2 being worth some points."""
    sgd_runs = draws.runs.get("SGD, pixels", ())
    if not sgd_runs:
        return {}
    draw = as_hard([100 * run.matrix.average_accuracy() for run in sgd_runs])
    scenario = make_scenario(ROTATED_PROTOCOL, load, order=draw)
    table = MethodTable(terms=(TAP, str(PIXELS)), folder=options.resume, tell=say)
    for seed in range(SEEDS):
        say(f"{ROTATED_PROTOCOL}, draw {draw}, seed {seed}")
        table.run_order(scenario, _methods(scenario, None, {}, options), seed)
    return {ROTATED_AS_HARD: _Study(table, [], draw=draw)}


def _methods(scenario: Scenario, inputs: TrunkInputs | None, given: Given, options: argparse.Namespace) -> list[Method]:
    """Those that are asked for, with the networks that others' forgetting and forward transfer are told against, and
    the experts that another one is to keep as many bytes as."""
    if inputs is None:
        methods = published(scenario)
    else:
        steps = QUICK_STEPS if options.quick else EXPERT_STEPS
        methods = on_pixels(scenario, given=given, expert_steps=steps) if "pixels" in given else []
        methods += on_features(scenario, inputs, given=given, expert_steps=steps)
    if options.methods is None:
        return methods
    rows = set(options.methods)
    inputs_read = {row.rpartition(", ")[2] for row in rows}
    rows |= {f"{name}, {on}" for name in ("SGD", "joint") for on in inputs_read}
    if any(row.startswith(SAME_BYTES) for row in rows):
        rows.add(f"{ROUTED}, trunk")
    return [method for method in methods if method.row in rows]


def _same_bytes(
    scenario: Scenario, inputs: TrunkInputs, given: Given, options: argparse.Namespace, kept_bytes: int
) -> list[Method]:
    methods = same_bytes(scenario, inputs, kept_bytes, given=given)
    return [method for method in methods if options.methods is None or method.row in options.methods]


def scenario_of(name: str, order: int = 0) -> Scenario:
    """What one of `SCENARIOS` learns."""
    return make_scenario(SPLIT if name == ON_NODES_TRUNK else name, load, order=order)


def tap_of(name: str) -> str:
    """What the trunk of one of `SCENARIOS` is."""
    return "E5" if name == ON_NODES_TRUNK else TAP


def given_of(name: str, scenario: Scenario) -> Given:
    """What the networks of one of `SCENARIOS` are run with; on a second trunk pixels need no second run."""
    return {"trunk": CLASSES_ON_E5} if name == ON_NODES_TRUNK else TUNED[scenario.kind]


def _once(given: Given) -> Given:
    """With the fewest passes."""
    return {
        on: {name: dataclasses.replace(settings, passes=1) for name, settings in of_input.items()}
        for on, of_input in given.items()
    }


@functools.cache
def load(name: str) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part of a data set, wherever it is on this machine."""
    return load_named(name, find_dataset(name))


def _document(studies: Mapping[str, _Study], options: argparse.Namespace) -> dict[str, Any]:
    """Of what was measured; if it is to be written, of all rows, those that were not measured now as they were."""
    by_row: dict[str, _ByRow] = {
        "figures": {name: study.table.figures() for name, study in studies.items()},
        "settings": {name: study.table.settings for name, study in studies.items()},
        "untrained": {name: study.table.untrained for name, study in studies.items()},
        "accuracy_matrices": {name: study.table.accuracy_matrices() for name, study in studies.items()},
    }
    sgd_task = [accuracy for study in studies.values() for accuracy in study.sgd_task_accuracy]
    draws = {name: study.draw for name, study in studies.items() if study.draw is not None}
    command = f"python scripts/{NAME}.py"
    parts = [f"--only {' '.join(options.only)}"] if set(options.only) != set(SCENARIOS) else []
    parts += [f"--methods {' '.join(map(repr, options.methods))}"] if options.methods else []
    if parts and options.write:
        before = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
        there = {"figures": before["figures"], **before["measured"]}
        # Rows on another draw would be of other images than those beside them.
        moved = [name for name in draws if draws[name] != there["draw"].get(name)]
        kept = {part: {name: rows for name, rows in there[part].items() if name not in moved} for part in by_row}
        by_row = {part: replaced(kept[part], now) for part, now in by_row.items()}
        sgd_task, draws = sgd_task or there["sgd_task_accuracy"], {**there["draw"], **draws}
    else:
        fewer = [f"--runs {options.runs}"] if not options.quick and options.runs != RUNS else []
        command = " ".join([command, *(["--quick"] if options.quick else []), *fewer, *parts])
    figures = by_row.pop("figures")
    most = max((len(runs) for rows in by_row["accuracy_matrices"].values() for runs in rows.values()), default=0)
    taps = {name: tap_of(name) for name in figures if name in SCENARIOS and name not in PROTOCOLS}
    measured = {
        "trunk": {"taps": taps, "pixels": PIXELS},
        **by_row,
        "sgd_task_accuracy": sgd_task,
        "draw": draws,
    }
    targets, seeds = targets_of(figures, sgd_task), range(max(most, len(sgd_task)))
    return bench_document(command, seeds, figures, targets=targets, measured=measured, digits=4)


def replaced(there: _ByRow, now: _ByRow) -> dict[str, Mapping[str, Any]]:
    """All scenarios in their order, with the rows that there are now in place of those that were there."""
    names = [name for name in (*SCENARIOS, ROTATED_AS_HARD) if name in there or name in now]
    return {name: {**there.get(name, {}), **now.get(name, {})} for name in names}


def _table(document: Mapping[str, Any]) -> str:
    lines = []
    for name, rows in document["figures"].items():
        lines += [
            "",
            f"{name:<32}  accuracy         task-IL          forget excess retain least  kept kB  parameters  gflops",
        ]
        for row, of_row in rows.items():
            lines.append(
                f"{row:<32} {_with_std(of_row['accuracy'], of_row['std'])} "
                f"{_with_std(of_row['task_accuracy'], of_row['task_std'])} "
                f"{of_row['forgetting']:7.2f} {of_row['excess_forgetting']:6.2f} "
                f"{of_row['retention']:6.3f} {of_row['least_retention']:5.2f} {of_row['kept_kb']:8.0f} "
                f"{of_row['parameters']:11,d} {of_row['gflops']:7.0f}"
            )
    lines.append("")
    for name, target in document["targets"].items():
        lines.append(f"{name}: {target['target']}: {'met' if target['met'] else 'MISSED'} ({target['points']})")
    return "\n".join(lines[1:])


def _with_std(value: float, deviation: float | None) -> str:
    return f"{value:6.2f}{'' if deviation is None else f' +- {deviation:.2f}':<9}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
