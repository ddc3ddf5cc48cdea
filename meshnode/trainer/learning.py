"""Learning one task: router statistics, a teacher of this node's own data, then each expert by distillation.

The steps of one expert are taken one by one, so that between two of them a committed round's delta can be added and a
checkpoint sent; training never waits for averaging, nor averaging for training.

Legend: N samples of a task, D feature, P parameters.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experts.architectures.registry import architecture_from_config
from experts.averaging import add_delta
from experts.checkpoint import flat_parameters, load_weights
from experts.data.dataset import ImageDataset, class_columns
from experts.distillation import (
    DistillationConfig,
    DistillationData,
    DistillationRun,
    align_logits,
)
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics
from experts.teachers.cnn import CnnTeacher, TeacherConfig, TeacherProgress, train_teacher
from experts.trunk.base import Trunk, features_of
from experts.trunk.images import prepare_images
from meshnode.home import write_atomically
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.messages import Checkpoint, ExpertJob, FromTrainer, Learn, Learned, Progress, Statistics

__all__ = ["Deltas", "Learner", "LearnerConfig"]

Deltas = Callable[[str], list[np.ndarray]]
"""Deltas of this run that have come for an expert and were not yet asked for, float32 ``(P,)`` each."""

PROGRESS_EVERY_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    distillation: DistillationConfig
    teacher: TeacherConfig
    checkpoint_steps: int
    """Steps from one checkpoint to the next; the last one comes at the end in any case."""
    seed: int


class Learner:
    """Learns tasks with one trunk, one replay memory and a folder for its teachers.

    Args:
        trunk: The mesh's, frozen; learning happens on its device.
        memory: Samples of what was learned before; tasks are added to it.
        teachers: Folder in which each task's teacher is kept.
        config: How to learn.
        send: Takes what the daemon is to know.
    """

    def __init__(
        self,
        trunk: Trunk,
        memory: ReplayMemory,
        teachers: Path,
        config: LearnerConfig,
        send: Callable[[FromTrainer], None],
    ) -> None:
        self._trunk = trunk
        self._device = trunk.mean_D.device
        self._memory = memory
        self._teachers = teachers
        self._config = config
        self._send = send

    def learn(self, learn: Learn, task: ImageDataset, digest: str, deltas: Deltas) -> None:
        """Learn a task and say so, step by step.

        Raises:
            ExpertsError: The task cannot be learned as it is.
        """
        began = time.monotonic()
        features_ND = features_of(self._trunk, task.images)
        self._send(Statistics(data=ClassStatistics.from_features(features_ND, task.labels).to_bytes()))
        teacher, accuracy = self._train_teacher(learn.task, task)
        for job in learn.experts:
            self._distil(job, learn.task, task, features_ND, teacher, deltas)
        self._memory.add(task, digest)
        self._send(
            Learned(
                teacher_accuracy=accuracy,
                seconds=time.monotonic() - began,
                replay_samples=len(self._memory),
            )
        )

    def _train_teacher(self, name: str, task: ImageDataset) -> tuple[CnnTeacher, float]:
        """A CNN trained on this task's images alone, and its accuracy on them."""

        def report(progress: TeacherProgress) -> None:
            self._send(Progress(stage="teacher", done=progress.epoch, total=progress.epochs, loss=progress.loss))

        images_NCHW = self._prepared(task.images)
        generator = torch_generator(self._config.seed, f"teacher/{name}")
        teacher = train_teacher(images_NCHW, task.labels, self._config.teacher, generator, report)
        write_atomically(self._teachers / f"{name}.safetensors", teacher.to_bytes())
        right = teacher.logits(images_NCHW).argmax(dim=1).cpu() == class_columns(task.labels, teacher.classes)
        return teacher, float(right.float().mean())

    def _distil(
        self,
        job: ExpertJob,
        task_name: str,
        task: ImageDataset,
        features_ND: torch.Tensor,
        teacher: CnnTeacher,
        deltas: Deltas,
    ) -> None:
        module = architecture_from_config(job.architecture).build(job.uid)
        load_weights(module, job.weights)
        module.to(self._device)
        run = DistillationRun(
            module,
            self._new_data(job, task, features_ND, teacher),
            self._config.distillation,
            torch_generator(self._config.seed, f"distil/{task_name}/{job.uid}"),
            replay=self._old_data(job, module) if job.updating else None,
        )
        applied, loss = 0, 0.0
        while not run.done:
            for delta in deltas(job.uid):
                add_delta(module, torch.from_numpy(delta))
                applied += 1
            loss += run.step()
            if run.steps_done % PROGRESS_EVERY_STEPS == 0:
                mean_loss, loss = loss / PROGRESS_EVERY_STEPS, 0.0
                total = self._config.distillation.steps
                self._send(Progress(stage="distil", done=run.steps_done, total=total, loss=mean_loss))
            if run.done or run.steps_done % self._config.checkpoint_steps == 0:
                vector = flat_parameters(module).numpy().tobytes()
                self._send(Checkpoint(uid=job.uid, vector=vector, deltas_applied=applied, steps=run.steps_done))

    def _new_data(
        self, job: ExpertJob, task: ImageDataset, features_ND: torch.Tensor, teacher: CnnTeacher
    ) -> DistillationData:
        """The task's samples of the expert's classes, with labels and the teacher's word on them."""
        rows = [row for row, label in enumerate(task.labels) if label in job.classes]
        labels = [task.labels[row] for row in rows]
        logits_NC = teacher.logits(self._prepared(task.images[rows]))
        return DistillationData(
            features_ND=features_ND[rows],
            labels_N=class_columns(labels, job.classes).to(self._device),
            teacher_logits_NC=align_logits(logits_NC, teacher.classes, job.classes),
        )

    def _old_data(self, job: ExpertJob, module: torch.nn.Module) -> DistillationData | None:
        """What is remembered of the expert's classes, with its present generation as the teacher."""
        images = self._memory.images_of(job.classes)
        if not len(images):
            return None
        return DistillationData.from_old_generation(module, features_of(self._trunk, images))

    def _prepared(self, images: np.ndarray) -> torch.Tensor:
        prepared = prepare_images(images, self._trunk.input_channels, self._trunk.input_pixels)
        return prepared.to(self._device)
