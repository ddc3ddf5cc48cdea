"""The router alone on all 60,000 training images of Fashion-MNIST, with a pretrained trunk and with none.

Split Fashion-MNIST in label order: the widest pretrained features (two taps and random ReLU features), and whitened
patches of the first task's images, which take nothing from elsewhere. Progress goes to stderr, the table to stdout. The
exit code is 0 if every target is met, 10 if one is missed.
"""

import argparse
import sys
import time
from collections.abc import Mapping
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
from experts.router.ridge import RouterConfig, solve_ridge
from experts.trunk.base import calibrate
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened

__all__ = ["all_images_targets"]

NAME = "bench_all_images"
PRETRAINED, PATCHES = "pretrained, two taps and random features", "whitened patches of the first task"
AT_LEAST = {PRETRAINED: 92.3, PATCHES: 87.0}
PATCH_PIXELS = 28
NUM_PATCHES = 64
"""Each has both signs in a grid of four by four."""
RIDGE = 1e-4
CALIBRATED_ON = 2000
"""Images of the first task that patches are fitted and calibrated on."""


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
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    study = Study((train, test), store, 0, effort)

    def measured(train_ND: torch.Tensor, test_ND: torch.Tensor, ridge: float) -> dict[str, float]:
        router = solve_ridge(study.statistics(train_ND), RouterConfig(ridge=ridge))
        return {"accuracy": study.argmax_accuracy(router, test_ND), "D": train_ND.shape[1]}

    tell(f"patches of {len(train)} images")
    first = prepare_images(train.images[study.rows_of(study.tasks[0])[:CALIBRATED_ON].numpy()], 1, PATCH_PIXELS)
    trunk = fit_whitened(first, WhitenedConfig(num_patches=NUM_PATCHES), seed=0)
    calibrate(trunk, first)
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
