"""Experts and router trained together on Fashion-MNIST: what the number of experts and the regulariser change.

All classes at once, on features of the trunk B4 at 64 px, calibrated on the first task's images; labels only, no
teacher. Every expert scores all classes. Accuracies are those of the best expert by the gates (top-k 1), for 1 to 20
experts with and without the default regulariser; the specialization table is of five experts and, since who works for
what depends on the initial weights, of more seeds: measured on the test images with the gates as used and with the soft
gates that were trained; with five experts also other strengths of each term. Progress goes to stderr, the table to
stdout.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from bench_document import RESULTS, bench_document, say, write_document

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.data.named import load_named
from experts.evaluation.features import FeatureStore
from experts.evaluation.specialization_plot import specialization_png
from experts.generators import torch_generator
from experts.mixture.config import MixtureConfig
from experts.mixture.model import Mixture
from experts.mixture.output import mixture_output
from experts.mixture.run import MixtureRun
from experts.router.regularisers import PROPOSAL, WEIGHTED, RegulariserConfig
from experts.router.specialization import Specialization, measure_specialization
from experts.trunk.base import calibrate
from experts.trunk.efficientnet import load_efficientnet
from experts.trunk.images import prepare_images
from meshnode.datasets import find_dataset

NAME = "bench_mixture"
TAP, PIXELS = "B4", 64
STUDIED = 5
"""Experts of the specialization table: as many as there are tasks in the continual studies."""
REGULARISERS: Mapping[str, RegulariserConfig | None] = {"none": None, "weighted": WEIGHTED, "proposal": PROPOSAL}
SWEPT: Mapping[str, RegulariserConfig] = {
    **{f"weighted, lambda {value:g}": RegulariserConfig(lambda_s=value) for value in (0.01, 1.0)},
    **{f"proposal, lambda {value:g}": RegulariserConfig(form="proposal", lambda_s=value) for value in (0.01, 1.0)},
    **{f"balance alone, lambda {value:g}": RegulariserConfig(lambda_s=0.0, lambda_b=value) for value in (0.1, 1.0)},
}
"""What each term is worth at other strengths than the default, with the studied number of experts."""
PROTOTYPE = {"max_usage_ratio": [0.21, 0.24], "mutual_information_nats": [1.32, 1.35]}
"""What was seen with five experts and the default regulariser before this was built."""


class Effort(NamedTuple):
    """How much is done."""

    train_images: int
    test_images: int
    seeds: tuple[int, ...]
    """Of the accuracies by number of experts."""
    studied_seeds: tuple[int, ...]
    """Of the specialization table; all of `seeds` are among them."""
    steps: int
    experts: tuple[int, ...]


FULL = Effort(20_000, 10_000, (0, 1, 2), (0, 1, 2, 3, 4), MixtureConfig().steps, (1, 2, 5, 10, 20))
QUICK = Effort(4_000, 2_000, (0,), (0,), 400, (1, 2, 5))


@dataclass(frozen=True, slots=True)
class Split:
    """Features and labels of one part."""

    features_ND: torch.Tensor
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained mixture, on the test images."""

    mixture: Mixture
    accuracy: float
    """Percent."""
    used: Specialization
    """With the gates as used: top-k 1."""
    soft: Specialization
    """With the gates as trained."""
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    effort = QUICK if options.quick else FULL
    began_s = time.perf_counter()
    # Small products: a second thread costs more than it gives.
    torch.set_num_threads(1)
    train, test = _features(effort)
    outcomes = _train_all(effort, train, test)
    document = bench_document(
        f"python scripts/{NAME}.py{' --quick' if options.quick else ''}",
        effort.studied_seeds,
        _figures(effort, outcomes),
        measured={
            "trunk": {"tap": TAP, "pixels": PIXELS, "features": train.features_ND.shape[1]},
            "images": {"train": len(train.labels), "test": len(test.labels)},
            "settings": dataclasses.asdict(_config(effort, STUDIED, WEIGHTED)),
            "prototype": PROTOTYPE,
            "seeds_by_experts": effort.seeds,
            "class_by_expert": {name: outcomes[name, STUDIED, effort.seeds[0]].used.to_dict() for name in REGULARISERS},
            "seconds": time.perf_counter() - began_s,
        },
    )
    if options.write:
        write_document(document, NAME)
        _draw(document, RESULTS / f"{NAME}.png")
        for name in REGULARISERS:
            picture = specialization_png(_with_short_names(outcomes[name, STUDIED, effort.seeds[0]].used))
            (RESULTS / f"{NAME}_experts_{name}.png").write_bytes(picture)
    print(json.dumps(document, indent=2, ensure_ascii=False) if options.json else _table(document))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help="fewer images, steps and experts, one seed")
    parser.add_argument("--write", action="store_true", help=f"also put it into docs/results/{NAME}.json, with plots")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for the full size: leave out --quick")
    return options


