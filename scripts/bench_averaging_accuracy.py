"""What averaging replicas costs in accuracy, against one net that sees as many samples, and what codecs save and cost.

Four peers share Fashion-MNIST's first 20,000 training images evenly, in Dirichlet(.3) mixtures of classes, or class by
class. Each trains an expert of 16 hidden units for all ten classes; every 50 steps the experts are averaged. Progress
goes to stderr, the table to stdout. The exit code is 0 if every target is met, 10 if one is missed, 1 if something
could not be measured.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bench_averaging_accuracy_plot import draw
from bench_averaging_runs import FULL, QUICK, measure_accuracy
from bench_document import bench_document, say
from bench_main import Bench

from experts.averaging import CODECS
from experts.evaluation.metrics import spread

__all__ = ["accuracy_figures", "accuracy_targets", "best_central"]

NAME = "bench_averaging_accuracy"

GAPS: Mapping[str, float] = {"iid": 1.0, "dirichlet_03": 2.5, "class_split": 4.0}
"""Points that each kind of shards may lose against central training."""

LEAST_ANCHOR_GAIN = 2.3
"""Points that a shared teacher adds where shards are skewed: the prototype's added 2.3 to 3.1."""

COSTS: Mapping[str, float] = {"float16": 0.2, "int8": 1.3}
"""Points that a codec may cost on any kind of shards: the prototype's eight bits cost 0.2 to 1.3, and twice as many
bits should cost no more than the least of it."""


def best_central(raw: Mapping[str, Any]) -> str:
    """The central net that does best on average over seeds: with or without a teacher, in small batches or large."""
    return max(raw["central"], key=lambda side: fmean(raw["central"][side]))


def accuracy_figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Means over seeds, each pair of the same seed, in points.

    A gap is to the best of the central nets, which may have no teacher: one that holds the central net back must not
    make the gap look small. Where a figure names no teacher, the group has the large one.

    Args:
        raw: Of `measure_accuracy`.
    """
    averaged, central = raw["averaged"], raw["central"][best_central(raw)]
    figures: dict[str, Any] = {f"gap_{shards}": _points(central, sides["none"]) for shards, sides in averaged.items()}
    for teacher in ("small_teacher", "without_teacher"):
        figures[f"gap_{teacher}"] = {
            shards: _points(central, sides[f"none_{teacher}"]) for shards, sides in averaged.items()
        }
    for name, side in (("anchor_gain", "none"), ("anchor_gain_small_teacher", "none_small_teacher")):
        figures[name] = {
            shards: _points(sides[side], sides["none_without_teacher"]) for shards, sides in averaged.items()
        }
    for side in (*CODECS[1:], "topk_without_feedback"):
        codec, _, without = side.partition("_")
        name = "_".join(filter(None, (codec, "cost", without)))
        figures[name] = {shards: _points(sides["none"], sides[side]) for shards, sides in averaged.items()}
    for codec in CODECS[1:]:
        figures[f"{codec}_bytes_ratio"] = raw["sent_bytes"][codec] / raw["sent_bytes"]["none"]
    return figures


def accuracy_targets(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What `accuracy_figures` are held against."""
    targets = {
        f"gap_{shards}": _target(f"<= {most:g}", figures[f"gap_{shards}"] <= most) for shards, most in GAPS.items()
    }
    least = min(figures["anchor_gain"][shards] for shards in GAPS if shards != "iid")
    targets["anchor_gain"] = _target(f">= {LEAST_ANCHOR_GAIN:g} where skewed (prototype)", least >= LEAST_ANCHOR_GAIN)
    for codec, most in COSTS.items():
        worst = max(figures[f"{codec}_cost"].values())
        targets[f"{codec}_cost"] = _target(f"<= {most:g}", worst <= most)
    return targets


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    effort = QUICK if options.quick else FULL
    began_s = time.perf_counter()
    raw = measure_accuracy(effort, options.seed, lambda text: say(f"[{time.perf_counter() - began_s:6.1f} s] {text}"))
    figures = accuracy_figures(raw)
    std = {
        "central": spread(raw["central"][best_central(raw)]).deviation,
        **{shards: spread(sides["none"]).deviation for shards, sides in raw["averaged"].items()},
    }
    return bench_document(
        " ".join([f"python scripts/{NAME}.py", f"--seed {options.seed}", *(["--quick"] if options.quick else [])]),
        list(range(options.seed, options.seed + effort.seeds)),
        figures,
        targets=accuracy_targets(figures),
        measured={"seconds": time.perf_counter() - began_s, "best_central": best_central(raw), "std": std, **raw},
    )


def _points(better: Sequence[float], worse: Sequence[float]) -> float:
    # By seed: both sides have the same shards, whose draw is most of the spread.
    return spread([first - second for first, second in zip(better, worse, strict=True)]).mean


def _target(told: str, met: bool) -> dict[str, Any]:
    return {"target": told, "met": met}


def _table(document: Mapping[str, Any]) -> str:
    lines = [f"{'figure':<28} {'case':<14} {'measured':>9}  target"]
    for name, value in document["figures"].items():
        target = document["targets"].get(name)
        told = f"{target['target']}: {'met' if target['met'] else 'MISSED'}" if target else ""
        cases = value.items() if isinstance(value, Mapping) else [("", value)]
        for case, number in cases:
            lines.append(f"{name:<28} {case:<14} {number:>9.3f}  {told}".rstrip())
            name, told = "", ""  # noqa: PLW2901 - said once
    accuracy = {"central": document["measured"]["central"]} | document["measured"]["averaged"]
    lines += ["", f"{'accuracy, %':<14} {'side':<36} by seed"]
    for kind, sides in accuracy.items():
        lines += [f"{kind:<14} {side:<36} {' '.join(f'{one:.2f}' for one in of)}" for side, of in sides.items()]
    return "\n".join(lines)


BENCH = Bench(
    name=NAME,
    about=str(__doc__),
    quick_help="the same on less, within a minute or two",
    measure=_measure,
    table=_table,
    draw=draw,
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
