"""What the privacy of shared statistics costs: accuracy of the router alone, by epsilon.

Split Fashion-MNIST in class orders 0 to 2, each of the five tasks one increment, on tap B4 at 64 pixels calibrated on
the first task. All five increments together are (epsilon, 1e-6)-differentially private, features are shortened to a
norm of 25, which was chosen without a look at any test image: it is about half of what they have. The router is solved
with its defaults. There is no target.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import platformdirs
import torch
from bench_document import RESULTS, bench_document, say, write_document
from bench_scenarios import PIXELS, QUICK_TEST, QUICK_TRAIN, TAP, load

from experts.continual.privacy import PrivacyConfig, PrivatePublisher
from experts.evaluation.features import FeatureStore
from experts.evaluation.metrics import accuracy, spread
from experts.evaluation.scenarios.registry import make_scenario
from experts.evaluation.suite.trunk import trunk_inputs
from experts.generators import torch_generator
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, merge
from meshnode.errors import ExitCode

EPSILONS = (1.0, 3.0, 10.0, 100.0)
DELTA, MAX_NORM = 1e-6, 25.0


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"one run on {QUICK_TRAIN} images a task")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for order in range(1 if options.quick else 3):
        for name, value in _accuracies(order, quick=options.quick).items():
            found.setdefault(name, []).append(100 * value)
    figures: dict[str, Any] = {
        name: {"accuracy": spread(values).mean, "std": spread(values).deviation} for name, values in found.items()
    }
    measured = {
        "trunk": {"tap": TAP, "pixels": PIXELS},
        "delta": DELTA,
        "max_norm": MAX_NORM,
        "sums_sigma": {_name(epsilon): _config(epsilon).sums_sigma for epsilon in EPSILONS},
        "accuracies": found,
    }
    command = "python scripts/bench_privacy.py" + (" --quick" if options.quick else "")
    document = bench_document(command, range(1 if options.quick else 3), figures, measured=measured, digits=4)
    if options.write:
        write_document(document, "bench_privacy")
    print(json.dumps(document, indent=2) if options.json else _table(figures))
    return ExitCode.OK


def _name(epsilon: float) -> str:
    return f"epsilon {epsilon:g}"


def _config(epsilon: float) -> PrivacyConfig:
    return PrivacyConfig(epsilon=epsilon, delta=DELTA, num_increments=5, max_norm=MAX_NORM)


def _accuracies(order: int, *, quick: bool) -> dict[str, float]:
    scenario = make_scenario("split-fashion-mnist", load, order=order)
    if quick:
        scenario = scenario.limited(QUICK_TRAIN, QUICK_TEST)
    say(f"order {order}")
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    inputs = trunk_inputs(scenario, store, tap=TAP, pixels=PIXELS)
    test_ND = torch.cat([inputs(task.test.images) for task in scenario.tasks])
    labels = [label for task in scenario.tasks for label in task.test.labels]

    def measured(parts: Sequence[ClassStatistics]) -> float:
        whole = parts[0]
        for part in parts[1:]:
            whole = merge(whole, part)
        return accuracy(solve_ridge(whole, RouterConfig()).class_argmax(test_ND), labels)

    exact = [ClassStatistics.from_features(inputs(task.train.images), task.train.labels) for task in scenario.tasks]
    found = {"exact": measured(exact)}
    for epsilon in EPSILONS:
        publisher = PrivatePublisher(
            test_ND.shape[1], _config(epsilon), torch_generator(order, f"noise at {_name(epsilon)}")
        )
        shared = [
            publisher.publish(inputs(task.train.images), task.train.labels, task.classes) for task in scenario.tasks
        ]
        found[_name(epsilon)] = measured([part for part in shared if part is not None])
    return found


def _table(figures: dict[str, Any]) -> str:
    lines = []
    for name, row in figures.items():
        std = "" if row["std"] is None else f" +- {row['std']:.2f}"
        lines.append(f"{name:<14} {row['accuracy']:6.2f}{std}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
