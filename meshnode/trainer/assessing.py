"""Looking at a task before it is learned: is it new, and what would experts gain by it? (proposal, 2.5, steps a and b)

How new it is follows from the router's own statistics, batch by batch (`experts.continual.novelty`), against what this
node holds out of what it has learned. What an expert would gain is tried: a copy of it takes a few steps on the new
images and is held against it on others of them, and on what is held out of its classes. What a trial learns from are
labels and a ridge solved from them, for the teachers that a lesson has would cost more than the trial.

A trial is strict, as a migration is: the expert has mostly learned from the very images that are held out of its
classes.

Legend: N images, B batch, D feature.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights
from experts.continual.decision import ExpectedGain
from experts.continual.lesson import ridge_taught
from experts.continual.novelty import Assessment, NoveltyConfig, NoveltyDetector, pooled
from experts.continual.starting import accuracy_of
from experts.data.dataset import class_columns
from experts.data.held_out import image_digest, is_held_out
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.generators import torch_generator
from experts.router.ridge import RouterConfig
from experts.router.statistics import ClassStatistics
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.assess_messages import Assess, Assessed, BatchVerdict, ExpertTrial
from meshnode.trainer.held_back import HeldBack, HeldImages, uncounted
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.task_file import TaskFile

__all__ = ["Assessor", "Judge"]

LEAST_TRIAL_STEPS, TRIAL_SHARE = 50, 10
"""A trial takes a tenth of a lesson's steps, and so many at least: an expert that has hardly begun may take a hundred
before its accuracy moves at all, and a gain that is missed is missed for good."""

IMAGES_LOOKED_AT = 2048
"""Of a larger task a random choice, in its order: 32 batches, and features for some seconds at most."""


class Assessor:
    """Judges tasks and tries updates, with one trunk and one replay memory.

    Args:
        trunk: The mesh's, frozen.
        memory: Images of what was learned before.
        held: What is held out of that.
        publisher: Knows which of these images the statistics count.
        config: How experts are distilled; a trial has its own number of steps.
        seed: What draws follow from.
    """

    def __init__(
        self,
        trunk: Trunk,
        memory: ReplayMemory,
        held: HeldBack,
        publisher: Publisher,
        config: DistillationConfig,
        seed: int,
    ) -> None:
        self._trunk = trunk
        self._memory = memory
        self._held = held
        self._publisher = publisher
        steps = max(LEAST_TRIAL_STEPS, config.steps // TRIAL_SHARE)
        self._config = dataclasses.replace(config, steps=steps, mixed_precision=False)
        self._seed = seed
        self._novelty = NoveltyConfig()

    def assess(self, order: Assess, task: PartlyLabelled) -> Assessed:
        """The verdict on a task and on each of its batches, and what each expert would gain.

        Raises:
            NothingToLearnFrom: The task has no image.
            TrainingDiverged: A trial does.
            ExpertsError: Weights are not those of their form, or images not such as the trunk takes.
        """
        looked_at = task.select(self._choice(len(task), order.task))
        features_ND = features_of(self._trunk, looked_at.images).cpu()
        judge = self.judge(order.statistics, order.known, order.learned)
        batches = judge.batches(features_ND)
        named = [label for label in task.labels if label is not None]
        return Assessed(
            assessment=pooled(batches, num_labelled=len(named), unseen_labels=sorted(set(named) - judge.labels)),
            batches=tuple(BatchVerdict(verdict=part.verdict, distance=part.distance) for part in batches),
            gains={
                trial.uid: self._gain(trial, looked_at, features_ND, judge.held.of_classes(trial.classes), order.task)
                for trial in order.experts
            },
        )

    def judge(self, statistics: bytes | None, known: Sequence[str], learned: Sequence[TaskFile]) -> "Judge":
        """What judges batches by what is known.

        Args:
            statistics: The mesh's; None before any.
            known: Classes that experts answer for; those of the statistics are known as well.
            learned: Learned tasks.
        """
        merged = None if statistics is None else ClassStatistics.from_bytes(statistics)
        labels = frozenset({*known, *(() if merged is None else merged.classes)})
        held = self._held.of(learned, labels)
        if merged is not None:
            merged = uncounted(merged, held, self._publisher)
        generator = torch_generator(self._seed, "novelty")
        detector = NoveltyDetector(merged, held.features_ND, labels, self._novelty, generator)
        return Judge(detector=detector, labels=labels, held=held, batch_size=self._novelty.batch_size)

    def _gain(
        self, trial: ExpertTrial, task: PartlyLabelled, features_ND: torch.Tensor, held: HeldImages, name: str
    ) -> ExpectedGain:
        """What a few steps on two thirds of the expert's images bring on the others and on what is held out for it."""
        rows = [row for row, label in enumerate(task.labels) if label in trial.classes]
        judged = rows[::3]
        # An image that is held out may be in this task as well, where it is another version of a learned one.
        learned = [row for row in rows if row not in set(judged) and not is_held_out(image_digest(task.images[row]))]
        judged_ND = torch.cat([features_ND[judged], held.features_ND])
        labels = [*(str(task.labels[row]) for row in judged), *held.labels]
        columns_N = class_columns(labels, trial.classes)
        module = architecture_from_config(trial.architecture).build(trial.uid)
        load_weights(module, trial.weights)
        now = updated = accuracy_of(module, judged_ND, columns_N)
        if learned:
            data = ridge_taught(
                features_ND[learned], [str(task.labels[row]) for row in learned], trial.classes, RouterConfig()
            )
            run = DistillationRun(
                module,
                data,
                self._config,
                torch_generator(self._seed, f"trial/{name}/{trial.uid}"),
                replay=self._remembered(module, trial),
            )
            while not run.done:
                run.step()
            updated = accuracy_of(module, judged_ND, columns_N)
        return ExpectedGain(accuracy_now=now, accuracy_updated=updated, num_items=len(labels))

    def _remembered(self, module: nn.Module, trial: ExpertTrial) -> DistillationData | None:
        """The replay term's data, without what judges."""
        images = self._memory.images_of(trial.classes)
        kept = images[[not is_held_out(image_digest(image)) for image in images]] if len(images) else images
        if not len(kept):
            return None
        return DistillationData.from_old_generation(module, features_of(self._trunk, kept).cpu())

    def _choice(self, number: int, task: str) -> list[int]:
        if number <= IMAGES_LOOKED_AT:
            return list(range(number))
        order = torch.randperm(number, generator=torch_generator(self._seed, f"assess/{task}"))
        return sorted(order[:IMAGES_LOOKED_AT].tolist())


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Judge:
    """Judges by what is known now; made anew when that has changed."""

    detector: NoveltyDetector
    labels: frozenset[str]
    """All that are known."""
    held: HeldImages
    """What the threshold is drawn from."""
    batch_size: int

    def batches(self, features_ND: torch.Tensor) -> list[Assessment]:
        """Of each whole batch, by distance alone; of the only one, if it is not whole.

        Raises:
            NothingToLearnFrom: If there is no row.
        """
        last = max(len(features_ND) - self.batch_size, 0)
        starts = range(0, last + 1, self.batch_size)
        return [self.detector.assess(features_ND[start : start + self.batch_size]) for start in starts]
