"""How the continual learner's settings were chosen: on held-out training images alone.

Each task gives up 15% of its training images; candidates learn the rest and are tested on those. No test image is read.
Each candidate differs from the defaults in what its name says. Figures are average accuracy in percent, of one run or,
where labels are few, of three: what differs by less than some tenths is a draw. Beside them stand the rates of
detection on the same held-out images. The exit code is 0 if the defaults are within half a point of the best of each
row, 10 otherwise.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bench_continual_detection import detection
from bench_continual_rows import LABELLED, STREAM_BATCH, Sizes, prepared
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import QUICK_TEST

from experts.distillation.config import DistillationConfig
from experts.evaluation.baselines.continual_learner import ContinualMethod, Labelling
from experts.evaluation.metrics import spread
from experts.evaluation.runner import run_scenario
from experts.evaluation.suite.methods import learner_config
from meshnode.errors import ExitCode

HELD_OUT = 0.15
WITHIN = 0.5
"""Points."""

DEFAULT = "default"

LESSONS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "constant rate .05": {"distillation": DistillationConfig(steps=3000)},
    "constant rate .05, 15 passes": {"distillation": DistillationConfig(steps=1900), "passes": 15.0},
    "decay from .05": {"distillation": DistillationConfig(steps=3000, decay=True)},
    "decay from .2": {"distillation": DistillationConfig(steps=3000, lr=0.2, decay=True)},
    "teacher's ridge 1e-4": {"teacher_ridge": 1e-4},
    "teacher's ridge 1e-1": {"teacher_ridge": 1e-1},
}

STREAMS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "512 images a lesson": {"increment_items": 512},
    "trials of 50 steps": {"trial_steps": 50},
    "at least half a point to gain": {"min_gain": 0.005},
    "teacher's ridge 1e-4": {"teacher_ridge": 1e-4},
    "1,000 steps at least": {"least_steps": 1000},
}

FEW_LABELS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "teacher's ridge 1e-3": {"teacher_ridge": 1e-3},
    "teacher's ridge 3e-2": {"teacher_ridge": 3e-2},
    "no least steps": {"least_steps": 1},
    "1,000 steps at least": {"least_steps": 1000},
    "decay from .2": {"distillation": DistillationConfig(steps=3000, lr=0.2, decay=True)},
}

UNLABELLED = {name: {"learns_unlabelled": True, **changes} for name, changes in FEW_LABELS.items()}

ROWS: Mapping[str, tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Any]]] = {
    "rotated-fashion-mnist, tasks": (LESSONS, {}),
    "four-sets, tasks": (LESSONS, {}),
    "rotated-fashion-mnist, stream": (STREAMS, {"stream_batch": STREAM_BATCH}),
    "four-sets, 10% labelled": (UNLABELLED, {"labelling": Labelling(ratio=LABELLED, gives_others=True)}),
    "four-sets, these 10% alone": (FEW_LABELS, {"labelling": Labelling(ratio=LABELLED, gives_others=False)}),
}


RUNS = {"four-sets, these 10% alone": 3, "four-sets, 10% labelled": 3}
"""Orders and seeds, from 0, where single runs differ much; of other rows one."""

DETECTED = ("split-fashion-mnist", "rotated-fashion-mnist")


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help="on 1,200 images a task")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for all figures: leave out --quick")
    torch.set_num_threads(1)
    sizes = Sizes(train=1200, test=QUICK_TEST) if options.quick else Sizes()
    figures: dict[str, Any] = {row: _figures(row, sizes) for row in ROWS}
    targets = {}
    for row, of_row in figures.items():
        below = of_row[DEFAULT] - max(of_row.values())
        targets[row] = {"target": f"within {WITHIN:g} of the best", "met": below >= -WITHIN, "points": below}
    command = f"python scripts/bench_continual_tuning.py{' --quick' if options.quick else ''}"
    found = {name: _detection(name, sizes, quick=options.quick) for name in DETECTED}
    figures["detection"] = {f"{name}, {score}": rates for name, of in found.items() for score, rates in of.items()}
    measured = {"held_out_ratio": HELD_OUT}
    document = bench_document(command, range(max(RUNS.values())), figures, targets=targets, measured=measured, digits=4)
    if options.write:
        write_document(document, "bench_continual_tuning")
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in targets.values()) else ExitCode.CHECK_FAILED


def _figures(row: str, sizes: Sizes) -> dict[str, float]:
    candidates, how = ROWS[row]
    accuracies: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(RUNS.get(row, 1)):
        scenario, inputs = prepared(row.partition(",")[0], number, sizes, held_out_ratio=HELD_OUT)
        for name, changes in candidates.items():
            method = ContinualMethod(
                inputs, dataclasses.replace(learner_config(scenario), **changes), seed=number, **how
            )
            accuracies[name].append(100 * run_scenario(method, scenario).matrix.average_accuracy())
            say(f"{row}, {name}, seed {number}: {accuracies[name][-1]:.1f}")
    return {name: spread(values).mean for name, values in accuracies.items()}


def _detection(name: str, sizes: Sizes, *, quick: bool) -> dict[str, Any]:
    return detection(*prepared(name, 0, sizes, held_out_ratio=HELD_OUT), quick=quick)


def _table(document: Mapping[str, Any]) -> str:
    lines = []
    for row, of_row in document["figures"].items():
        if row == "detection":
            rated = (", ".join(f"{what} {rate:.3f}" for what, rate in rates.items()) for rates in of_row.values())
            lines += ["", *(f"judged new, {name}: {words}" for name, words in zip(of_row, rated, strict=True))]
            continue
        lines += ["", row, *(f"{accuracy:6.2f}  {candidate}" for candidate, accuracy in of_row.items())]
    lines.append("")
    for row, target in document["targets"].items():
        lines.append(f"{row}: {target['target']}: {'met' if target['met'] else 'MISSED'} ({target['points']})")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
