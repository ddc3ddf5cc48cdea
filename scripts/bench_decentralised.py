"""Decentralised against centralised learning: how many nodes share the work, and how seldom they average.

One, two, four and eight nodes share Fashion-MNIST's first 20,000 training images evenly, in Dirichlet(.3) mixtures of
classes, or class by class, and average their experts every 50 steps; four nodes also every 10 and every 200. All of it
is done with a teacher that they share and on labels alone. However many they are, they see as many samples together as
the one net that has all images. What codecs cost is in `bench_averaging_accuracy.py`. Progress goes to stderr, the
table to stdout. There is no target.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bench_averaging_accuracy import best_central
from bench_averaging_runs import FULL, Effort, study_setting
from bench_averaging_runs import QUICK as QUICK_STUDY
from bench_averaging_shards import SHARDS
from bench_averaging_study import Exchange, Study
from bench_decentralised_plot import draw
from bench_document import bench_document, say
from bench_experts_data import load_ground
from bench_main import Bench

from experts.averaging import codec_named
from experts.evaluation.metrics import spread

__all__ = ["GROUPS", "Group", "TEACHERS", "decentralised_figures", "measure_decentralised"]

NAME = "bench_decentralised"

QUICK = QUICK_STUDY._replace(study=QUICK_STUDY.study._replace(steps=200))
"""There are more groups here than there."""


class Group(NamedTuple):
    """How many learn together, and how often they average."""

    nodes: int
    round_steps: int

    def __str__(self) -> str:
        if self.nodes == 1:
            return "1 node"
        return f"{self.nodes} nodes, every {self.round_steps} steps"


GROUPS = (Group(1, 50), Group(2, 50), Group(4, 10), Group(4, 50), Group(4, 200), Group(8, 50))
"""In the order of the table; 50 steps is what the study of averaging has."""

TEACHERS: Mapping[str | None, str] = {"large": "shared teacher", None: "labels alone"}
"""By the study's name for it."""


def measure_decentralised(effort: Effort, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy in percent on the test set of every group, kind of shards, teacher and seed.

    Args:
        effort: Its peers and their steps say what all nodes of a group have to share.
        seed: The first; a seed has its own shards, initial weights and batches.
        tell: Takes a line of progress.

    Returns: ``central`` by teacher and ``averaged`` by shards, teacher and group, each a list over seeds; ``rounds``
        and ``sent_bytes`` of a node by group; the ``teachers`` and the ``setting``.
    """
    study = Study(load_ground(effort.size, tell), effort.study)
    study.add_teacher("large", effort.size.validation, seed)
    seeds = range(seed, seed + effort.seeds)
    central: dict[str, list[float]] = {}
    averaged: dict[str, dict[str, dict[str, list[float]]]] = {}
    rounds, sent_bytes = {}, {}
    for teacher, words in TEACHERS.items():
        tell(f"one net of all images, {words}")
        nets = [study.central(seed=one, teacher=teacher, large_batches=False) for one in seeds]
        central[words] = [study.percent_right(parameters_P) for parameters_P in nets]
    for shards, deal in SHARDS.items():
        averaged[shards] = {words: {} for words in TEACHERS.values()}
        for group in GROUPS:
            tell(f"{shards}: {group}")
            for teacher, words in TEACHERS.items():
                found = [
                    study.averaged(
                        deal(study.columns_N, group.nodes, one),
                        Exchange(codec_named("none")),
                        seed=one,
                        teacher=teacher,
                        round_steps=group.round_steps,
                    )
                    for one in seeds
                ]
                averaged[shards][words][str(group)] = [study.percent_right(each.parameters_P) for each in found]
                # Neither shards nor teachers change how often and what is sent.
                rounds[str(group)] = len(found[0].by_round)
                sent_bytes[str(group)] = found[0].sent_bytes // group.nodes
    return {
        "central": central,
        "averaged": averaged,
        "rounds": rounds,
        "sent_bytes": sent_bytes,
        "teachers": study.teachers,
        "setting": {
            **study_setting(effort.size, study),
            "steps_together": effort.study.peers * effort.study.steps,
            "teacher_steps": effort.study.teacher_steps,
        },
    }


def decentralised_figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A row for each group by shards and teacher: accuracy, and points below the central net of the same seed.

    That net is the better of the two in the mean over seeds, with the teacher or without, in all rows.

    Args:
        raw: Of `measure_decentralised`.
    """
    best = raw["central"][best_central(raw)]
    figures: dict[str, Any] = {"one net of all images": {words: _row(of) for words, of in raw["central"].items()}}
    for shards, by_teacher in raw["averaged"].items():
        for words, by_group in by_teacher.items():
            figures[f"{shards}, {words}"] = {}
            for group, accuracies in by_group.items():
                gap = spread([one - other for one, other in zip(best, accuracies, strict=True)])
                figures[f"{shards}, {words}"][group] = {
                    **_row(accuracies),
                    "gap_points": gap.mean,
                    "gap_std": gap.deviation,
                    "rounds": raw["rounds"][group],
                    "sent_kb": raw["sent_bytes"][group] / 1000,
                }
    return figures


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    effort = QUICK if options.quick else FULL
    began_s = time.perf_counter()
    raw = measure_decentralised(
        effort, options.seed, lambda text: say(f"[{time.perf_counter() - began_s:6.1f} s] {text}")
    )
    return bench_document(
        " ".join([f"python scripts/{NAME}.py", f"--seed {options.seed}", *(["--quick"] if options.quick else [])]),
        list(range(options.seed, options.seed + effort.seeds)),
        decentralised_figures(raw),
        measured={"seconds": time.perf_counter() - began_s, "best_central": best_central(raw), **raw},
    )


def _row(accuracies: Sequence[float]) -> dict[str, Any]:
    found = spread(accuracies)
    return {"accuracy": found.mean, "std": found.deviation}


def _table(document: Mapping[str, Any]) -> str:
    lines = []
    for name, rows in document["figures"].items():
        lines.append(f"{name:<30} {'accuracy, %':<14} {'points below':<14} {'rounds':>6} {'MB sent a node':>15}")
        for group, row in rows.items():
            line = f"  {group:<28} {_told(row['accuracy'], row['std']):<14}"
            if "gap_points" in row:
                gap = _told(row["gap_points"], row["gap_std"])
                line += f" {gap:<14} {row['rounds']:6} {row['sent_kb'] / 1000:15.2f}"
            lines.append(line.rstrip())
        lines.append("")
    return "\n".join(lines[:-1])


def _told(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" + ("" if deviation is None else f" +- {deviation:.2f}")


BENCH = Bench(
    name=NAME,
    about=str(__doc__),
    quick_help="the same on less, with one seed, within a minute",
    measure=_measure,
    table=_table,
    draw=draw,
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
