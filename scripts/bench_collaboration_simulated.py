"""How much sooner nodes that share tasks know as much as one node that learns them all, simulated.

One, two, four and eight nodes learn the five tasks of Split Fashion-MNIST: whole tasks dealt out in turn, or a share of
each, even or in Dirichlet(.3) mixtures of its classes, with replicas of its expert that are averaged. Everything is
really learned, in this process; what each node takes is timed as CPU seconds, and what it sends goes over a modelled
line, so `simulated_s` is as if each had a machine and a line of its own. Nothing of a daemon counts:
`bench_collaboration.py` has real ones. The target is half a point below what the one node comes to, on training images
that no node has. The exit code is 0 if every target is met, 10 if one is missed, 1 if something could not be measured.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench_collaboration_learning import (
    ROUNDS,
    SHARES,
    TAP,
    TASKS,
    WHOLE_TASKS,
    Ground,
    Together,
    learn_together,
    load_ground,
)
from bench_collaboration_lessons import time_to
from bench_collaboration_simulated_plot import draw
from bench_collaboration_time import HELD_TO_TARGET, LINE, ROUND_TRIPS, WITHIN, mean_or_none, speed_ups, target_of
from bench_document import bench_document, say
from bench_main import Bench

from experts.evaluation.metrics import spread
from experts.evaluation.suite.methods import EXPERT_STEPS

__all__ = ["ALONE", "simulated_figures", "simulated_targets"]

NAME = "bench_collaboration_simulated"

ALONE = "1 node"
"""The row that all others are held against, run by run; one node has the same whatever the kind of shares."""


class Effort(NamedTuple):
    """How much is measured."""

    images: int
    held_out: int
    steps: int
    """Of distilling one task's expert, of all that share it together."""
    nodes: tuple[int, ...]
    """Beside one."""
    seeds: int


FULL = Effort(images=20_000, held_out=5_000, steps=EXPERT_STEPS, nodes=(2, 4, 8), seeds=3)
QUICK = Effort(images=2_000, held_out=1_000, steps=300, nodes=(2, 4), seeds=1)

Runs = Mapping[str, Mapping[str, Sequence[Together]]]
"""By kind of shares and number of nodes, a run for each seed."""


def simulated_figures(alone: Sequence[Together], runs: Runs) -> dict[str, Any]:
    """Times, speed-ups and accuracies by kind of shares and number of nodes, means over seeds.

    A kind of which one run does not reach the target has neither time nor speed-up, so that no mean is of the others.
    """
    targets = [_end(run) - WITHIN for run in alone]
    alone_s = [_reached_s(target, run) for target, run in zip(targets, alone, strict=True)]
    return {
        ALONE: _row(targets, alone_s, alone),
        **{
            kind: {number: _row(targets, alone_s, of_number) for number, of_number in of_kind.items()}
            for kind, of_kind in runs.items()
        },
    }


