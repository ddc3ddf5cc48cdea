"""Routers on Fashion-MNIST in five tasks of two classes: accuracy beside the bytes that are kept and sent.

``ridge*`` are accuracies of the mixture: one expert a task, distilled on the trunk's features from a reference CNN that
saw that task alone, asked one a row (k = 1) by the gates of a ridge router; the router's own argmax, without experts,
stands beside each as ``argmax_alone``. That of B4 is a figure of its own. `mlp_*`, `uniform`, `random`, `hash` and
`energy` route the very experts of ``ridge_b4``. Each is the mean over orders of the classes, the first in label order;
an order is also the seed of its teachers, experts and random features. Progress goes to stderr, the table to stdout.
The exit code is 0 if every target is met, 10 if one is missed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import platformdirs
import torch
from bench_document import RESULTS, bench_document, say, write_document
from bench_router_study import PIXELS, VARIANTS, WIDE, Effort, Study, Variant

from experts.continual.replay import ReservoirBuffer
from experts.data.named import load_named
from experts.evaluation.features import FeatureStore
from experts.evaluation.metrics import spread
from experts.generators import torch_generator
from experts.local import LocalExpert
from experts.router.gating import Gates, gate
from experts.router.mlp import MlpRouter, MlpRouterConfig, MlpRouterRun, RouterData
from experts.router.references import energy_gates, hash_gates, random_gates, uniform_gates
from experts.router.ridge import Prior, RidgeRouter, RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.router.whitening import WhiteningReference
from experts.router.wire8 import decode8, encode8, raise_eigenvalues
from experts.trunk.base import features_of
from meshnode.datasets import find_dataset
from meshnode.errors import ExitCode

B4 = "B4"
"""The tap whose experts all other routers are tried on."""

PEERS = 4
SKEW = 0.3
"""Of the Dirichlet distribution that each class is dealt out by."""

LONG_TAIL = {"B4": (10, 100), "E5": (10, 100)}
"""Images of the commonest class for one of the rarest, by tap."""
LONG_TAIL_RIDGE = 1e-3

FULL = Effort(
    train_images=20_000,
    test_images=10_000,
    orders=3,
    wide_orders_8_bits=1,
    random_features=1500,
    teacher_epochs=12,
    expert_steps=1900,
)
QUICK = FULL._replace(
    train_images=3000,
    test_images=1000,
    orders=2,
    wide_orders_8_bits=0,
    random_features=200,
    teacher_epochs=2,
    expert_steps=300,
)

PROTOTYPE: Mapping[str, float] = {
    "ridge_small": 88.7,
    "ridge": 91.1,
    "ridge_quality": 91.9,
    "ridge_b4": 89.5,
    "mlp_200": 79.7,
    "mlp_500": 84.1,
    "uniform": 64.0,
    "random": 20.0,
    "hash": 20.0,
    "energy": 58.0,
    "long_tail_10": 89.3,
    "long_tail_100": 82.5,
    "long_tail_100_gain": 5.4,
    "merged_8bit_loss_points": 0.2,
}
"""What the study that the design rests on found, to be compared with; long tails on B4."""

AT_LEAST: Mapping[str, float] = {
    "ridge_small": 88.3,
    "ridge": 90.9,
    "ridge_quality": 91.6,
    "long_tail_100_gain": 3.0,
}
AT_MOST: Mapping[str, float] = {"merged_8bit_loss_points": 0.3}

Sample = dict[str, float]
"""What one order gives for one figure."""


def ridge(study: Study, variant: Variant) -> Sample:
    """The mixture routed by a ridge router, the router alone, and the same from what arrives of eight bits."""
    train_NF, test_NF = study.psi(variant)
    statistics = study.statistics(train_NF)
    router = _solve(statistics, variant)
    sample = {
        "accuracy": study.mixture_accuracy(_gates(study, router, test_NF), variant.tap),
        "argmax_alone": study.argmax_accuracy(router, test_NF),
        "state_kb": len(statistics.to_bytes()) / 1000,
        "D": train_NF.shape[1],
    }
    if train_NF.shape[1] > WIDE and study.order >= study.effort.wide_orders_8_bits:
        return sample
    reference = WhiteningReference.from_statistics(study.statistics_of(train_NF, study.rows_of(study.tasks[0])))
    message = encode8(statistics, reference)
    arrived = _solve(raise_eigenvalues(decode8(message, reference), reference), variant)
    return {
        **sample,
        "accuracy_8_bits": study.mixture_accuracy(_gates(study, arrived, test_NF), variant.tap),
        "wire_kb": len(message) / 1000,
        "shared_kb": len(reference.to_bytes()) / 1000,
    }


def argmax_alone(study: Study) -> Sample:
    """The ridge router of B4 as a classifier."""
    sample = ridge(study, VARIANTS["ridge_b4"])
    kept = ("state_kb", "wire_kb", "shared_kb", "D")
    return {"accuracy": sample["argmax_alone"], **{name: sample[name] for name in kept}}


def mlp(study: Study, capacity: int) -> Sample:
    """A small net that learns one task after another, and keeps so many images to replay."""
    features = study.features(B4)
    generator = torch_generator(study.order, f"mlp router/{capacity}")
    memory = ReservoirBuffer(capacity, torch_generator(study.order, f"replay/{capacity}"))
    local = {uid: LocalExpert(study.experts[uid], module) for uid, module in study.modules(B4).items()}
    router: MlpRouter | None = None
    for number, (uid, names) in enumerate(study.experts.items()):
        known = {other: local[other] for other in list(study.experts)[: number + 1]}
        old = router
        router = (
            MlpRouter({uid}, feature_dim=features.trunk.feature_dim, seed=str(study.order))
            if old is None
            else old.with_experts(known)
        )
        rows = study.rows_of(names)
        labels = [study.train.labels[row] for row in rows]
        replay = None
        if len(memory):
            replay = RouterData.from_experts(features_of(features.trunk, memory.images), memory.labels, known)
        data = RouterData.from_experts(features.train_ND[rows], labels, known)
        for _ in MlpRouterRun(router, data, MlpRouterConfig(), generator, replay=replay, old=old):
            pass
        memory.add(study.train.images[rows.numpy()], labels)
    assert router is not None
    parameters_kb = 4 * router.num_parameters / 1000
    return {
        "accuracy": study.mixture_accuracy(router.gates(features.test_ND, study.experts), B4),
        "state_kb": parameters_kb + memory.images.nbytes / 1000,
        "wire_kb": parameters_kb,
    }


def untrained(study: Study, gates: Gates) -> Sample:
    """The experts of B4 under gates that hold nothing and send nothing."""
    return {"accuracy": study.mixture_accuracy(gates, B4), "state_kb": 0.0, "wire_kb": 0.0}


def merged(study: Study, variant: Variant) -> Sample:
    """The router's argmax from four skewed peers' statistics: as they are, in float32 and in eight bits."""
    train_NF, test_NF = study.psi(variant)
    reference = WhiteningReference.from_statistics(study.statistics_of(train_NF, study.rows_of(study.tasks[0])))
    peers = [study.statistics_of(train_NF, rows) for rows in _skewed(study)]
    whole = sum_contributions(dict(enumerate(peers)))
    exact = sum_contributions({n: ClassStatistics.from_bytes(peer.to_bytes()) for n, peer in enumerate(peers)})
    coarse = sum_contributions({n: decode8(encode8(peer, reference), reference) for n, peer in enumerate(peers)})
    of_float32 = study.argmax_accuracy(_solve(exact, variant), test_NF)
    of_8_bits = study.argmax_accuracy(_solve(raise_eigenvalues(coarse, reference), variant), test_NF)
    return {
        "central": study.argmax_accuracy(_solve(study.statistics(train_NF), variant), test_NF),
        "merged": study.argmax_accuracy(_solve(whole, variant), test_NF),
        "float32": of_float32,
        "8_bits": of_8_bits,
        "loss_points": of_float32 - of_8_bits,
    }


def long_tail(study: Study, tap: str, ratio: int) -> Sample:
    """The router's argmax where classes grow rarer exponentially, with the prior of the data and the uniform one."""
    rows_of_class = [study.rows_of([name]) for name in study.class_order]
    last = len(rows_of_class) - 1
    counts = [round(len(rows) * ratio ** (-place / last)) for place, rows in enumerate(rows_of_class)]
    kept = [rows[:count] for rows, count in zip(rows_of_class, counts, strict=True)]
    first = torch.cat(kept[: len(study.tasks[0])]).sort().values
    features = study.features_calibrated_on(tap, first)
    statistics = study.statistics_of(features.train_ND, torch.cat(kept))
    accuracies = {}
    priors: Mapping[str, Prior] = {"plain": "empirical", "rebalanced": "uniform"}
    for name, prior in priors.items():
        router = solve_ridge(statistics, RouterConfig(ridge=LONG_TAIL_RIDGE, prior=prior))
        accuracies[name] = study.argmax_accuracy(router, features.test_ND)
    return {**accuracies, "gain": accuracies["rebalanced"] - accuracies["plain"], "images": float(sum(counts))}


