"""Nodes that learn Fashion-MNIST's five tasks together, in one process: whole tasks each, or a share of every task.

A lesson is the trunk over its images, statistics for the router, a teacher of these images alone and the distillation
of an expert, each timed as the CPU seconds of this process with one thread. The trunk takes as long for an image in
every lesson, so it is timed once and charged by the number of images. A task's expert takes as many steps whether one
node learns it or several share them: every image is passed over as often, whoever holds it. Those who share it begin
with the same expert and average it `ROUNDS` times. Solving the router takes milliseconds, and is left out.

Legend: B batch, N images, D feature.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import platformdirs
import torch
from bench_averaging_shards import dirichlet, iid
from bench_averaging_study import Exchange
from bench_collaboration_lessons import Course, Lesson, arrivals
from bench_collaboration_time import Line
from bench_experts_data import PIXELS
from torch import Tensor, nn

from experts.architectures.base import probabilities
from experts.architectures.mlp import MlpArchitecture
from experts.averaging import codec_named
from experts.checkpoint import flat_parameters, load_flat
from experts.combine import ExpertResponse, combine
from experts.data.dataset import class_columns
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.data.named import load_named
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.distillation.data import TeacherLogits
from experts.evaluation.features import FeatureStore
from experts.evaluation.metrics import accuracy
from experts.evaluation.suite.settings import EXPERT_HIDDEN
from experts.generators import torch_generator
from experts.router.gating import gate
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.trunk.base import calibrate, features_of
from experts.trunk.efficientnet import load_efficientnet
from experts.trunk.images import prepare_images
from meshnode.datasets import find_dataset

__all__ = ["Ground", "ROUNDS", "SHARES", "TAP", "TASKS", "Together", "WHOLE_TASKS", "learn_together", "load_ground"]

TAP = "B4"

TASKS = tuple(FASHION_MNIST_CLASSES[first : first + 2] for first in range(0, 10, 2))

ROUNDS = 4
"""Averages in a lesson that several nodes share."""

WHOLE_TASKS = "whole tasks"

SHARES: Mapping[str, Callable[[Tensor, int, int], list[Tensor]] | None] = {
    WHOLE_TASKS: None,
    "even shares": iid,
    "Dirichlet(.3) shares": dirichlet,
}
"""How a task's images are dealt to all nodes; None where tasks are dealt whole, in turn."""

_TIMED = 2000
"""Images that the trunk is timed on."""

_ROUTER = RouterConfig()


