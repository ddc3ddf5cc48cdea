"""What experts, teachers and the router cost and gain: caching, grouping, solving, merging, distilling.

On one core, all ratios side by side in one run. Progress goes to stderr, the table to stdout. The exit code is 0 if
every target is met, 10 if one is missed, 1 if something could not be measured.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from bench_document import RESULTS, bench_document, say, write_document
from bench_experts_calls import measure_cache, measure_grouped
from bench_experts_data import Ground, Size, load_ground
from bench_experts_kd import PROTOTYPE, KdEffort, measure_kd
from bench_experts_plot import draw
from bench_experts_router import measure_budget, measure_merge, measure_solves, measure_updates

from experts.errors import ExpertsError
from meshnode.errors import ExitCode, NodeError

NAME = "bench_experts"

EXACT = 1e-6
"""Largest difference of grouped from dense, and largest relative error of a merged router."""

BUDGET_FEATURES = 360
"""Features of contributions from many peers: as many as the small router has, here the first of B4's 640."""
BUDGET_BYTES = 8_000_000


class Effort(NamedTuple):
    """How much of each thing is measured."""

    size: Size
    cache_images: int
    cache_epochs: int
    repeats: int
    dims: tuple[int, ...]
    classes: tuple[int, ...]
    update_dims: tuple[int, ...]
    update_held: int
    peers: tuple[int, ...]
    kd: KdEffort