MEASUREMENTS: Mapping[str, Callable[[Study], Sample]] = {
    **{name: partial(ridge, variant=variant) for name, variant in VARIANTS.items()},
    "argmax_alone": argmax_alone,
    "mlp_200": partial(mlp, capacity=200),
    "mlp_500": partial(mlp, capacity=500),
    "uniform": lambda study: untrained(study, uniform_gates(len(study.test), study.experts)),
    "random": lambda study: untrained(
        study, random_gates(len(study.test), study.experts, torch_generator(study.order, "random gates"))
    ),
    "hash": lambda study: untrained(study, hash_gates(study.features(B4).test_ND, study.experts)),
    "energy": lambda study: untrained(study, energy_gates(study.logits(B4))),
    "merged_small": partial(merged, variant=VARIANTS["ridge_small"]),
    "merged": partial(merged, variant=VARIANTS["ridge"]),
    **{
        f"long_tail_{ratio}{'' if tap == B4 else f'_{tap.lower()}'}": partial(long_tail, tap=tap, ratio=ratio)
        for tap, ratios in LONG_TAIL.items()
        for ratio in ratios
    },
}


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    # Sums of products depend on how they are split among threads, and so may the last digit of a figure.
    torch.set_num_threads(1)
    document = _measure(options)
    if options.write:
        # It takes a second to import what draws.
        from bench_router_plot import draw  # noqa: PLC0415

        write_document(document, "bench_router")
        draw(document, RESULTS / "bench_router.png")
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help="the same on less: 3,000 images, two orders; a minute")
    parser.add_argument("--write", action="store_true", help="also put it into docs/results/, with a plot")
    parser.add_argument(
        "--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME", help="these figures"
    )
    options = parser.parse_args(arguments)
    if options.write and (options.quick or set(options.only) != set(MEASUREMENTS)):
        parser.error("--write is for all figures at full size: leave out --only and --quick")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.perf_counter()
    effort = QUICK if options.quick else FULL
    train, test = load_named("fashion-mnist", find_dataset("fashion-mnist"))
    parts = train.select(range(effort.train_images)), test.select(range(effort.test_images))
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    chosen = [name for name in MEASUREMENTS if name in options.only]
    samples: dict[str, list[Sample]] = {name: [] for name in chosen}
    for order in range(effort.orders):
        study = Study(parts, store, order, effort)
        for name in chosen:
            samples[name].append(MEASUREMENTS[name](study))
            say(f"{time.perf_counter() - began_s:6.0f} s  order {order}  {name}: {_brief(samples[name][-1])}")
    figures = {name: _summary(name, values) for name, values in samples.items()}
    headlines: dict[str, float] = {name: figure["accuracy"] for name, figure in figures.items() if "accuracy" in figure}
    if "merged" in figures:
        figures["merged_8bit_loss_points"] = headlines["merged_8bit_loss_points"] = figures["merged"]["loss_points"]
    if "long_tail_100" in figures:
        headlines["long_tail_100_gain"] = figures["long_tail_100"]["gain"]
    words = ["python scripts/bench_router.py", *(["--quick"] if options.quick else [])]
    words += [f"--only {' '.join(chosen)}"] if len(chosen) < len(MEASUREMENTS) else []
    return bench_document(
        " ".join(words),
        list(range(effort.orders)),
        figures,
        targets=_targets(headlines),
        measured={
            "samples": samples,
            "prototype": PROTOTYPE,
            "effort": effort._asdict(),
            "peers": {"number": PEERS, "dirichlet": SKEW},
            "seconds": time.perf_counter() - began_s,
        },
    )


