"""Continual learning by four real nodes of one mesh, beside one node that is given everything.

Split Fashion-MNIST, class order by class order: its five tasks come one after another, each to one node or two of the
mesh, and all of them to the other node. After each the test images of all tasks are asked of a node that has not
learned it. A fifth node joins at the end, without data. The same is done once more with a daemon and a trainer killed
in the middle of a task. The exit code is 0 if every target is met, 10 if one is missed.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench_continual_mesh_nodes import PIXELS, TRUNK, MeshUnderTest, argmax_alone
from bench_continual_mesh_plan import MESH_NODES, Plan, Sizes, bytes_between, plan_of, reduced
from bench_continual_mesh_plot import draw
from bench_document import RESULTS, bench_document, say, write_document
from bench_node import BenchFailed, end_everything

from experts.data.dataset import ImageDataset
from experts.data.named import load_named
from experts.evaluation.metrics import AccuracyMatrix, accuracy
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from meshnode.datasets import find_dataset
from meshnode.errors import ExitCode

FULL, QUICK = Sizes(train=2000, test=800), Sizes(train=400, test=200)

WITHIN = 0.3
"""Points of accuracy that four nodes may stay behind one that has everything."""

LATE = "zoe"

KILLED_TRAINER, KILLED_DAEMON = "4", "5"
"""Tasks in the middle of which a trainer and a daemon are killed."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came of one run."""

    matrix: AccuracyMatrix
    argmax: float
    """Accuracy of the router alone in the end, in [0, 1]."""
    answers_of: dict[str, float]
    """In the end, of each node."""
    experts: int
    parameters: int
    settled_s: list[float] = field(default_factory=list)
    """From the arrival of each task to all nodes knowing it."""
    sent_kb: list[dict[str, float]] = field(default_factory=list)
    """By all nodes until then, by kind."""
    late: dict[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """In the end, of all nodes, in percent."""
        return 100 * statistics.fmean(self.answers_of.values())


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    began_s = time.perf_counter()
    runs: dict[str, list[Outcome]] = {"one node": [], "four nodes": [], "four nodes, two kills": []}
    try:
        for seed in range(options.runs):
            scenario = reduced(make_scenario("split-fashion-mnist", _load, order=seed), options.sizes)
            everything = plan_of(scenario.tasks, [("one",)] * len(scenario.tasks), seed=seed)
            runs["one node"].append(_run("one node", scenario, everything, seed))
            dealt = plan_of(scenario.tasks, seed=seed)
            runs["four nodes"].append(_run("four nodes", scenario, dealt, seed, late=True))
            runs["four nodes, two kills"].append(_run("four nodes, two kills", scenario, dealt, seed, kills=True))
    except BenchFailed as failure:
        say(f"could not be measured: {failure}")
        return ExitCode.FAILURE
    finally:
        end_everything()
    document = _document(runs, options, time.perf_counter() - began_s)
    if options.write:
        draw(document, write_document(document, "bench_continual_mesh").with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"one run on {QUICK.train} images a task; five minutes")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/, with a plot")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="class orders and seeds, from 0 (3)")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for all figures: leave out --quick")
    if options.quick:
        options.runs = 1
    if options.runs < 1:
        parser.error("--runs is at least 1")
    options.sizes = QUICK if options.quick else FULL
    return options


@functools.cache
def _load(name: str) -> tuple[ImageDataset, ImageDataset]:
    return load_named(name, find_dataset(name))


