"""All runs of the study of averaging: every way, kind of shards and seed, and the central nets beside them.

Each run depends on its seed alone, so they are spread over as many processes as there are cores.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from bench_averaging_shards import SHARDS
from bench_averaging_study import ALPHA, HIDDEN, TAP, TEACHER_HIDDEN, Exchange, Study, StudyEffort
from bench_experts_data import PIXELS, Size, load_ground

from experts.averaging import CODECS, codec_named
from experts.distillation import DistillationConfig

__all__ = ["Effort", "FULL", "QUICK", "SIDES", "Side", "measure_accuracy", "study_setting"]


class Effort(NamedTuple):
    """How much is measured."""

    size: Size
    study: StudyEffort
    seeds: int


FULL = Effort(
    size=Size(pool=20_000, validation=20_000, test=10_000),
    study=StudyEffort(peers=4, steps=1900, round_steps=50, teacher_steps=6000, small_teacher_images=2000),
    seeds=3,
)
QUICK = Effort(
    size=Size(pool=4_000, validation=4_000, test=2_000),
    study=StudyEffort(peers=4, steps=500, round_steps=50, teacher_steps=1000, small_teacher_images=500),
    seeds=1,
)


class Side(NamedTuple):
    """One way of averaging."""

    codec: str
    teacher: str | None = "large"
    feedback: bool = True


SIDES: dict[str, Side] = {
    **{codec: Side(codec) for codec in CODECS},
    "none_small_teacher": Side("none", teacher="small"),
    "none_without_teacher": Side("none", teacher=None),
    # The other codecs leave next to nothing out.
    "topk_without_feedback": Side("topk", feedback=False),
}


def measure_accuracy(effort: Effort, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy in percent on the test set of every side, kind of shards and seed.

    Args:
        seed: The first; a seed has its own shards, initial weights and batches, all sides of it the same.
        tell: Takes a line of progress.

    Returns: ``central`` by side and ``averaged`` by shards and side, each a list over seeds; ``by_round`` by shards, of
        the first seed; ``sent_bytes`` of a member by codec; ``largest_class_ratio``, the share of a shard's most
        frequent class, mean over shards and seeds; the ``teachers`` and the ``setting``.
    """
    global _study  # noqa: PLW0603 - what a forked process has without its being sent
    torch.set_num_threads(1)
    ground = load_ground(effort.size, tell)
    _study = Study(ground, effort.study)
    _study.add_teacher("large", effort.size.validation, seed)
    _study.add_teacher("small", effort.study.small_teacher_images, seed)
    seeds = range(seed, seed + effort.seeds)
    # Not spawned: each process would read and hold the features for itself.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")) as pool:
        central = [pool.submit(_central, one) for one in seeds]
        groups = {shards: [pool.submit(_averaged, shards, one) for one in seeds] for shards in SHARDS}
        by_seed = [future.result() for future in central]
        by_shards = {shards: [future.result() for future in futures] for shards, futures in groups.items()}
    ratios = {shards: [group.largest_class_ratio for group in found] for shards, found in by_shards.items()}
    return {
        "central": {side: [of[side] for of in by_seed] for side in by_seed[0]},
        "averaged": {
            shards: {side: [group.accuracy[side] for group in found] for side in SIDES}
            for shards, found in by_shards.items()
        },
        "by_round": {shards: found[0].by_round for shards, found in by_shards.items()},
        "sent_bytes": by_shards["iid"][0].sent_bytes,
        "largest_class_ratio": {shards: sum(of) / len(of) for shards, of in ratios.items()},
        "teachers": _study.teachers,
        "setting": {**study_setting(effort.size, _study), **effort.study._asdict(), "seeds": effort.seeds},
    }


def study_setting(size: Size, study: Study) -> dict[str, Any]:
    """What every run of a study depends on."""
    config = DistillationConfig()
    return {
        "expert": f"{HIDDEN} hidden units on {TAP} at {PIXELS} px, {study.features.trunk.feature_dim} features",
        "teacher": f"{TEACHER_HIDDEN} hidden units on the same, images and labels in no shard",
        "parameters": study.architecture.num_parameters,
        "classes": len(study.ground.classes),
        "pool": size.pool,
        "test": size.test,
        "alpha": ALPHA,
        "temperature": config.temperature,
        "lr": config.lr,
        "batch_size": config.batch_size,
    }


class _Group(NamedTuple):
    """One kind of shards and one seed, averaged in every way."""

    accuracy: dict[str, float]
    by_round: list[float]
    sent_bytes: dict[str, int]
    largest_class_ratio: float


_study: Study


def _central(seed: int) -> dict[str, float]:
    _study.ground.tell(f"seed {seed}: central")
    found = {}
    for name, teacher in (("central", "large"), ("central_without_teacher", None)):
        for side, large_batches in ((name, False), (f"{name}_large_batches", True)):
            parameters_P = _study.central(seed=seed, teacher=teacher, large_batches=large_batches)
            found[side] = _study.percent_right(parameters_P)
    return found


def _averaged(shards: str, seed: int) -> _Group:
    _study.ground.tell(f"seed {seed}: {shards}")
    rows = SHARDS[shards](_study.columns_N, _study.effort.peers, seed)
    accuracy, sent_bytes, by_round = {}, {}, []
    for name, side in SIDES.items():
        exchange = Exchange(codec_named(side.codec), feedback=side.feedback)
        averaged = _study.averaged(
            rows, exchange, seed=seed, teacher=side.teacher, round_steps=_study.effort.round_steps
        )
        accuracy[name] = _study.percent_right(averaged.parameters_P)
        sent_bytes[side.codec] = averaged.sent_bytes
        if name == "none":
            by_round = [_study.percent_right(parameters_P) for parameters_P in averaged.by_round]
    largest = [int(_study.columns_N[part].bincount().max()) / len(part) for part in rows]
    return _Group(accuracy, by_round, sent_bytes, sum(largest) / len(largest))