def simulated_targets(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the speed-up of so many nodes is held against, for each kind of shares."""
    return {
        f"{kind}: speed-up of {HELD_TO_TARGET} nodes": target_of(rows[f"{HELD_TO_TARGET} nodes"]["simulated_speed_up"])
        for kind, rows in figures.items()
        if kind in SHARES
    }


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    effort = QUICK if options.quick else FULL
    began_s = time.perf_counter()

    def tell(text: str) -> None:
        say(f"[{time.perf_counter() - began_s:6.1f} s] {text}")

    ground = load_ground(effort.images, effort.held_out, tell)
    alone: list[Together] = []
    runs: dict[str, dict[str, list[Together]]] = {kind: {_nodes(n): [] for n in effort.nodes} for kind in SHARES}
    # Seed by seed, so that a machine that becomes slower does so to what is compared.
    for seed in range(effort.seeds):
        tell(f"seed {seed}: {ALONE}")
        alone.append(learn_together(ground, 1, WHOLE_TASKS, LINE, seed=seed, steps=effort.steps))
        for kind, of_kind in runs.items():
            for number in effort.nodes:
                tell(f"seed {seed}: {kind}, {_nodes(number)}")
                run = learn_together(ground, number, kind, LINE, seed=seed, steps=effort.steps)
                of_kind[_nodes(number)].append(run)
    figures = simulated_figures(alone, runs)
    return bench_document(
        f"python scripts/{NAME}.py" + (" --quick" if options.quick else ""),
        range(effort.seeds),
        figures,
        targets=simulated_targets(figures),
        measured={
            "setting": _setting(effort, ground),
            "runs": {ALONE: list(map(_told, alone))}
            | {kind: {number: list(map(_told, of)) for number, of in rows.items()} for kind, rows in runs.items()},
            "seconds": time.perf_counter() - began_s,
        },
    )


def _nodes(number: int) -> str:
    return f"{number} nodes"


def _end(run: Together) -> float:
    return run.course[-1][1]


def _reached_s(target: float, alone: Together) -> float:
    """When the one node is at its own target, which its end is above."""
    moment_s = time_to(target, alone.course)
    assert moment_s is not None
    return moment_s


def _row(targets: Sequence[float], alone_s: Sequence[float], runs: Sequence[Together]) -> dict[str, Any]:
    took_s = [time_to(target, run.course) for target, run in zip(targets, runs, strict=True)]
    ratios = speed_ups(alone_s, took_s)
    there = [ratio for ratio in ratios if ratio is not None]
    end = spread([_end(run) for run in runs])
    return {
        "accuracy": end.mean,
        "std": end.deviation,
        "reached_ratio": len(there) / len(runs),
        "simulated_s": mean_or_none(took_s),
        "simulated_speed_up": mean_or_none(ratios),
        "speed_up_std": spread(there).deviation if len(there) == len(runs) else None,
        "busiest_cpu_s": statistics.fmean(max(run.cpu_s) for run in runs),
        "all_cpu_s": statistics.fmean(sum(run.cpu_s) for run in runs),
        "sent_kb": statistics.fmean(max(run.sent_bytes) for run in runs) / 1000,
    }


def _setting(effort: Effort, ground: Ground) -> dict[str, Any]:
    return {
        "tasks": len(TASKS),
        "tap": TAP,
        **effort._asdict(),
        "rounds_a_task": ROUNDS,
        "target": f"{WITHIN:g} points below one node in the end, on held-out training images",
        "bits_per_s": LINE.bits_per_s,
        "round_trip_s": LINE.round_trip_s,
        "round_trips_a_round": ROUND_TRIPS,
        "round_trips_a_result": 2 * ROUND_TRIPS,
        "trunk_ms_an_image": 1000 * ground.trunk_s,
    }


def _told(run: Together) -> dict[str, Any]:
    return {"course": run.course, "cpu_s": run.cpu_s, "sent_kb": [sent / 1000 for sent in run.sent_bytes]}


def _table(document: Mapping[str, Any]) -> str:
    lines = [f"{'':<30} {'accuracy %':>15} {'simulated':>20} {'busiest CPU':>13} {'sent':>10}"]
    for name, found in document["figures"].items():
        if name == ALONE:
            lines.append(_line(name, found))
            continue
        lines += [_line(f"{name}, {number}", row) for number, row in found.items()]
    lines.append("")
    for name, target in document["targets"].items():
        lines.append(f"{name}: {target['value']}, {target['target']}: {'met' if target['met'] else 'MISSED'}")
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any]) -> str:
    deviation = "" if row["std"] is None else f" +- {row['std']:.2f}"
    told = (
        "not there" if row["simulated_s"] is None else f"{row['simulated_s']:8.1f} s {row['simulated_speed_up']:6.2f} x"
    )
    return (
        f"{name:<30} {row['accuracy']:6.2f}{deviation:<9} {told:>20} {row['busiest_cpu_s']:11.1f} s "
        f"{row['sent_kb'] / 1000:7.2f} MB"
    )


BENCH = Bench(
    name=NAME,
    about=str(__doc__),
    quick_help="the same on less, with one seed, within a minute",
    measure=_measure,
    table=_table,
    draw=draw,
    has_seed=False,
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
