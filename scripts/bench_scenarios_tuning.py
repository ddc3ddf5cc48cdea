"""How the settings of `bench_scenarios_methods.py` on the trunk were chosen: on held-out training images alone.

Each task gives up 15% of its training images; candidates learn the rest and are tested on those. No test image is read.
Figures are average accuracy in percent by method and candidate, of one run: what differs by less than some tenths is a
draw. The exit code is 0 if every chosen candidate is within half a point of the best, 10 otherwise.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import platformdirs
import torch
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import QUICK_TEST, QUICK_TRAIN, load, trunk_inputs
from bench_scenarios_methods import (
    EXPERT_HIDDEN,
    EXPERT_STEPS,
    Method,
    as_stream,
    er,
    head_setup,
    joint,
    on_features,
    routed,
    sgd,
    to_the_end,
)

from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import TrunkInputs
from experts.evaluation.runner import run_scenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from meshnode.errors import ExitCode

HELD_OUT = 0.15
SEED = 0
WITHIN = 0.5
"""Points."""

SCENARIOS = ("split-fashion-mnist", "rotated-fashion-mnist")
"""What learns from a stream is tuned on the first, experts and the joint network on either."""

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2)


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"on {QUICK_TRAIN} images a task")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for all figures: leave out --quick")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for name in SCENARIOS:
        scenario, inputs = _held_out(name, quick=options.quick)
        chosen = {method.name: method.settings for method in on_features(scenario, inputs)}
        best: dict[str, float] = {}
        for candidate, method in _candidates(scenario, inputs):
            row = f"{name}: {method.name}"
            accuracy = 100 * run_scenario(method.make(SEED), scenario).matrix.average_accuracy()
            say(f"{row}, {candidate}: {accuracy:.1f}")
            figures.setdefault(row, {})[candidate] = accuracy
            best[row] = max(best.get(row, 0.0), accuracy)
            if method.settings == chosen[method.name]:
                targets[row] = {"target": f"{candidate} within {WITHIN:g} of the best", "points": accuracy}
        for row, accuracy in best.items():
            targets[row]["points"] -= accuracy
            targets[row]["met"] = targets[row]["points"] >= -WITHIN
    command = f"python scripts/bench_scenarios_tuning.py{' --quick' if options.quick else ''}"
    document = bench_document(command, [SEED], figures, targets=targets, measured={"held_out_ratio": HELD_OUT})
    if options.write:
        write_document(document, "bench_scenarios_tuning")
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in targets.values()) else ExitCode.CHECK_FAILED


def _held_out(name: str, *, quick: bool) -> tuple[Scenario, TrunkInputs]:
    scenario = make_scenario(name, load)
    if quick:
        scenario = scenario.limited(QUICK_TRAIN, QUICK_TEST)
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    tuning = scenario.for_tuning(HELD_OUT)
    return tuning, trunk_inputs(tuning, store)


def _candidates(scenario: Scenario, inputs: TrunkInputs) -> list[tuple[str, Method]]:
    """By what tells them apart; the chosen ones are among them."""
    hidden = EXPERT_HIDDEN[scenario.kind]
    methods = [
        (f"{units} units, {steps} steps", routed(scenario, inputs, units, steps))
        for units, steps in ((hidden, EXPERT_STEPS // 2), (hidden, EXPERT_STEPS), (2 * hidden, EXPERT_STEPS))
    ]
    setup, end = head_setup(scenario, inputs), to_the_end(scenario)
    upper = [dataclasses.replace(end, lr=rate) for rate in (0.001, 0.003)]
    upper += [dataclasses.replace(end, optimizer="sgd", lr=rate) for rate in (0.05, 0.1)]
    methods += [(f"{config.optimizer} at {config.lr:g}", joint("trunk", setup, config)) for config in upper]
    if scenario.kind != "class-incremental":
        return methods
    return [
        *((f"sgd at {rate:g}", sgd("trunk", setup, as_stream(scenario, rate))) for rate in RATES),
        *(
            (f"sgd at {rate:g}", er("trunk", setup, as_stream(scenario, rate), items))
            for items in (200, 500)
            for rate in RATES
        ),
        *methods,
    ]


def _table(document: dict[str, Any]) -> str:
    lines = []
    for row, of_method in document["figures"].items():
        lines += ["", row, *(f"{accuracy:6.2f}  {candidate}" for candidate, accuracy in of_method.items())]
    lines.append("")
    for row, target in document["targets"].items():
        lines.append(f"{row}: {target['target']}: {'met' if target['met'] else 'MISSED'} ({target['points']})")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
