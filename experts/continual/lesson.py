"""One expert learning one increment of the data: what it is told, by whom, and how far it has come.

    L_CL = L_new + gamma L_distill_old          (proposal, section 2.5)

L_new has the labels, those that are remembered of the expert's earlier images included, and as teacher a ridge solved
from the same images; an image without a label has the teacher's word alone. L_distill_old has what is remembered, with
the expert as it was before. The expert that answers is not touched: a copy learns.

Legend: N items, D feature.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.checkpoint import load_weights
from experts.continual.settings import LearnerConfig
from experts.data.dataset import class_columns
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData, TeacherLogits
from experts.distillation.loss import UNLABELLED
from experts.distillation.run import DistillationRun
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics

__all__ = ["Lesson", "lesson_steps", "ridge_taught"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """What is to be done, before it begins."""

    uid: str
    architecture: Architecture
    classes: tuple[str, ...]
    """Of the expert, sorted."""
    targets: tuple[str, ...]
    """Of the router, that will speak for it."""
    context: str | None
    generation: int
    """It will be, from 1."""
    rows: tuple[int, ...]
    """Of the increment, that it learns from: the labelled ones."""
    unlabelled: tuple[int, ...] = ()
    """Of the increment, without a label, that it learns from what the teacher says of them."""
    weights: bytes
    """It begins with."""
    number: int
    """Of the increment, which names the generators."""

    @property
    def is_update(self) -> bool:
        """Whether there is an expert as it was before."""
        return self.generation > 1

    def module(self) -> nn.Module:
        """With the weights it begins with."""
        module = self.architecture.build(self.uid)
        load_weights(module, self.weights)
        return module

    def run(
        self,
        features_ND: Tensor,
        labels: Sequence[str | None],
        replayed: tuple[Tensor, Sequence[str]],
        config: LearnerConfig,
        generator: torch.Generator,
        *,
        steps: int | None = None,
    ) -> DistillationRun:
        """Training of a module of its own.

        Args:
            features_ND: Of what it learns from, N at least 1.
            labels: N class names, all of the expert's, or None.
            replayed: Features and class names of what is remembered of its earlier images, N possibly 0.
            config: The learner's.
            generator: Of the batches.
            steps: To take; None for as many as the settings give for so many items.
        """
        replayed_ND, replayed_labels = replayed
        old = None
        if self.is_update and len(replayed_ND):
            old = DistillationData.from_old_generation(self.module(), replayed_ND)
            features_ND, labels = torch.cat([features_ND, replayed_ND]), [*labels, *replayed_labels]
        steps = lesson_steps(len(features_ND), config) if steps is None else steps
        distillation: DistillationConfig = dataclasses.replace(config.distillation, steps=steps)
        data = ridge_taught(features_ND, labels, self.classes, config.teacher)
        return DistillationRun(self.module(), data, distillation, generator, replay=old)


def lesson_steps(num_items: int, config: LearnerConfig) -> int:
    """Steps that make so many passes, and no fewer than the least, within the most that a lesson takes."""
    in_passes = math.ceil(config.passes * num_items / config.distillation.batch_size)
    return min(config.distillation.steps, max(config.least_steps, in_passes))


def ridge_taught(
    features_ND: Tensor, labels: Sequence[str | None], classes: Sequence[str], config: RouterConfig
) -> DistillationData:
    """Items with their labels and the word of a ridge solved from them.

    Args:
        features_ND: N at least 1.
        labels: N class names, all among the student's, or None for an item of which only the ridge speaks; at least
            one is named.
        classes: The student's columns.
        config: Of the ridge; its regulariser is divided by the share of items that have a label.
    """
    named = [row for row, label in enumerate(labels) if label is not None]
    names = [str(labels[row]) for row in named]
    # It is to speak of images that it was not solved from, the more so the fewer have a label.
    config = dataclasses.replace(config, ridge=config.ridge * len(labels) / len(named))
    teacher = solve_ridge(ClassStatistics.from_features(features_ND[named], names), config)
    said = TeacherLogits(logits_NK=teacher.scores(features_ND), classes=teacher.classes)
    columns_N = torch.full((len(labels),), UNLABELLED)
    columns_N[named] = class_columns(names, classes)
    return DistillationData.from_teachers(features_ND, columns_N, [said], classes)