def _features(effort: Effort) -> tuple[Split, Split]:
    train, test = load_named("fashion-mnist", find_dataset("fashion-mnist"))
    train, test = train.select(range(effort.train_images)), test.select(range(effort.test_images))
    trunk = load_efficientnet(TAP, pixels=PIXELS)
    first_task = train.of_classes(FASHION_MNIST_CLASSES[:2])
    say(f"calibrating on {len(first_task)} images")
    calibrate(trunk, prepare_images(first_task.images, trunk.input_channels, trunk.input_pixels))
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")

    def split(images: ImageDataset) -> Split:
        say(f"features of {len(images)} images")
        return Split(store.features(trunk, images.images), images.labels)

    return split(train), split(test)


def _train_all(effort: Effort, train: Split, test: Split) -> dict[tuple[str, int, int], Outcome]:
    """By regulariser, number of experts and seed."""
    studied = [(name, STUDIED) for name in REGULARISERS]
    others = [(name, number) for name in ("none", "weighted") for number in effort.experts if number != STUDIED]
    others += [(name, STUDIED) for name in SWEPT]
    outcomes = {}
    for seed in effort.studied_seeds:
        wanted = studied + others if seed in effort.seeds else studied
        for name, number in wanted:
            config = _config(effort, number, {**REGULARISERS, **SWEPT}[name])
            outcome = _train(config, train, test, seed)
            outcomes[name, number, seed] = outcome
            say(
                f"seed {seed}, {name}, {number} experts: accuracy {outcome.accuracy:.2f}, maximum usage "
                f"{outcome.used.max_usage:.3f}, I(E;C) {outcome.used.mutual_information:.3f}, {outcome.seconds:.0f} s"
            )
    return outcomes