def _run(name: str, scenario: Scenario, plan: Plan, seed: int, *, late: bool = False, kills: bool = False) -> Outcome:
    """Learn the plan wave by wave with a mesh of its own."""
    began_s = time.perf_counter()

    def tell(text: str) -> None:
        say(f"[{time.perf_counter() - began_s:6.1f} s] {name}, order {seed}: {text}")

    tests = [task.test for task in scenario.tasks]
    matrix = AccuracyMatrix(len(tests))
    settled_s, sent_kb, sent = [], [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="bench-continual-mesh-") as folder:
        with MeshUnderTest(Path(folder), plan.waves[0][0], seed=seed, tell=tell) as mesh:
            for number, wave in enumerate(plan.waves):
                arrived_s = time.monotonic()
                for share in wave:
                    mesh.give(share)
                for share in wave if kills else ():
                    _disturb(mesh, share.task, share.node)
                settled_s.append(mesh.wait_told() - arrived_s)
                now = sum((Counter(mesh.sent(node)) for node in mesh.names), Counter[str]())
                sent_kb.append({kind: count / 1000 for kind, count in bytes_between(sent, now).items()})
                sent = now
                asked = _stranger(mesh.names, [share.node for share in wave])
                for on_task, test in enumerate(tests):
                    answer = mesh.ask(asked, test.images) if on_task <= number else None
                    right = 0.0 if answer is None else accuracy(answer.predictions, test.labels)
                    matrix.record(number, on_task, right)
                seen = statistics.fmean(matrix.row(number)[: number + 1])
                tell(f"task {number + 1} of {len(tests)}: {100 * seen:.2f}% by {asked}, told in {settled_s[-1]:.0f} s")
            answers_of = {node: _accuracy_of(mesh, node, tests) for node in mesh.names}
            experts = mesh.experts()
            found = _late(mesh, tests) if late else {}
            home = mesh.home(plan.nodes[0])
        alone = statistics.fmean(accuracy(argmax_alone(home, test), test.labels) for test in tests)
    return Outcome(
        matrix=matrix,
        argmax=alone,
        answers_of=answers_of,
        experts=len(experts),
        parameters=sum(one["parameters"] for one in experts),
        settled_s=settled_s,
        sent_kb=sent_kb,
        late=found,
    )


def _stranger(names: Sequence[str], learners: Sequence[str]) -> str:
    """A node that has not learned the task just now, if there is one."""
    return next((name for name in names if name not in learners), names[0])


def _accuracy_of(mesh: MeshUnderTest, node: str, tests: Sequence[ImageDataset]) -> float:
    return statistics.fmean(accuracy(mesh.ask(node, test.images).predictions, test.labels) for test in tests)


def _disturb(mesh: MeshUnderTest, task: str, node: str) -> None:
    if task == KILLED_TRAINER:
        mesh.wait_stage(node, least_done=0.3)
        mesh.kill_trainer(node)
    if task == KILLED_DAEMON:
        mesh.wait_stage(node, least_done=0.3)
        mesh.kill_daemon(node)


def _late(mesh: MeshUnderTest, tests: Sequence[ImageDataset]) -> dict[str, float]:
    """A node without data joins: what it answers when it has the statistics, and when it has all experts."""
    began_s = time.monotonic()
    mesh.start(LATE, has_data=False)
    ready_s = time.monotonic() - began_s
    mesh.wait_contributions(LATE)
    statistics_s = time.monotonic() - began_s
    statistics_kb = sum(mesh.received(LATE).values()) / 1000
    by_others = _accuracy_of(mesh, LATE, tests)
    pulled_s = mesh.pull_all(LATE)
    answer = mesh.ask(LATE, tests[0].images)
    return {
        "ready_s": ready_s,
        "statistics_s": statistics_s,
        "statistics_kb": statistics_kb,
        "accuracy_by_statistics": 100 * by_others,
        "experts_s": pulled_s,
        "accuracy_by_itself": 100 * _accuracy_of(mesh, LATE, tests),
        "own_share": answer.own_share,
    }