def _summary(name: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Means over orders; the deviation of what the figure is about; and what it was measured on."""
    # The first order has every field; a later one may leave out eight bits.
    figure: dict[str, Any] = {
        field: spread([sample[field] for sample in samples if field in sample]).mean for field in samples[0]
    }
    about = next(field for field in ("accuracy", "loss_points", "gain") if field in figure)
    figure["std"] = spread([sample[about] for sample in samples]).deviation
    if name in VARIANTS:
        figure["tap"] = VARIANTS[name].tap
    elif name.startswith("merged"):
        figure["tap"] = VARIANTS["ridge_small" if name == "merged_small" else "ridge"].tap
    else:
        figure["tap"] = "E5" if name.endswith("_e5") else B4
    return {**figure, "pixels": PIXELS, "runs": len(samples)}


def _targets(headlines: Mapping[str, float]) -> dict[str, Any]:
    targets = {
        name: {"target": f">= {bound:g}", "met": headlines[name] >= bound}
        for name, bound in AT_LEAST.items()
        if name in headlines
    }
    targets |= {
        name: {"target": f"<= {bound:g}", "met": headlines[name] <= bound}
        for name, bound in AT_MOST.items()
        if name in headlines
    }
    return targets


def _solve(statistics: ClassStatistics, variant: Variant) -> RidgeRouter:
    return solve_ridge(statistics, RouterConfig(ridge=variant.ridge))


def _gates(study: Study, router: RidgeRouter, psi_NF: torch.Tensor) -> Gates:
    return gate(router.scores(psi_NF), router.classes, study.experts)


def _skewed(study: Study) -> list[torch.Tensor]:
    """Every training image at one peer, each class dealt out in shares of its own."""
    generator = np.random.default_rng(study.order)
    peers: list[list[torch.Tensor]] = [[] for _ in range(PEERS)]
    for name in study.classes:
        rows = study.rows_of([name])
        edges = np.cumsum(generator.dirichlet([SKEW] * PEERS))[:-1] * len(rows)
        for peer, part in zip(peers, torch.tensor_split(rows, edges.round().astype(int).tolist()), strict=True):
            peer.append(part)
    return [torch.cat(parts) for parts in peers]


def _brief(sample: Sample) -> str:
    shown = ("accuracy", "argmax_alone", "accuracy_8_bits", "float32", "8_bits", "plain", "rebalanced")
    return ", ".join(f"{field} {sample[field]:.2f}" for field in shown if field in sample)


def _table(document: Mapping[str, Any]) -> str:
    figures, targets = document["figures"], document["targets"]
    heads = f"{'accuracy':>9}{'std':>6}{'proto':>7}{'argmax':>8}{'8 bits':>8}{'state kB':>10}{'wire kB':>9}"
    lines = [f"{'router':<16}{heads}  on"]
    for name, figure in figures.items():
        if isinstance(figure, dict) and "accuracy" in figure:
            cells = [figure["accuracy"], figure["std"], PROTOTYPE.get(name)]
            cells += [figure.get(field) for field in ("argmax_alone", "accuracy_8_bits", "state_kb", "wire_kb")]
            shown = [
                f"{'' if cell is None else f'{cell:.{digits}f}':>{width}}"
                for cell, width, digits in zip(cells, (9, 6, 7, 8, 8, 10, 9), (2, 2, 1, 2, 2, 0, 0), strict=True)
            ]
            lines.append(f"{name:<16}{''.join(shown)}  {figure['tap']}, {PIXELS} px")
    tails = [(name, figure) for name, figure in figures.items() if name.startswith("long_tail")]
    lines += ["", f"{'long tail':<18}{'plain':>8}{'rebalanced':>12}{'gain':>7}{'std':>6}  on"] if tails else []
    for name, tail in tails:
        numbers = f"{tail['plain']:>8.2f}{tail['rebalanced']:>12.2f}{tail['gain']:>7.2f}{tail['std']:>6.2f}"
        lines.append(f"{name.split('_')[2] + ':1':<18}{numbers}  {tail['tap']}")
    mergers = [figures[name] for name in ("merged_small", "merged") if name in figures]
    lines += ["", f"{'merged, 4 peers':<18}{'float32':>8}{'8 bits':>8}{'loss':>7}{'std':>6}  on"] if mergers else []
    for merger in mergers:
        numbers = f"{merger['float32']:>8.2f}{merger['8_bits']:>8.2f}{merger['loss_points']:>7.2f}{merger['std']:>6.2f}"
        lines.append(f"{'':<18}{numbers}  {merger['tap']}")
    lines.append("")
    lines += [f"{name} {target['target']}: {'met' if target['met'] else 'MISSED'}" for name, target in targets.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