FULL = Effort(
    size=Size(pool=20_000, validation=2_000, test=10_000),
    cache_images=1_000,
    cache_epochs=12,
    repeats=3,
    dims=(512, 1024, 2160, 4096),
    classes=(10, 100, 1000),
    update_dims=(640, 2160),
    update_held=20_000,
    peers=(10, 100, 1000),
    kd=KdEffort(labels=(100, 1000, 10_000), rates=(0.05, 0.1, 0.2), seeds=5, student_steps=1900, teacher_steps=6000),
)
QUICK = Effort(
    size=Size(pool=4_000, validation=500, test=2_000),
    cache_images=256,
    cache_epochs=3,
    repeats=1,
    dims=(512, 1024),
    classes=(10, 100),
    update_dims=(640,),
    update_held=4_000,
    peers=(10, 50),
    kd=KdEffort(labels=(100, 1000), rates=(0.05, 0.1), seeds=1, student_steps=600, teacher_steps=1000),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One part: its figures, what those with a target are held against, and what they were made from."""

    figures: Mapping[str, Any]
    targets: Mapping[str, Any]
    raw: Mapping[str, Any]


class Bench:
    """The parts, each a method named as its main figure.

    Args:
        seed: Of everything drawn.
        effort: How much is measured.
    """

    def __init__(self, *, seed: int, effort: Effort) -> None:
        self._seed = seed
        self._effort = effort
        self._began_s = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Since this was made."""
        return time.perf_counter() - self._began_s

    def tell(self, text: str) -> None:
        """A line of progress with the time since the start."""
        say(f"[{self.elapsed_s:6.1f} s] {text}")

    @cached_property
    def _ground(self) -> Ground:
        return load_ground(self._effort.size, self.tell)

    def teacher_cache_speedup(self) -> Measured:
        """Time of a distillation in which every epoch asks the teacher, over that with its logits cached."""
        effort = self._effort
        raw = measure_cache(
            self._ground,
            num_images=effort.cache_images,
            epochs=effort.cache_epochs,
            repeats=effort.repeats,
            seed=self._seed,
        )
        hits = {name: one["hit_speedup"] for name, one in raw["by_teacher"].items()}
        same = all(one["students_bit_equal"] for one in raw["by_teacher"].values())
        return Measured(
            figures={"teacher_cache_speedup": raw["speedup"], "teacher_cache_hit_speedup": hits},
            targets={
                "teacher_cache_speedup": _target("> 1, students bit-equal", same and min(raw["speedup"].values()) > 1)
            },
            raw=raw,
        )

    def grouped_over_dense_rows_per_s(self) -> Measured:
        """Rows a second of combining with rows grouped per expert, over the dense sum over all experts."""
        raw = measure_grouped(
            self.tell, num_rows=1024, experts=(20, 100), repeats=5 * self._effort.repeats, seed=self._seed
        )
        return Measured(
            figures={"grouped_over_dense_rows_per_s": raw["ratio"], "grouped_dense_difference": raw["difference"]},
            targets={"grouped_dense_difference": _target(f"<= {EXACT:g}", raw["difference"] <= EXACT)},
            raw=raw,
        )

    def solve_s(self) -> Measured:
        """Seconds and peak memory of a solve, by number of features and classes."""
        effort = self._effort
        raw = measure_solves(
            self.tell, dims=effort.dims, classes=effort.classes, repeats=effort.repeats, seed=self._seed
        )
        return Measured(
            figures={name: {case: one[name] for case, one in raw.items()} for name in ("solve_s", "solve_peak_mb")},
            targets={},
            raw=raw,
        )

    def update_s(self) -> Measured:
        """Seconds of adding rows to statistics, and how many times longer recomputing from all rows takes."""
        effort = self._effort
        raw = measure_updates(
            self.tell,
            dims=effort.update_dims,
            held=effort.update_held,
            added=(100, 1000),
            repeats=effort.repeats,
            seed=self._seed,
        )
        return Measured(
            figures={
                "update_s": {case: one["update_s"] for case, one in raw.items()},
                "recompute_over_update": {case: one["speedup"] for case, one in raw.items()},
            },
            targets={},
            raw=raw,
        )

    def router_merge_error(self) -> Measured:
        """Relative Frobenius error of B against the central router, and what a bounded number of bytes costs.

        `router_wire_error` is the same of contributions that went through their float32 wire form.
        """
        features_BD = self._ground.features("B4").pool
        labels = self._ground.pool.labels
        self.tell("merge: sequential, and four peers in 24 orders")
        raw = measure_merge(features_BD, labels, chunk=500, seed=self._seed)
        budget = measure_budget(
            self.tell,
            features_BD[:, :BUDGET_FEATURES].contiguous(),
            labels,
            peers=self._effort.peers,
            max_bytes=BUDGET_BYTES,
            seed=self._seed,
        )
        errors = {name: raw[name] for name in ("sequential", "four_peers_any_order")}
        exact = [raw["sum_bit_equal_in_all_orders"], raw["drop_bit_equal"]]
        exact += [one[name] for one in budget.values() for name in ("bit_equal_to_unbounded", "drop_bit_equal")]
        return Measured(
            figures={
                "router_merge_error": errors,
                "router_merge_bit_equal": all(exact),
                "router_wire_error": {f"{peers}_peers": one["error"] for peers, one in budget.items()},
                "router_held_mb": {f"{peers}_peers": one["held_mb"] for peers, one in budget.items()},
            },
            targets={
                "router_merge_error": _target(f"<= {EXACT:g}", max(errors.values()) <= EXACT),
                "router_merge_bit_equal": _target("= true", all(exact)),
            },
            raw={"merge": raw, "bounded": budget, "max_bytes": BUDGET_BYTES},
        )

    def kd_gain(self) -> Measured:
        """Points that distillation adds to cross-entropy alone, by number of labels."""
        raw = measure_kd(self._ground, self._effort.kd, self._seed)
        gain = {side: {labels: of[side]["mean"] for labels, of in raw["gain"].items()} for side in KD_FIGURES.values()}
        wanted = {str(labels): after - before for labels, (before, after) in PROTOTYPE.items()}
        met = all(points >= wanted[labels] for labels, points in gain["kd"].items())
        told = ", ".join(f"{wanted[labels]:.1f}" for labels in gain["kd"])
        return Measured(
            figures={figure: gain[side] for figure, side in KD_FIGURES.items()},
            targets={"kd_gain": _target(f">= {told} (prototype)", met)},
            raw=raw,
        )


KD_FIGURES: Mapping[str, str] = {
    "kd_gain": "kd",
    "kd_gain_unlabelled": "kd_unlabelled",
    "kd_gain_same_labels": "kd_same_labels",
}

MEASUREMENTS: Mapping[str, Callable[[Bench], Measured]] = {
    "teacher_cache_speedup": Bench.teacher_cache_speedup,
    "grouped_over_dense_rows_per_s": Bench.grouped_over_dense_rows_per_s,
    "solve_s": Bench.solve_s,
    "update_s": Bench.update_s,
    "router_merge_error": Bench.router_merge_error,
    "kd_gain": Bench.kd_gain,
}


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    try:
        document = _measure(options)
    except (ExpertsError, NodeError, OSError, subprocess.CalledProcessError) as failure:
        print(f"not measured: {failure}", file=sys.stderr)
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    if options.write:
        draw(document, write_document(document, NAME).with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help="the same on less, within a minute or two")
    parser.add_argument(
        "--write", action="store_true", help=f"also put it into {RESULTS.name}/{NAME}.json, with a plot"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first of all that are used (0)")
    parser.add_argument(
        "--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME", help="these parts"
    )
    options = parser.parse_args(arguments)
    if options.write and (options.quick or set(options.only) != set(MEASUREMENTS)):
        parser.error("--write is for all figures at full size: leave out --only and --quick")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    effort = QUICK if options.quick else FULL
    bench = Bench(seed=options.seed, effort=effort)
    chosen = [name for name in MEASUREMENTS if name in options.only]
    figures: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for name in chosen:
        measured = MEASUREMENTS[name](bench)
        figures |= measured.figures
        targets |= measured.targets
        raw[name] = measured.raw
    words = [f"python scripts/{NAME}.py", f"--seed {options.seed}", *(["--quick"] if options.quick else [])]
    words += [f"--only {' '.join(chosen)}"] if len(chosen) < len(MEASUREMENTS) else []
    document = bench_document(
        " ".join(words),
        list(range(options.seed, options.seed + effort.kd.seeds)),
        {},
        targets=targets,
        measured={"threads": torch.get_num_threads(), "seconds": bench.elapsed_s},
    )
    # By significant digits, since a relative error of 1e-14 and a rate of 1e6 stand side by side.
    document["figures"] = _significant(figures)
    document["measured"] |= _significant(raw)
    return document


def _significant(value: Any, digits: int = 4) -> Any:
    """Floats to so many significant digits, wherever they stand."""
    if isinstance(value, Mapping):
        return {str(name): _significant(part, digits) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_significant(part, digits) for part in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _target(told: str, met: bool) -> dict[str, Any]:
    return {"target": told, "met": met}


def _table(document: Mapping[str, Any]) -> str:
    lines = [f"{'figure':<30} {'case':<28} {'measured':>10}  target"]
    for name, value in document["figures"].items():
        target = document["targets"].get(name)
        told = f"{target['target']}: {'met' if target['met'] else 'MISSED'}" if target else ""
        cases = value.items() if isinstance(value, Mapping) else [("", value)]
        for case, number in cases:
            lines.append(f"{name:<30} {case:<28} {_number(number):>10}  {told}".rstrip())
            name, told = "", ""  # noqa: PLW2901 - said once
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
