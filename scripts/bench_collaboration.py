"""How much sooner a mesh of several nodes knows all tasks than one node that learns them all.

The five tasks of Split Fashion-MNIST are dealt to one, two and four real daemons, which begin at the same moment. A
mesh is done when every node answers for all tasks; the target is the accuracy of the node that learned everything, less
half a point. Two times are told: `wall_s` on this machine, whose cores the nodes share, and `simulated_s`, as it would
be if each node had a machine of its own: the CPU seconds measured of the busiest node, and the bytes it really moved
over a line of the given speed. `bench_collaboration_simulated.py` has more nodes, and tasks that they share. The exit
code is 0 if every target is met, 10 if one is missed.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_collaboration_time import (
    HELD_TO_TARGET,
    LINE,
    ROUND_TRIPS_A_TASK,
    WITHIN,
    NodeWork,
    Run,
    mean_or_none,
    simulated_s,
    speed_ups,
    target_of,
)
from bench_continual_mesh_nodes import PIXELS, TRUNK, MeshUnderTest
from bench_continual_mesh_plan import MESH_NODES, Share, Sizes, plan_of, reduced
from bench_document import RESULTS, bench_document, say, write_document
from bench_node import BenchFailed, end_everything

from experts.data.dataset import ImageDataset
from experts.data.named import load_named
from experts.evaluation.metrics import accuracy
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from meshnode.datasets import find_dataset
from meshnode.errors import ExitCode

NAME = "bench_collaboration"

FULL, QUICK = Sizes(train=800, test=800), Sizes(train=400, test=200)

NODES = (1, 2, 4)

PATIENCE_S = 900.0
"""For all tasks together; one node takes a minute for them on a core of its own."""


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    began_s = time.perf_counter()
    runs: dict[int, list[Run]] = {number: [] for number in options.nodes}
    try:
        for seed in range(options.runs):
            scenario = reduced(make_scenario("split-fashion-mnist", _load, order=seed), options.sizes)
            for number in options.nodes:
                runs[number].append(_run(number, scenario, seed))
    except BenchFailed as failure:
        say(f"could not be measured: {failure}")
        return ExitCode.FAILURE
    finally:
        end_everything()
    document = _document(runs, options, time.perf_counter() - began_s)
    if options.write:
        write_document(document, NAME)
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    quick = f"one and two nodes, one run on {QUICK.train} images a task; two minutes"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="class orders and seeds, from 0 (3)")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for all figures: leave out --quick")
    if options.runs < 1:
        parser.error("--runs is at least 1")
    options.runs = 1 if options.quick else options.runs
    options.sizes = QUICK if options.quick else FULL
    options.nodes = NODES[:2] if options.quick else NODES
    return options


@functools.cache
def _load(name: str) -> tuple[ImageDataset, ImageDataset]:
    return load_named(name, find_dataset(name))


def _run(number: int, scenario: Scenario, seed: int) -> Run:
    """Deal all tasks out at once to so many nodes that are ready, and wait until all know them."""
    began_s = time.perf_counter()

    def tell(text: str) -> None:
        say(f"[{time.perf_counter() - began_s:6.1f} s] {number} node(s), order {seed}: {text}")

    tasks = scenario.tasks
    dealt = plan_of(tasks, [(MESH_NODES[task % number],) for task in range(len(tasks))], seed=seed)
    shares: list[Share] = [share for wave in dealt.waves for share in wave]
    with (
        tempfile.TemporaryDirectory(prefix="bench-collaboration-") as folder,
        MeshUnderTest(Path(folder), shares[0], seed=seed, tell=tell) as mesh,
    ):
        for name in dealt.nodes[1:]:
            mesh.start(name)
        cpu_s = {name: mesh.cpu_s(name) for name in mesh.names}
        moved = {name: _moved(mesh, name) for name in mesh.names}
        arrived_s = time.monotonic()
        for share in shares:
            mesh.give(share)
        wall_s = mesh.wait_told(PATIENCE_S) - arrived_s
        works = {
            name: NodeWork(
                cpu_s=mesh.cpu_s(name) - cpu_s[name],
                moved_bytes=_moved(mesh, name) - moved[name],
                foreign_tasks=sum(share.node != name for share in shares),
            )
            for name in mesh.names
        }
        tell(f"all tasks known after {wall_s:.1f} s, {max(work.cpu_s for work in works.values()):.1f} s of the CPU")
        worst = min(_accuracy(mesh, name, scenario) for name in mesh.names)
    return Run(works=works, wall_s=wall_s, accuracy=100 * worst)


def _moved(mesh: MeshUnderTest, name: str) -> int:
    return sum(mesh.sent(name).values()) + sum(mesh.received(name).values())


def _accuracy(mesh: MeshUnderTest, name: str, scenario: Scenario) -> float:
    tests = (task.test for task in scenario.tasks)
    return statistics.fmean(accuracy(mesh.ask(name, test.images).predictions, test.labels) for test in tests)


def _document(runs: Mapping[int, Sequence[Run]], options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    alone = runs[1]
    targets_percent = [run.accuracy - WITHIN for run in alone]
    figures: dict[str, Any] = {}
    for number, of_number in runs.items():
        reached = [run.accuracy >= target for run, target in zip(of_number, targets_percent, strict=True)]
        simulated = [simulated_s(run, LINE) for run in of_number]
        walls = [run.wall_s for run in of_number]
        accuracies = [run.accuracy for run in of_number]
        figures[f"{number} node{'s' if number > 1 else ''}"] = {
            "accuracy": statistics.fmean(accuracies),
            "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "reached_ratio": statistics.fmean(reached),
            "simulated_s": statistics.fmean(simulated),
            "simulated_speed_up": _speed_up([simulated_s(run, LINE) for run in alone], simulated, reached),
            "wall_s": statistics.fmean(walls),
            "wall_speed_up": _speed_up([run.wall_s for run in alone], walls, reached),
            "busiest_cpu_s": statistics.fmean(max(work.cpu_s for work in run.works.values()) for run in of_number),
            "all_cpu_s": statistics.fmean(sum(work.cpu_s for work in run.works.values()) for run in of_number),
            "moved_kb": statistics.fmean(max(work.moved_bytes for work in run.works.values()) for run in of_number)
            / 1000,
        }
    targets = {}
    if HELD_TO_TARGET in runs:
        speed_up = figures[f"{HELD_TO_TARGET} nodes"]["simulated_speed_up"]
        targets[f"simulated speed-up of {HELD_TO_TARGET} nodes"] = target_of(speed_up)
    return bench_document(
        f"python scripts/{NAME}.py" + (" --quick" if options.quick else f" --runs {options.runs}"),
        range(options.runs),
        figures,
        targets=targets,
        measured={
            "trunk": {"tap": TRUNK, "pixels": PIXELS},
            "images_per_task": {"train": options.sizes.train, "test": options.sizes.test},
            "target_accuracy": targets_percent,
            "points_below_one_node": WITHIN,
            "simulated": {
                "bits_per_s": LINE.bits_per_s,
                "round_trip_s": LINE.round_trip_s,
                "round_trips_a_task": ROUND_TRIPS_A_TASK,
            },
            "cores_shared": len(os.sched_getaffinity(0)),
            "runs": {
                str(number): [
                    {
                        "accuracy": run.accuracy,
                        "wall_s": run.wall_s,
                        "simulated_s": simulated_s(run, LINE),
                        "nodes": {
                            name: {"cpu_s": work.cpu_s, "moved_kb": work.moved_bytes / 1000}
                            for name, work in run.works.items()
                        },
                    }
                    for run in of_number
                ]
                for number, of_number in runs.items()
            },
            "seconds": seconds,
        },
    )


def _speed_up(alone_s: Sequence[float], took_s: Sequence[float], reached: Sequence[bool]) -> float | None:
    together_s = [seconds if there else None for seconds, there in zip(took_s, reached, strict=True)]
    return mean_or_none(speed_ups(alone_s, together_s))


def _table(document: Mapping[str, Any]) -> str:
    lines = [f"{'':8} {'accuracy %':>15} {'simulated':>18} {'on this machine':>18} {'busiest CPU':>12} {'moved':>9}"]
    for name, row in document["figures"].items():
        spread = "" if row["std"] is None else f" +- {row['std']:.2f}"
        lines.append(
            f"{name:8} {row['accuracy']:6.2f}{spread:<8} {_told(row, 'simulated')} {_told(row, 'wall')} "
            f"{row['busiest_cpu_s']:10.1f} s {row['moved_kb'] / 1000:6.2f} MB"
        )
    for name, target in document["targets"].items():
        lines.append(f"{name}: {target['value']}, {target['target']}: {'met' if target['met'] else 'MISSED'}")
    return "\n".join(lines)


def _told(row: Mapping[str, Any], kind: str) -> str:
    speed_up = row[f"{kind}_speed_up"]
    times = "not there" if speed_up is None else f"{speed_up:4.2f} x"
    return f"{row[f'{kind}_s']:6.1f} s {times:>9}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
