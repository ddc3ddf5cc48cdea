"""How the settings of networks and experts were chosen: on held-out training images alone.

Each task gives up 15% of its training images; candidates learn the rest and are tested on those. No test image is read.
Every method that trains a network has the same budget, at most six settings and then the best of them with more passes
over a task, and one run of each on a scenario. Figures are average accuracy
in percent by method and candidate: what differs by less than some tenths is a draw. With --only or --methods, --write
replaces the rows in question and leaves the others as they are. The exit code is 0 if every chosen candidate is within
half a point of the best, 10 otherwise.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import PIXELS, QUICK_TEST, QUICK_TRAIN, ROWS, given_of, scenario_of, tap_of
from bench_scenarios_targets import ON_NODES_TRUNK, SPLIT

from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import FlatPixelInputs, TrunkInputs
from experts.evaluation.runner import kept_run, run_scenario
from experts.evaluation.scenarios.base import Kind, Scenario
from experts.evaluation.suite.method import Input, Method
from experts.evaluation.suite.methods import EXPERT_STEPS, PROJECTED_RIDGE, VECTOR_SIDE, projected_ridge, routed
from experts.evaluation.suite.networks import (
    fewest_passes,
    head_setup,
    joint,
    network_method,
    pixel_inputs,
    pixel_setup,
    to_the_end,
)
from experts.evaluation.suite.settings import EXPERT_HIDDEN, SAME_BYTES, Given, Settings
from experts.evaluation.suite.trunk import trunk_inputs
from meshnode.errors import ExitCode

NAME = "bench_scenarios_tuning"

HELD_OUT = 0.15
SEED = 0
WITHIN = 0.5
"""Points."""

SCENARIOS = (SPLIT, ON_NODES_TRUNK, "rotated-fashion-mnist", "four-sets")
"""One a kind, which others of the kind take over, and one on a second trunk."""

BUDGET = 6
"""Settings that a method is given, at most, before `LONGER`."""

LONGER = ((4, 1.0), (4, 0.3), (16, 0.3))
"""Passes over a task, as `Settings.passes`, and the factor of the rate, that the best of the six is tried with
besides."""

MOST_PASSES = 24
"""In all, as many as experts have over a domain of 4,000 images."""

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the projected ridge, which sees every image once and has no passes."""

SAME_ITEMS = {"B4": 1000, "E5": 11_400}
"""Kept by `SAME_BYTES` here, by tap, about as many as there: statistics grow with the square of the features."""


def _by_rate(*rates: float) -> list[Settings]:
    return [Settings(lr=rate) for rate in rates]


def _by_strength(rates: Sequence[float], strengths: Sequence[float]) -> list[Settings]:
    return [Settings(lr=rate, strength=strength) for rate, strength in itertools.product(rates, strengths)]


def _dark(*rates: float) -> list[Settings]:
    weights = ((0.2, 1.0, 10), (0.2, 1.0, 32), (0.5, 0.5, 32))
    return [
        Settings(lr=rate, alpha=alpha, beta=beta, replay_size=size)
        for rate, (alpha, beta, size) in itertools.product(rates, weights)
    ]


def _distilled(*rates: float) -> list[Settings]:
    return [Settings(lr=rate, alpha=alpha) for rate, alpha in itertools.product(rates, (0.0, 0.2))]


CANDIDATES: Mapping[str, Sequence[Settings]] = {
    "SGD": _by_rate(0.001, 0.003, 0.01, 0.03, 0.1, 0.2),
    "EWC": _by_strength((0.003, 0.01), (300.0, 1000.0, 3000.0)),
    "LwF": _by_strength((0.0001, 0.0003, 0.001), (1.0, 3.0)),
    "iCaRL 200": _by_rate(0.03, 0.1, 0.3, 1.0, 2.0, 4.0),
    "iCaRL 500": _by_rate(0.03, 0.1, 0.3, 1.0, 2.0, 4.0),
    "ER 200": _by_rate(0.001, 0.003, 0.01, 0.03, 0.1, 0.2),
    "ER 500": _by_rate(0.001, 0.003, 0.01, 0.03, 0.1, 0.2),
    "DER++ 200": _dark(0.03, 0.1),
    "DER++ 500": _dark(0.03, 0.1),
    SAME_BYTES: _dark(0.03, 0.1),
    "monolithic distillation": _distilled(0.0003, 0.001, 0.003),
    "mixture of experts": _by_strength((0.01, 0.03), (0.1, 0.3, 1.0)),
}
"""What each method that learns from a stream is given where `ELSEWHERE` has nothing else; what it is run with is
one of these or of what `LONGER` makes of the best of them."""