class Ground(NamedTuple):
    """Features of everything, and what one takes."""

    train_ND: Tensor
    labels: Sequence[str]
    held_out_BD: Tensor
    """Of training images that no node has: when the target is reached is told by them."""
    held_out_labels: Sequence[str]
    trunk_s: float
    """CPU seconds an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """What a mesh came to, and when."""

    course: Course
    cpu_s: Sequence[float]
    """Of each node."""
    sent_bytes: Sequence[int]
    """By each node."""


class _Learned(NamedTuple):
    """What one node has of a task."""

    statistics: ClassStatistics
    expert: nn.Module
    lesson: Lesson


def load_ground(num_images: int, num_held_out: int, tell: Callable[[str], None]) -> Ground:
    """The first training images for the nodes, those right after them held out; all through the trunk."""
    train, _ = load_named("fashion-mnist", find_dataset("fashion-mnist"))
    pool = train.select(range(num_images))
    held_out = train.select(range(num_images, num_images + num_held_out))
    trunk = load_efficientnet(TAP, pixels=PIXELS)
    calibrate(trunk, prepare_images(pool.of_classes(TASKS[0]).images, trunk.input_channels, PIXELS))
    tell(f"features of {TAP}: {num_images + num_held_out} images")
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    train_ND, held_out_BD = (store.features(trunk, part.images) for part in (pool, held_out))
    timed = pool.images[:_TIMED]
    began_s = time.process_time()
    features_of(trunk, timed)
    trunk_s = (time.process_time() - began_s) / len(timed)
    return Ground(train_ND, pool.labels, held_out_BD, held_out.labels, trunk_s)


def learn_together(ground: Ground, num_nodes: int, kind: str, line: Line, *, seed: int, steps: int) -> Together:
    """All tasks at so many nodes.

    Args:
        kind: One of `SHARES`.
        seed: Of shares, initial weights and batches.
        steps: Of distilling one task's expert, of all that share it together.
    """
    deal = SHARES[kind]
    learned: dict[tuple[int, int], _Learned] = {}
    for task, classes in enumerate(TASKS):
        rows_N = torch.tensor([row for row, label in enumerate(ground.labels) if label in classes])
        if deal is None:
            shares = {task % num_nodes: rows_N}
        else:
            columns_N = class_columns([ground.labels[row] for row in rows_N.tolist()], sorted(classes))
            dealt = deal(columns_N, num_nodes, len(TASKS) * seed + task)
            shares = {node: rows_N[places_N] for node, places_N in enumerate(dealt)}
        learned |= {(node, task): one for node, one in _learned(ground, task, shares, seed, steps).items()}
    lessons = [[learned[place].lesson for place in sorted(learned) if place[0] == node] for node in range(num_nodes)]
    return Together(
        course=_course(ground, arrivals(lessons, line), learned),
        cpu_s=[sum(lesson.cpu_s for lesson in own) for own in lessons],
        sent_bytes=[
            sum((num_nodes - 1) * lesson.result_bytes + sum(lesson.round_bytes) for lesson in own) for own in lessons
        ],
    )


def _learned(ground: Ground, task: int, shares: Mapping[int, Tensor], seed: int, steps: int) -> dict[int, _Learned]:
    """One task at the nodes that share it."""
    config = DistillationConfig(steps=steps // len(shares))
    names = tuple(sorted(TASKS[task]))
    architecture = MlpArchitecture(
        feature_dim=ground.train_ND.shape[1], hidden=EXPERT_HIDDEN["class-incremental"], num_classes=len(names)
    )
    cpu_s = {node: len(rows_N) * ground.trunk_s for node, rows_N in shares.items()}
    statistics: dict[int, ClassStatistics] = {}
    runs: dict[int, DistillationRun] = {}
    for node, rows_N in shares.items():
        began_s = time.process_time()
        h_ND, labels = ground.train_ND[rows_N], [ground.labels[row] for row in rows_N.tolist()]
        statistics[node] = ClassStatistics.from_features(h_ND, labels)
        # A share may be of one class alone.
        ridge = solve_ridge(statistics[node], _ROUTER)
        teacher = TeacherLogits(logits_NK=ridge.scores(h_ND), classes=ridge.classes)
        data = DistillationData.from_teachers(h_ND, class_columns(labels, names), [teacher], names)
        module = architecture.build(f"{seed}/{task}")
        runs[node] = DistillationRun(module, data, config, torch_generator(seed, f"task {task} at node {node}"))
        cpu_s[node] += time.process_time() - began_s
    round_bytes = _trained(runs, cpu_s)
    # Those who share an expert hold it already.
    expert_bytes = 0 if len(shares) > 1 else 4 * architecture.num_parameters
    return {
        node: _Learned(
            statistics[node],
            runs[node].module,
            Lesson(
                task=task,
                cpu_s=cpu_s[node],
                result_bytes=len(statistics[node].to_bytes()) + expert_bytes,
                round_bytes=round_bytes,
            ),
        )
        for node in shares
    }


def _trained(runs: Mapping[int, DistillationRun], cpu_s: dict[int, float]) -> Sequence[int]:
    """Take all runs to their ends, averaged in rounds if there are several.

    Args:
        cpu_s: Of each node; what it takes is added.
    Returns: What each node sends in each round.
    """
    rounds = ROUNDS if len(runs) > 1 else 1
    common_P = flat_parameters(next(iter(runs.values())).module)
    round_bytes = []
    for number in range(1, rounds + 1):
        for node, run in runs.items():
            began_s = time.process_time()
            while run.steps_done < run.config.steps * number // rounds:
                next(run)
            cpu_s[node] += time.process_time() - began_s
        if len(runs) > 1:
            exchange = Exchange(codec_named("none"))
            vectors = [flat_parameters(run.module).numpy() for run in runs.values()]
            mean, _ = exchange.average(vectors, common_P.numpy())
            common_P = torch.from_numpy(mean)
            for run in runs.values():
                load_flat(run.module, common_P)
            round_bytes.append(exchange.sent_bytes // len(runs))
    return round_bytes


def _course(
    ground: Ground, arrived: Mapping[tuple[int, int], float], learned: Mapping[tuple[int, int], _Learned]
) -> Course:
    """Accuracy on held-out images of all ten classes, whenever something has arrived."""
    course: list[tuple[float, float]] = []
    for moment_s in sorted(set(arrived.values())):
        there = {place: learned[place] for place, at_s in arrived.items() if at_s <= moment_s}
        course.append((moment_s, _percent_right(ground, there)))
    return course


def _percent_right(ground: Ground, there: Mapping[tuple[int, int], _Learned]) -> float:
    """By the router of what has arrived and the experts that have; a class nobody has told of counts as wrong."""
    router = solve_ridge(sum_contributions({place: one.statistics for place, one in there.items()}), _ROUTER)
    experts = {f"task {task}": one.expert for (_, task), one in there.items()}
    answers_for = {uid: tuple(sorted(TASKS[int(uid.removeprefix("task "))])) for uid in experts}
    h_BD = ground.held_out_BD
    gates = gate(router.scores(h_BD), router.classes, answers_for, tau=_ROUTER.tau, top_k=_ROUTER.top_k)
    responses = {}
    for uid, expert in experts.items():
        rows = gates.rows_of(uid)
        responses[uid] = ExpertResponse(answers_for[uid], rows, probabilities(expert, h_BD[rows]))
    known = tuple(sorted({name for names in answers_for.values() for name in names}))
    best_B = combine(gates, responses, known, _ROUTER.renormalise).outputs_BC.argmax(dim=1)
    return 100 * accuracy([known[column] for column in best_B.tolist()], ground.held_out_labels)
