"""The router alone on all 60,000 training images of Fashion-MNIST, with a pretrained trunk and with none.

Split Fashion-MNIST in label order: the widest pretrained features (two taps and random ReLU features), and whitened
patches of the first task's images, which take nothing from elsewhere. Progress goes to stderr, the table to stdout. The
exit code is 0 if every target is met, 10 if one is missed.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from bench_document import bench_document, say
from bench_main import Bench
from bench_router import FULL, QUICK
from bench_router_study import PIXELS, VARIANTS, Study
from bench_scenarios import load

from experts.evaluation.features import FeatureStore
from experts.evaluation.metrics import accuracy
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics
from experts.trunk.base import calibrate
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened

__all__ = ["all_images_targets", "merged_accuracy"]

NAME = "bench_all_images"
PRETRAINED, PATCHES = "pretrained, two taps and random features", "whitened patches of the first task"
AT_LEAST = {PRETRAINED: 92.3, PATCHES: 87.0}
PATCH_PIXELS = 28
NUM_PATCHES = 64
"""Each has both signs in a grid of four by four."""
RIDGE = 1e-4
CALIBRATED_ON = 2000
"""Images of the first task that patches are fitted and calibrated on."""


def merged_accuracy(
    tasks: Sequence[tuple[torch.Tensor, Sequence[str]]],
    test: tuple[torch.Tensor, Sequence[str]],
    ridge: float,
) -> float:
    """Percent of test rows that a ridge names rightly, whose statistics came task by task.

    Args:
        tasks: Features and labels of each, in their order.
        test: Likewise.
        ridge: The regulariser.
    """
    statistics = ClassStatistics.from_features(*tasks[0])
    for features_ND, labels in tasks[1:]:
        statistics = statistics.updated(features_ND, labels)
    router = solve_ridge(statistics, RouterConfig(ridge=ridge))
    return 100 * accuracy(router.class_argmax(test[0]), test[1])


def all_images_targets(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the accuracies are held against."""
    return {
        name: {"target": f">= {least:g}", "met": figures[name]["accuracy"] >= least, "value": figures[name]["accuracy"]}
        for name, least in AT_LEAST.items()
    }


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.perf_counter()

    def tell(text: str) -> None:
        say(f"[{time.perf_counter() - began_s:6.1f} s] {text}")

    train, test = load("fashion-mnist")
    effort = QUICK if options.quick else FULL
    if options.quick:
        train, test = train.select(range(QUICK.train_images)), test.select(range(QUICK.test_images))
    study = Study((train, test), FeatureStore(platformdirs.user_cache_path("modulemesh") / "features"), 0, effort)
    rows = [study.rows_of(names) for names in study.tasks]
    labels = [[train.labels[row] for row in of_task] for of_task in rows]

    def measured(train_ND: torch.Tensor, test_ND: torch.Tensor, ridge: float) -> dict[str, float]:
        tasks = [(train_ND[of_task], names) for of_task, names in zip(rows, labels, strict=True)]
        width = train_ND.shape[1]
        return {"accuracy": merged_accuracy(tasks, (test_ND, test.labels), ridge), "D": width}

    tell(f"patches of {len(train)} images")
    first = prepare_images(train.images[rows[0][:CALIBRATED_ON].numpy()], 1, PATCH_PIXELS)
    trunk = fit_whitened(first, WhitenedConfig(num_patches=NUM_PATCHES), seed=0)
    calibrate(trunk, first)
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    figures = {PATCHES: measured(store.features(trunk, train.images), store.features(trunk, test.images), RIDGE)}
    tell(f"pretrained features of {len(train)} images")
    variant = VARIANTS["ridge_quality"]
    figures[PRETRAINED] = measured(*study.psi(variant), variant.ridge)
    return bench_document(
        f"python scripts/{NAME}.py{' --quick' if options.quick else ''}",
        [0],
        figures,
        targets=all_images_targets(figures),
        measured={
            "images": {"train": len(train), "test": len(test)},
            "taps": {PRETRAINED: variant.tap, PATCHES: None},
            "pixels": {PRETRAINED: PIXELS, PATCHES: PATCH_PIXELS},
            "seconds": time.perf_counter() - began_s,
        },
    )


def _table(document: Mapping[str, Any]) -> str:
    lines = []
    for name, row in document["figures"].items():
        target = document["targets"][name]
        met = "met" if target["met"] else "MISSED"
        lines.append(f"{name:<44}{row['accuracy']:>7.2f} %  {row['D']:>5} features  {target['target']}: {met}")
    return "\n".join(lines)


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """The accuracies beside what they are held against."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second, and is for --write only

    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    names = list(document["figures"])
    axes.barh(names, [document["figures"][name]["accuracy"] for name in names], color="#1f5fa8", height=0.5)
    axes.plot([AT_LEAST[name] for name in names], names, "k|", markersize=22, label="at least")
    axes.set(xlabel="accuracy, %", xlim=(80, 95))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


BENCH = Bench(
    name=NAME,
    about=str(__doc__),
    quick_help="the same on less, within a minute",
    measure=_measure,
    table=_table,
    draw=_draw,
    has_seed=False,
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
