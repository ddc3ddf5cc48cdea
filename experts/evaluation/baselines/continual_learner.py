"""Our whole method on one machine: assessment, decisions, replay and lessons over a frozen trunk and the ridge router.

What `routed_experts` does with an expert for every task, this decides: whether to reuse, update or spawn, from where to
begin, what to keep. It is given tasks, or their images as a stream in batches, without a word on where a task begins;
then what is not yet enough for a lesson is learned at each task's end, before it is tested.

FLOPs are those of all features asked for, replayed and held-out images included, of scatters and solves (of the router,
the teachers, the novelty detector), of the steps of lessons, and of trials at the cost of a step of the lesson after
them. Left out is what is small where there is much to learn: answers of experts, router and teachers on the way to a
decision, and one expert carried over to begin another.

Legend: N images, D feature, A classes that may be named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.continual.decision import Decision
from experts.continual.learner import ContinualLearner
from experts.continual.settings import LearnerConfig
from experts.data.dataset import ImageDataset
from experts.data.held_out import image_digest
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.cost import Holdings, count_flops, count_solves
from experts.evaluation.inputs import Inputs

__all__ = ["ContinualMethod", "Labelling"]

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelling:
    """Which images come with their labels: some of them, by their digests.

    Raises:
        SettingOutOfRange: If the ratio is outside its range.
    """

    ratio: float
    """Share of images with a label, in (0, 1]."""
    gives_others: bool
    """Whether the others come as well, without theirs."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio <= 1.0:
            raise SettingOutOfRange("ratio", self.ratio, allowed="in (0, 1]")

    def tells(self, image: NDArray[np.uint8]) -> bool:
        """Whether this one has its label; independent of whether it would be held out."""
        return int.from_bytes(image_digest(image)[:4]) < self.ratio * 2**32


class ContinualMethod(Baseline):
    """The continual learner, measured."""

    def __init__(
        self,
        inputs: Inputs,
        config: LearnerConfig,
        *,
        seed: int,
        stream_batch: int | None = None,
        told: bool = False,
        labelling: Labelling | None = None,
    ) -> None:
        """
        Args:
            inputs: Features of a trunk.
            config: The learner's; where tasks are told they are numbered.
            seed: The learner's.
            stream_batch: Images of a batch, at least 1, if they come as a stream; None for whole tasks.
            told: Whether each domain is said to be a new one; where tasks are told it makes no difference.
            labelling: Which labels it gets; None for all.

        Raises:
            SettingOutOfRange: If ``stream_batch`` is below 1.
        """
        super().__init__()
        if stream_batch is not None and stream_batch < 1:
            raise SettingOutOfRange("stream_batch", stream_batch, allowed="at least 1")
        self._labelling = labelling
        self.name = "continual learner" if stream_batch is None else "continual learner, stream"
        self._inputs = inputs
        self._config = config
        self._stream_batch = stream_batch
        self._told = told or config.setting == "task-incremental"
        self._seen_features: dict[bytes, Tensor] = {}
        self._num_features = 0
        self.learner = ContinualLearner(self._features, config, seed=seed)
        self.decisions: list[Decision] = []
        """All of them, in order."""
        self._num_tasks = 0
        self._flops = 0
        self._flops_per_step = 0
        self._steps_counted = 0
        self._sent_bytes = 0
        self._num_updated = 0

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """The mixture's output over the experts that answer for an allowed class."""
        return self.learner.knowledge.scores(self._inputs(images), allowed)

    def holdings(self) -> Holdings:
        """What it keeps are statistics, replayed and held-out images; what it sends, statistics and changed experts."""
        knowledge = self.learner.knowledge
        of_router = 0 if knowledge.router is None else knowledge.router.weights.numel()
        of_experts = sum(expert.architecture.num_parameters for expert in knowledge.experts.values())
        return Holdings(
            num_parameters=of_router + of_experts,
            num_updated=of_router + self._num_updated,
            kept_bytes=knowledge.kept_bytes,
            sent_bytes=self._sent_bytes,
            flops=self._flops + self._num_features * self._inputs.flops_per_image,
        )

    def _learn(self, task: ImageDataset) -> None:
        images, labels = self._given(task)
        self._look_at(images)
        before = {uid: expert.generation for uid, expert in self.learner.knowledge.experts.items()}
        if self._stream_batch is None:
            name = f"task {self._num_tasks:03}" if self._told else None
            self.decisions.append(self._counted(lambda: self.learner.learn_task(images, labels, task=name)))
        else:
            for start in range(0, len(images), self._stream_batch):
                rows = slice(start, start + self._stream_batch)
                self._take_lessons()
                self.decisions += self._counted(partial(self.learner.observe, images[rows], labels[rows])).decisions
            self._take_lessons()
            self.decisions += self._counted(self.learner.flush)
        self._take_lessons()
        self._counted(lambda: self.learner.knowledge.router)
        self._num_tasks += 1
        self._note_sent(before)

    def _given(self, task: ImageDataset) -> tuple[NDArray[np.uint8], tuple[str | None, ...]]:
        """The images it gets, and the labels of those whose it gets."""
        if self._labelling is None:
            return task.images, task.labels
        told = [self._labelling.tells(image) for image in task.images]
        if self._labelling.gives_others:
            return task.images, tuple(label if tells else None for label, tells in zip(task.labels, told, strict=True))
        alone = task.select([row for row, tells in enumerate(told) if tells])
        return alone.images, alone.labels

    def _take_lessons(self) -> None:
        while self.learner.busy:
            lessons = self.learner.num_lessons
            self._counted(self.learner.step)  # and before it what the lesson begins with
            if self.learner.num_lessons == lessons:
                _, self._flops_per_step = count_flops(self.learner.step)
            while self.learner.num_lessons == lessons:
                self.learner.step()
            self._count_steps()
        self._count_steps()  # of trials that no lesson came of

    def _count_steps(self) -> None:
        self._flops += (self.learner.steps_taken - self._steps_counted) * self._flops_per_step
        self._steps_counted = self.learner.steps_taken

    def _counted(self, act: Callable[[], Result]) -> Result:
        """What it gives, with its solves counted."""
        result, flops = count_solves(act)
        self._flops += flops
        return result

    def _note_sent(self, before: dict[str, int]) -> None:
        knowledge = self.learner.knowledge
        changed = [expert for uid, expert in knowledge.experts.items() if before.get(uid) != expert.generation]
        self._num_updated = sum(expert.architecture.num_parameters for expert in changed)
        self._sent_bytes += 4 * self._num_updated
        if knowledge.statistics is not None:
            self._sent_bytes += len(knowledge.statistics.to_bytes())

    def _look_at(self, images: NDArray[np.uint8]) -> None:
        """Features of a whole task once: parts of it are asked for again and again."""
        for image, feature_D in zip(images, self._inputs(images), strict=True):
            self._seen_features[image_digest(image)] = feature_D

    def _features(self, images: NDArray[np.uint8]) -> Tensor:
        self._num_features += len(images)
        return torch.stack([self._seen_features[image_digest(image)] for image in images])