def _config(effort: Effort, num_experts: int, regulariser: RegulariserConfig | None) -> MixtureConfig:
    """The defaults, with half of a shorter training for the warm-up too."""
    warmup_steps = min(MixtureConfig().warmup_steps, effort.steps // 2)
    return MixtureConfig(
        num_experts=num_experts, steps=effort.steps, warmup_steps=warmup_steps, regulariser=regulariser
    )


def _train(config: MixtureConfig, train: Split, test: Split, seed: int) -> Outcome:
    began_s = time.perf_counter()
    mixture = Mixture(config, train.labels, train.features_ND.shape[1], seed=f"{NAME}/{seed}")
    for _ in MixtureRun(mixture, train.features_ND, train.labels, torch_generator(seed, "batches")):
        pass
    seconds = time.perf_counter() - began_s
    gates = mixture.gates(test.features_ND)
    output = mixture_output(mixture.experts(), gates, test.features_ND, mixture.classes)
    hits = [ours == theirs for ours, theirs in zip(mixture.predict(output.outputs_BC), test.labels, strict=True)]
    soft = mixture.gates(test.features_ND, top_k=config.num_experts)
    return Outcome(
        mixture=mixture,
        accuracy=100 * sum(hits) / len(hits),
        used=measure_specialization(gates, test.labels, mixture.classes),
        soft=measure_specialization(soft, test.labels, mixture.classes),
        seconds=seconds,
    )


def _figures(effort: Effort, outcomes: Mapping[tuple[str, int, int], Outcome]) -> dict[str, Any]:
    def over_seeds(name: str, number: int, seeds: Sequence[int] = effort.seeds) -> list[Outcome]:
        return [outcomes[name, number, seed] for seed in seeds]

    by_experts = {
        name: {
            str(number): {
                **_spread("accuracy", (one.accuracy for one in over_seeds(name, number))),
                "parameters": over_seeds(name, number)[0].mixture.num_parameters,
                "flops_per_sample": over_seeds(name, number)[0].mixture.flops_per_sample,
                "train_seconds": statistics.median(one.seconds for one in over_seeds(name, number)),
            }
            for number in effort.experts
        }
        for name in ("none", "weighted")
    }
    specialization = {name: _specialization(over_seeds(name, STUDIED, effort.studied_seeds)) for name in REGULARISERS}
    by_lambda = {name: _specialization(over_seeds(name, STUDIED)) for name in (*REGULARISERS, *SWEPT)}
    default = specialization["weighted"]
    return {
        "mixture_max_usage_ratio": default["max_usage_ratio"],
        "mixture_mutual_information_nats": default["mutual_information_nats"],
        "accuracy_by_experts": by_experts,
        "specialization": specialization,
        "by_lambda": {
            name: {key: row[key] for key in ("accuracy", "std", "max_usage_ratio", "mutual_information_nats")}
            for name, row in by_lambda.items()
        },
    }


def _specialization(seeds: Sequence[Outcome]) -> dict[str, Any]:
    """Means over seeds, their ranges, and each seed's experts."""
    return {
        **_spread("accuracy", (one.accuracy for one in seeds)),
        "max_usage_ratio": statistics.mean(one.used.max_usage for one in seeds),
        "max_usage_ratio_range": _range(one.used.max_usage for one in seeds),
        "mutual_information_nats": statistics.mean(one.used.mutual_information for one in seeds),
        "mutual_information_nats_range": _range(one.used.mutual_information for one in seeds),
        "soft_max_usage_ratio": statistics.mean(one.soft.max_usage for one in seeds),
        "soft_mutual_information_nats": statistics.mean(one.soft.mutual_information for one in seeds),
        "entropy_nats": [one.used.to_dict()["entropy_nats"] for one in seeds],
        "usage_ratio": [one.used.to_dict()["usage_ratio"] for one in seeds],
    }


def _spread(name: str, values: Iterable[float]) -> dict[str, float]:
    listed = list(values)
    return {name: statistics.mean(listed), "std": statistics.stdev(listed) if len(listed) > 1 else 0.0}


def _range(values: Iterable[float]) -> list[float]:
    listed = list(values)
    return [min(listed), max(listed)]


def _table(document: Mapping[str, Any]) -> str:
    figures = document["figures"]
    lines = [f"{'experts':<9}{'none':>15}{'weighted':>15}{'parameters':>13}{'MFLOP/row':>11}"]
    plain, weighted = (figures["accuracy_by_experts"][name] for name in ("none", "weighted"))
    for number, one in plain.items():
        cells = [f"{row['accuracy']:.2f} +- {row['std']:.2f}" for row in (one, weighted[number])]
        lines.append(
            f"{number:<9}{cells[0]:>15}{cells[1]:>15}{one['parameters']:>13,}{one['flops_per_sample'] / 1e6:>11.3f}"
        )
    lines += ["", f"{f'{STUDIED} experts':<11}{'accuracy':>9}{'max usage':>16}{'I(E;C)':>16}   S and usage, first seed"]
    for name, row in figures["specialization"].items():
        usage = row["max_usage_ratio_range"]
        information = row["mutual_information_nats_range"]
        each = "  ".join(
            f"{'-' if entropy is None else format(entropy, '.2f')} ({100 * share:.0f}%)"
            for entropy, share in zip(row["entropy_nats"][0], row["usage_ratio"][0], strict=True)
        )
        lines.append(
            f"{name:<11}{row['accuracy']:>9.2f}{f'{usage[0]:.3f} to {usage[1]:.3f}':>16}"
            f"{f'{information[0]:.2f} to {information[1]:.2f}':>16}   {each}"
        )
    lines += [_seen(*PROTOTYPE.values()), "", f"{'by lambda':<28}{'accuracy':>15}{'max usage':>11}{'I(E;C)':>8}"]
    for name, row in figures["by_lambda"].items():
        accuracy = f"{row['accuracy']:.2f} +- {row['std']:.2f}"
        lines.append(f"{name:<28}{accuracy:>15}{row['max_usage_ratio']:>11.3f}{row['mutual_information_nats']:>8.2f}")
    return "\n".join(lines)


def _seen(low: Sequence[float], high: Sequence[float]) -> str:
    return f"{'prototype':<11}{'':>9}{f'{low[0]} to {low[1]}':>16}{f'{high[0]} to {high[1]}':>16}"


def _with_short_names(specialization: Specialization) -> Specialization:
    """The numbers of the experts alone: the picture cuts names that are longer than a digest's first characters."""
    return dataclasses.replace(specialization, uids=tuple(uid.removeprefix("expert-") for uid in specialization.uids))


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy against the number of experts; and usage against specialization for each regulariser."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second, and is for --write only

    figure = Figure(figsize=(11, 4), layout="constrained")
    accuracy, shares = figure.subplots(1, 2)
    for name, rows in document["figures"]["accuracy_by_experts"].items():
        numbers = [int(number) for number in rows]
        values = [row["accuracy"] for row in rows.values()]
        accuracy.errorbar(
            numbers, values, yerr=[row["std"] for row in rows.values()], marker="o", capsize=3, label=f"{name}"
        )
    accuracy.set_xscale("log")
    accuracy.set_xticks(numbers, [str(number) for number in numbers])
    accuracy.minorticks_off()
    accuracy.set(xlabel="experts", ylabel="accuracy, %", title=f"Accuracy, top-k 1, tap {TAP} at {PIXELS} px")
    accuracy.legend(title="regulariser", frameon=False)
    for name, row in document["figures"]["specialization"].items():
        usage = [max(one) for one in row["usage_ratio"]]
        information = row["mutual_information_nats_range"]
        shares.errorbar(
            [statistics.mean(usage)],
            [row["mutual_information_nats"]],
            xerr=[[statistics.mean(usage) - min(usage)], [max(usage) - statistics.mean(usage)]],
            yerr=[
                [row["mutual_information_nats"] - information[0]],
                [information[1] - row["mutual_information_nats"]],
            ],
            marker="o",
            capsize=3,
            label=name,
        )
    shares.axvline(1 / STUDIED, color="#c25a00", linestyle="--", linewidth=1)
    shares.set(
        xlabel=f"usage of the busiest expert (even: {1 / STUDIED})",
        ylabel="I(E;C), nats",
        title=f"{STUDIED} experts: mean and range over seeds",
    )
    shares.legend(title="regulariser", frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