ELSEWHERE: Mapping[tuple[Input, Kind], Mapping[str, Sequence[Settings]]] = {
    ("pixels", "class-incremental"): {
        "EWC": _by_strength((0.01, 0.03), (10.0, 30.0, 100.0)),
        "LwF": _by_strength((0.003, 0.01, 0.03), (1.0, 3.0)),
        "monolithic distillation": _distilled(0.003, 0.01, 0.03),
    },
    ("pixels", "domain-incremental"): {
        "EWC": _by_strength((0.01, 0.03), (1.0, 10.0, 100.0)),
        "LwF": _by_strength((0.01, 0.03), (1.0, 3.0, 10.0)),
        SAME_BYTES: _dark(0.1, 0.2),
        "monolithic distillation": _distilled(0.003, 0.01, 0.03),
    },
    ("pixels", "task-incremental"): {
        "EWC": _by_strength((0.03, 0.1), (30.0, 100.0, 300.0)),
        "LwF": _by_strength((0.01, 0.03), (0.1, 0.3, 1.0)),
        "monolithic distillation": _distilled(0.003, 0.01, 0.03),
        "mixture of experts": _by_strength((0.03, 0.1), (0.1, 0.3, 1.0)),
    },
    ("trunk", "domain-incremental"): {
        "EWC": _by_strength((0.01, 0.03), (30.0, 100.0, 300.0)),
        "LwF": _by_strength((0.003, 0.01), (1.0, 3.0, 10.0)),
        "DER++ 500": _dark(0.1, 0.2),
        SAME_BYTES: _dark(0.1, 0.2),
        "monolithic distillation": _distilled(0.003, 0.01, 0.03),
        "mixture of experts": _by_strength((0.03, 0.1), (0.03, 0.1, 0.3)),
    },
    ("trunk", "task-incremental"): {
        "EWC": _by_strength((0.01, 0.03), (1.0, 10.0, 100.0)),
        "LwF": _by_strength((0.003, 0.01), (0.03, 0.1, 0.3)),
        "monolithic distillation": _distilled(0.003, 0.01, 0.03),
        "mixture of experts": _by_strength((0.03, 0.1), (0.1, 0.3, 1.0)),
    },
}
"""Other candidates, where old classes come again or old tasks are told: what holds a network still is to hold less."""


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"on {QUICK_TRAIN} images a task")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=ROWS, metavar="NAME", help="these alone, such as 'EWC, pixels'")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="keep finished runs there, and go on from them")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for all images: leave out --quick")
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    targets: dict[str, Any] = {}
    for name in options.only:
        scenario, inputs = _held_out(name, quick=options.quick)
        for study in _studies(scenario, inputs, given_of(name, scenario), SAME_ITEMS[tap_of(name)]):
            if options.methods is not None and study.row not in options.methods:
                continue
            row = f"{name}: {study.row}"
            figures[row] = _accuracies(study, scenario, tap_of(name), options.resume, row)
            targets[row] = _target(study, figures[row])
    document = _document(options, figures, targets)
    if options.write:
        write_document(document, NAME)
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in targets.values()) else ExitCode.CHECK_FAILED