def _document(runs: Mapping[str, Sequence[Outcome]], options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    figures: dict[str, Any] = {name: _figures(outcomes) for name, outcomes in runs.items()}
    one, four, killed = (runs[name] for name in runs)
    behind = [a.accuracy - b.accuracy for a, b in zip(one, four, strict=True)]
    moved = [b.accuracy - c.accuracy for b, c in zip(four, killed, strict=True)]
    figures["late_joiner"] = {what: statistics.fmean(outcome.late[what] for outcome in four) for what in four[0].late}
    lost_late = [outcome.accuracy - outcome.late["accuracy_by_itself"] for outcome in four]
    between_orders = _range([outcome.accuracy for outcome in four])
    targets: dict[str, Any] = {
        "four_nodes_behind_one": {
            "target": f"<= {WITHIN} points",
            "met": statistics.fmean(behind) <= WITHIN,
            "points": statistics.fmean(behind),
            "of_each_order": behind,
        },
        "late_joiner_behind_the_mesh": {
            "target": f"<= {WITHIN} points",
            "met": max(lost_late) <= WITHIN,
            "points": max(lost_late),
        },
    }
    if len(four) > 1:
        targets["change_by_two_kills"] = {
            "target": "<= the range over orders and seeds",
            "met": abs(statistics.fmean(moved)) <= between_orders,
            "points": statistics.fmean(moved),
            "range": between_orders,
            "of_each_order": moved,
        }
    return bench_document(
        "python scripts/bench_continual_mesh.py",
        range(options.runs),
        figures,
        targets=targets,
        measured={
            "trunk": {"tap": TRUNK, "pixels": PIXELS},
            "images_per_task": {"train": options.sizes.train, "test": options.sizes.test},
            "nodes": list(MESH_NODES),
            "seconds": seconds,
            "sent_kb_by_task": {name: [outcome.sent_kb for outcome in outcomes] for name, outcomes in runs.items()},
            "settled_s_by_task": {name: [outcome.settled_s for outcome in outcomes] for name, outcomes in runs.items()},
            "answers_of": {name: [outcome.answers_of for outcome in outcomes] for name, outcomes in runs.items()},
            "accuracy_matrices": {
                name: [outcome.matrix.rows() for outcome in outcomes] for name, outcomes in runs.items()
            },
        },
        digits=4,
    )


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)

    accuracies = [outcome.accuracy for outcome in outcomes]
    return {
        "accuracy": mean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "argmax_alone": 100 * mean([outcome.argmax for outcome in outcomes]),
        "forgetting": 100 * mean([outcome.matrix.forgetting() for outcome in outcomes]),
        "retention": mean([outcome.matrix.mean_retention() for outcome in outcomes]),
        "least_retention": min(outcome.matrix.least_retention() for outcome in outcomes),
        "nodes_differ_by": 100 * max(_range(list(outcome.answers_of.values())) for outcome in outcomes),
        "experts": mean([outcome.experts for outcome in outcomes]),
        "parameters": mean([outcome.parameters for outcome in outcomes]),
        "sent_kb": mean([sum(sum(kinds.values()) for kinds in outcome.sent_kb) for outcome in outcomes]),
        "told_s": mean([mean(outcome.settled_s) for outcome in outcomes]),
    }


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _table(document: Mapping[str, Any]) -> str:
    head = (
        f"{'':22} {'accuracy %':>14} {'argmax %':>9} {'forgetting':>10} {'retention':>10} {'least':>6} "
        f"{'sent MB':>8} {'told in s':>9}"
    )
    lines = [head]
    for name, row in document["figures"].items():
        if name != "late_joiner":
            lines.append(
                f"{name:22} {row['accuracy']:8.2f} +-{row['std']:4.2f} {row['argmax_alone']:9.2f} "
                f"{row['forgetting']:10.2f} {row['retention']:10.4f} {row['least_retention']:6.3f} "
                f"{row['sent_kb'] / 1000:8.2f} {row['told_s']:9.1f}"
            )
    late = document["figures"]["late_joiner"]
    at_once = f"{late['accuracy_by_statistics']:.2f}% after {late['statistics_s']:.1f} s"
    brought = f"{late['statistics_kb'] / 1000:.2f} MB"
    by_itself = f"{late['accuracy_by_itself']:.2f}% with all experts of its own ({late['experts_s']:.1f} s more)"
    lines += ["", f"A node that joins without data answers {at_once} and {brought}, {by_itself}.", ""]
    for name, target in document["targets"].items():
        met = "met" if target["met"] else "MISSED"
        lines.append(f"{name:30} {target['points']:8.3f}  {target['target']:36} {met}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
