"""What a teacher adds to few labels: distillation against cross-entropy alone, on Fashion-MNIST.

    CE   cross-entropy on n labelled images                                  (alpha = 1)
    KD   alpha CE + (1 - alpha) T^2 KL on the same n images, alpha = .5, T = 2

The student is an expert with one hidden layer of 16 on tap B4. The teachers are heads of 128 hidden units.

- `kd`, `kd_unlabelled`: on B4 too, trained on the labels of the whole pool. What a node gains that asks a teacher who
  knows more; by its own name, since a teacher of one node's data knows less.
- `kd_same_labels`: on a larger section of the network, up to tap E5, trained on the same n labels and nothing else.

The two last also show the student the unlabelled rest of the pool, where the KL term stands alone.

All sides take the same steps from the same initial weights, and each takes, for each n, the learning rate of one and
the same grid that does best on the validation split, on average over the seeds.

Legend: N images, D feature, C class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from bench_experts_data import Features, Ground
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experts.architectures.mlp import MlpArchitecture
from experts.distillation import UNLABELLED, DistillationConfig, DistillationData, DistillationRun
from experts.evaluation.metrics import spread
from experts.generators import torch_generator

__all__ = ["KdEffort", "PROTOTYPE", "best_rate", "measure_kd"]

PROTOTYPE: Mapping[int, tuple[float, float]] = {100: (72.2, 79.1), 1000: (85.2, 87.3), 10000: (88.5, 89.1)}
"""Accuracy of CE and of KD, in percent, by the number of labels."""

SIDES = ("ce", "kd", "kd_unlabelled", "kd_same_labels")

STUDENT_HIDDEN, TEACHER_HIDDEN = 16, 128
STUDENT_TAP, LARGER_TAP = "B4", "E5"

TEACHER_RATE = 0.05
"""Of the teachers, not tuned."""


class KdEffort(NamedTuple):
    """How much is trained."""

    labels: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    student_steps: int
    teacher_steps: int


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Scored:
    """One trained student, accuracies in percent."""

    validation: float
    test: float


class _Study:
    """Everything the runs share: features, labels, and the teacher that knows the whole pool."""

    def __init__(self, ground: Ground, effort: KdEffort, seed: int) -> None:
        self.ground = ground
        self.effort = effort
        self.seed = seed
        self.student: Features = ground.features(STUDENT_TAP)
        self.larger: Features = ground.features(LARGER_TAP)
        self.columns_N = ground.columns(ground.pool)
        self.architecture = self.head_on(self.student, STUDENT_HIDDEN)
        ground.tell(f"the teacher of {len(self.columns_N)} labels")
        self.knowing = self.train_teacher(self.student, torch.arange(len(self.columns_N)), seed)
        self.knowing_NC = teacher_logits(self.knowing, self.student)

    def head_on(self, features: Features, hidden: int) -> MlpArchitecture:
        """The form of a student or a teacher on a tap."""
        return MlpArchitecture(
            feature_dim=features.trunk.feature_dim, hidden=hidden, num_classes=len(self.ground.classes)
        )

    def train_teacher(self, features: Features, rows: Tensor, seed: int) -> nn.Module:
        """A head on a tap, trained on the labels of these rows alone."""
        module = self.head_on(features, TEACHER_HIDDEN).build(f"teacher-{seed}")
        data = DistillationData(features_ND=features.pool[rows], labels_N=self.columns_N[rows])
        config = DistillationConfig(steps=self.effort.teacher_steps, lr=TEACHER_RATE, alpha=1.0)
        for _ in DistillationRun(module, data, config, torch_generator(seed, "teacher batches")):
            pass
        return module

    def draw_rows(self, num_labels: int, seed: int) -> Tensor:
        """Which images of the pool have a label: drawn by a generator of their own."""
        return torch.randperm(len(self.columns_N), generator=torch_generator(seed, "labels"))[:num_labels]

    def data_of(self, side: str, rows: Tensor, same_NC: Tensor) -> DistillationData:
        """What the student of a side learns from."""
        if side in ("ce", "kd"):
            logits_NC = self.knowing_NC[rows] if side == "kd" else None
            labels_N = self.columns_N[rows]
            return DistillationData(features_ND=self.student.pool[rows], labels_N=labels_N, teacher_logits_NC=logits_NC)
        labels_N = torch.full_like(self.columns_N, UNLABELLED)
        labels_N[rows] = self.columns_N[rows]
        logits_NC = self.knowing_NC if side == "kd_unlabelled" else same_NC
        return DistillationData(features_ND=self.student.pool, labels_N=labels_N, teacher_logits_NC=logits_NC)

    def train_student(self, data: DistillationData, rate: float, seed: int) -> _Scored:
        """One student, scored on the validation split and the test set."""
        module = self.architecture.build(f"student-{seed}")
        config = DistillationConfig(steps=self.effort.student_steps, lr=rate)
        for _ in DistillationRun(module, data, config, torch_generator(seed, "student batches")):
            pass
        ground = self.ground
        return _Scored(
            validation=percent_right(module, self.student.validation, ground.columns(ground.validation)),
            test=percent_right(module, self.student.test, ground.columns(ground.test)),
        )


def measure_kd(ground: Ground, effort: KdEffort, seed: int) -> dict[str, Any]:
    """All sides at every number of labels.

    Returns: ``figures`` (gain in points, mean and deviation over seeds, paired by seed), ``accuracy`` of every side,
        ``teacher`` and the ``setting``.
    """
    study = _Study(ground, effort, seed)
    seeds = range(seed, seed + effort.seeds)
    table = {str(num_labels): _measure_labels(study, num_labels, seeds) for num_labels in effort.labels}
    gains = {
        num_labels: {side: _gain(sides["ce"]["test"], sides[side]["test"]) for side in SIDES[1:]}
        for num_labels, sides in table.items()
    }
    return {"gain": gains, "accuracy": table, "teacher": _teacher_facts(study), "setting": _setting(study)}


def _measure_labels(study: _Study, num_labels: int, seeds: Sequence[int]) -> dict[str, Any]:
    effort = study.effort
    scored: dict[str, dict[float, list[_Scored]]] = {side: {rate: [] for rate in effort.rates} for side in SIDES}
    same_teacher: list[float] = []
    for seed in seeds:
        study.ground.tell(f"kd: {num_labels} labels, seed {seed}")
        rows = study.draw_rows(num_labels, seed)
        same = study.train_teacher(study.larger, rows, seed)
        same_teacher.append(percent_right(same, study.larger.test, study.ground.columns(study.ground.test)))
        same_NC = teacher_logits(same, study.larger)
        for side in SIDES:
            data = study.data_of(side, rows, same_NC)
            for rate in effort.rates:
                scored[side][rate].append(study.train_student(data, rate, seed))
    sides: dict[str, Any] = {}
    for side, by_rate in scored.items():
        rate = best_rate({rate: [one.validation for one in runs] for rate, runs in by_rate.items()})
        sides[side] = {"rate": rate, **_spread([one.test for one in by_rate[rate]])}
    sides["teacher_of_same_labels"] = _spread(same_teacher)
    return sides


def best_rate(validation_by_rate: Mapping[float, Sequence[float]]) -> float:
    """The learning rate of the best mean accuracy; of equal ones the lowest."""
    return max(sorted(validation_by_rate), key=lambda rate: fmean(validation_by_rate[rate]))


def teacher_logits(module: nn.Module, features: Features) -> Tensor:
    """Of the pool, ``(N, C)``."""
    with torch.no_grad():
        logits_NC: Tensor = module(features.pool)
    return logits_NC


def percent_right(module: nn.Module, features_ND: Tensor, columns_N: Tensor) -> float:
    """Accuracy in percent."""
    with torch.no_grad():
        right_N = module(features_ND).argmax(dim=1) == columns_N
    return 100.0 * float(right_N.double().mean())


def _gain(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    # By seed: both sides were given the same labels, whose draw is most of the spread.
    return _spread([second - first for first, second in zip(before, after, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, Any]:
    over_seeds = spread(values)
    return {"mean": over_seeds.mean, "std": over_seeds.deviation, "test": list(values)}


def _teacher_facts(study: _Study) -> dict[str, Any]:
    """The data, labels and FLOPs of both kinds of teacher, without which their accuracy says little."""
    ground, num_images = study.ground, len(study.columns_N)
    accuracy = percent_right(study.knowing, study.student.test, ground.columns(ground.test))
    return {
        "knowing": {"labels": num_images, "accuracy": accuracy, **_flops(study, study.student, num_images)},
        "same_labels": {"labels": "those of the student", **_flops(study, study.larger, num_images)},
    }


def _flops(study: _Study, features: Features, num_images: int) -> dict[str, Any]:
    trunk = features.trunk
    counter = FlopCounterMode(display=False)
    with counter:
        trunk(torch.zeros(1, trunk.input_channels, trunk.input_pixels, trunk.input_pixels))
    section_flops, head_flops = counter.get_total_flops(), study.head_on(features, TEACHER_HIDDEN).flops_per_sample
    rows_trained = study.effort.teacher_steps * DistillationConfig().batch_size
    return {
        "section": f"efficientnet-lite0, {trunk.feature_dim} features at {trunk.input_pixels} px, from ImageNet",
        "hidden": TEACHER_HIDDEN,
        # Once through the section for each image of the pool, which the teacher is asked about; forward and backward
        # through the head cost three forwards.
        "flops_per_image": section_flops + head_flops,
        "flops_of_training": section_flops * num_images + 3 * head_flops * rows_trained,
    }


def _setting(study: _Study) -> dict[str, Any]:
    effort, config = study.effort, DistillationConfig()
    return {
        "student": f"{STUDENT_HIDDEN} hidden units on {STUDENT_TAP} at {study.student.trunk.input_pixels} px",
        "pool": len(study.columns_N),
        "validation": len(study.ground.validation),
        "test": len(study.ground.test),
        "rates": list(effort.rates),
        "steps": effort.student_steps,
        "batch_size": config.batch_size,
        "alpha": config.alpha,
        "temperature": config.temperature,
        "seeds": effort.seeds,
    }