def _document(options: argparse.Namespace, figures: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was measured; if it is to be written, of all rows, those that were not measured now as they were."""
    command = f"python scripts/{NAME}.py"
    parts = [f"--only {' '.join(options.only)}"] if set(options.only) != set(SCENARIOS) else []
    parts += [f"--methods {' '.join(map(repr, options.methods))}"] if options.methods else []
    if parts and options.write:
        before = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
        figures, targets = replaced(before["figures"], figures), replaced(before["targets"], targets)
    else:
        command = " ".join([command, *(["--quick"] if options.quick else []), *parts])
    measured = {"held_out_ratio": HELD_OUT, "settings_at_most": BUDGET + len(LONGER)}
    return bench_document(command, [SEED], figures, targets=targets, measured=measured)


def replaced(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """All rows, by scenario."""
    rows = {**there, **now}
    return {row: rows[row] for row in sorted(rows, key=lambda row: SCENARIOS.index(row.partition(":")[0]))}


def _held_out(name: str, *, quick: bool) -> tuple[Scenario, TrunkInputs]:
    scenario = scenario_of(name)
    if quick:
        scenario = scenario.limited(QUICK_TRAIN, QUICK_TEST)
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    tuning = scenario.for_tuning(HELD_OUT)
    return tuning, trunk_inputs(tuning, store, tap=tap_of(name), pixels=PIXELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Study:
    """The settings that one method is given."""

    row: str
    candidates: Mapping[str, Method]
    """By what tells them apart."""
    chosen: str
    """That the method is run with."""
    longer: Callable[[str], Mapping[str, Method]] = lambda _: {}
    """What follows from the best of the candidates."""


def _accuracies(study: _Study, scenario: Scenario, tap: str, folder: Path | None, row: str) -> dict[str, float]:
    """Of every candidate, in percent."""
    figures: dict[str, float] = {}

    def run(candidates: Mapping[str, Method]) -> None:
        for candidate, method in candidates.items():
            terms = (scenario.digest(), method.input, method.name, method.settings, str(SEED), tap, str(PIXELS))
            result = kept_run(folder, terms, functools.partial(run_scenario, method.make(SEED), scenario))
            figures[candidate] = 100 * result.matrix.average_accuracy()
            say(f"{row}, {candidate}: {figures[candidate]:.1f}")

    run(study.candidates)
    run(study.longer(max(figures, key=lambda candidate: figures[candidate])))
    return figures


def _target(study: _Study, figures: Mapping[str, float]) -> dict[str, Any]:
    """A chosen one that was not among the candidates, which follow from what was best here, misses it."""
    target = f"{study.chosen} within {WITHIN:g} of the best"
    if study.chosen not in figures:
        return {"target": f"{target}, and among the candidates", "met": False}
    points = figures[study.chosen] - max(figures.values())
    return {"target": target, "met": points >= -WITHIN, "points": points}


def _studies(scenario: Scenario, inputs: TrunkInputs, chosen: Given, same_items: int) -> list[_Study]:
    setups: dict[Input, NetworkSetup] = {"trunk": head_setup(scenario, inputs), "pixels": pixel_setup(scenario)}
    studies = []
    for on, of_input in chosen.items():
        setup = setups[on]
        given = {**CANDIDATES, **ELSEWHERE.get((on, scenario.kind), {})}
        methods = {
            name: functools.partial(network_method, name, on, setup, scenario, capacity=same_items) for name in given
        }
        studies += [_streamed(methods[name], scenario, given[name], of_input[name]) for name in given]
        studies.append(_joint(on, setup, scenario))
        vectors = inputs if on == "trunk" else FlatPixelInputs(pixel_inputs(scenario, VECTOR_SIDE))
        ridges = {f"ridge {ridge:g}": projected_ridge(on, vectors, ridge) for ridge in RIDGES}
        studies.append(_Study(row=f"projected ridge, {on}", candidates=ridges, chosen=f"ridge {PROJECTED_RIDGE:g}"))
    hidden = EXPERT_HIDDEN[scenario.kind]
    experts = {
        f"{units} units, {steps} steps": routed("trunk", scenario, inputs, units, steps)
        for units, steps in ((hidden, EXPERT_STEPS // 2), (hidden, EXPERT_STEPS), (2 * hidden, EXPERT_STEPS))
    }
    usual = f"{hidden} units, {EXPERT_STEPS} steps"
    return [*studies, _Study(row=experts[usual].row, candidates=experts, chosen=usual)]


def _streamed(
    make: Callable[[Settings], Method], scenario: Scenario, given: Sequence[Settings], chosen: Settings
) -> _Study:
    """Of a method that learns from a stream."""
    assert len(given) <= BUDGET, "a method is given more than the others"
    by_words = {_words(settings): settings for settings in given}

    def methods(settings: Mapping[str, Settings]) -> dict[str, Method]:
        return {words: make(one) for words, one in settings.items()}

    def longer(best: str) -> dict[str, Method]:
        variants = [
            dataclasses.replace(by_words[best], passes=passes, lr=round(factor * by_words[best].lr, 6))
            for passes, factor in LONGER
            if passes * fewest_passes(scenario) <= MOST_PASSES
        ]
        return methods({_words(settings): settings for settings in variants})

    return _Study(row=make(chosen).row, candidates=methods(by_words), chosen=_words(chosen), longer=longer)


def _joint(on: Input, setup: NetworkSetup, scenario: Scenario) -> _Study:
    """Of the upper reference."""
    end = to_the_end(scenario)
    configs = [dataclasses.replace(end, lr=rate) for rate in (0.0003, 0.001, 0.003, 0.01)]
    configs += [dataclasses.replace(end, optimizer="sgd", lr=rate) for rate in (0.05, 0.1)]
    candidates = {f"{config.optimizer} at {config.lr:g}": joint(on, setup, config) for config in configs}
    return _Study(row=f"joint, {on}", candidates=candidates, chosen=f"{end.optimizer} at {end.lr:g}")


def _words(settings: Settings) -> str:
    """What differs from the defaults."""
    default = Settings(lr=0.0)
    differing = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != getattr(default, field.name)
    }
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in differing.items())


def _table(document: dict[str, Any]) -> str:
    lines = []
    for row, of_method in document["figures"].items():
        lines += ["", row, *(f"{accuracy:6.2f}  {candidate}" for candidate, accuracy in of_method.items())]
    lines.append("")
    for row, target in document["targets"].items():
        lines.append(f"{row}: {target['target']}: {'met' if target['met'] else 'MISSED'} ({target.get('points')})")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
