"""Learning one task: router statistics, what the teachers say, then each expert by distillation.

The steps of one expert are taken one by one, so that between two of them a committed round's delta can be added and a
checkpoint sent; training never waits for averaging, nor averaging for training. With each checkpoint the run is saved,
and a task that is learned again after a kill goes on from there.

Legend: N samples of a task, D feature, P parameters.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from experts.architectures.registry import architecture_from_config
from experts.averaging import add_delta
from experts.checkpoint import flat_parameters, load_weights
from experts.data.dataset import class_columns
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig, DistillationData, DistillationRun, ProgressMeter
from experts.distillation.loss import UNLABELLED
from experts.generators import torch_generator
from experts.teachers.cnn import TeacherProgress
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.interrupted import InterruptedRun, InterruptedRuns, resume
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.messages import Checkpoint, ExpertJob, FromTrainer, Learn, Learned, Progress, Statistics
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.teaching import Faculty, Taught

__all__ = ["Deltas", "Learner", "LearnerConfig", "Lesson", "old_data"]

Deltas = Callable[[str], list[np.ndarray]]
"""Deltas of this run that have come for an expert and were not yet asked for, float32 ``(P,)`` each."""

PROGRESS_EVERY_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    distillation: DistillationConfig
    checkpoint_steps: int
    """Least steps from one checkpoint to the next; the last one comes at the end in any case."""
    checkpoint_s: float
    """Least seconds from one to the next: steps of a small expert take less than a millisecond, and each checkpoint
    becomes a generation, written to disk and advertised."""
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Lesson:
    """A task, and what trunk and teachers say of it."""

    name: str
    digest: str
    task: PartlyLabelled
    features_ND: torch.Tensor
    taught: Taught

    def of(self, job: ExpertJob, device: torch.device) -> DistillationData:
        """The samples of the expert's classes, with labels and the teachers' word on them.

        An image without a label is the expert's if the first teacher takes it for one of its classes; it is learned
        from by the KL term alone.
        """
        named = [
            guess if label is None else label
            for label, guess in zip(self.task.labels, self.taught.guesses, strict=True)
        ]
        rows = [row for row, name in enumerate(named) if name in job.classes]
        columns = class_columns([named[row] for row in rows], job.classes)
        columns[[self.task.labels[row] is None for row in rows]] = UNLABELLED
        return DistillationData.from_teachers(
            self.features_ND[rows], columns.to(device), self.taught.of(rows, device), job.classes
        )


class Learner:
    """Learns tasks with one trunk, one replay memory and one faculty.

    Args:
        trunk: The mesh's, frozen; learning happens on its device.
        memory: Samples of what was learned before; tasks are added to it.
        faculty: The teachers.
        runs: Where runs are saved.
        publisher: Makes the router's statistics.
        config: How to learn.
        send: Takes what the daemon is to know.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what the worker already has
        self,
        trunk: Trunk,
        memory: ReplayMemory,
        faculty: Faculty,
        runs: InterruptedRuns,
        publisher: Publisher,
        config: LearnerConfig,
        send: Callable[[FromTrainer], None],
    ) -> None:
        self._trunk = trunk
        self._device = trunk.mean_D.device
        self._memory = memory
        self._faculty = faculty
        self._runs = runs
        self._publisher = publisher
        self._config = config
        self._send = send

    def learn(self, learn: Learn, task: PartlyLabelled, digest: str, deltas: Deltas) -> None:
        """Learn a task and say so, step by step. Images without a label are in neither statistics nor memory.

        Raises:
            ExpertsError: The task cannot be learned as it is.
        """
        began = time.monotonic()
        features_ND = features_of(self._trunk, task.images)
        labelled = task.labelled
        data = self._publisher.publish(learn.task, labelled, digest, features_ND[task.labelled_rows])
        self._send(Statistics(data=data, waiting=self._publisher.waiting, increments=self._publisher.increments))
        own_accuracy = None
        if learn.experts:
            taught = self._faculty.teach(learn.task, task, digest, self._report_teacher())
            own_accuracy = taught.own_accuracy
            lesson = Lesson(name=learn.task, digest=digest, task=task, features_ND=features_ND, taught=taught)
            for job in learn.experts:
                self._distil(job, lesson, deltas)
        self._memory.add(labelled, digest, learn.task)
        self._send(
            Learned(
                teacher_accuracy=own_accuracy,
                seconds=time.monotonic() - began,
                replay_samples=len(self._memory),
            )
        )
        self._runs.clear()

    def _report_teacher(self) -> Callable[[TeacherProgress], None]:
        began = time.monotonic()

        def report(progress: TeacherProgress) -> None:
            an_epoch_s = (time.monotonic() - began) / progress.epoch
            left_s = (progress.epochs - progress.epoch) * an_epoch_s
            done, total = progress.epoch, progress.epochs
            self._send(Progress(stage="teacher", done=done, total=total, loss=progress.loss, left_s=left_s))

        return report

    def _distil(self, job: ExpertJob, lesson: Lesson, deltas: Deltas) -> None:
        found = self._runs.find(job.uid, lesson.digest)
        if found is not None and found.finished and (found.name, found.steps) == (job.run, job.steps):
            return  # it was done when another expert of the task was interrupted
        module = architecture_from_config(job.architecture).build(job.uid)
        # What must not be forgotten is what the expert was before the run, not what half of it has made.
        before = (job.weights if job.updating else None) if found is None else found.before
        load_weights(module, job.weights if before is None else before)
        module.to(self._device)
        run = DistillationRun(
            module,
            lesson.of(job, self._device),
            self._config.distillation,
            torch_generator(self._config.seed, f"distil/{lesson.name}/{job.uid}"),
            replay=None if before is None else old_data(module, self._memory.images_of(job.classes), self._trunk),
        )
        if found is not None and resume(found, run, module, job):
            name = found.name
        else:
            name = secrets.token_hex(8)  # of no consequence to what is learned
            load_weights(module, job.weights)
        meter = ProgressMeter(
            total=self._config.distillation.steps,
            every_steps=PROGRESS_EVERY_STEPS,
            now_s=time.monotonic(),
            done=run.steps_done,
        )
        replayed = () if before is None else self._memory.tasks_of(job.classes)
        tasks = None if replayed is None else tuple(sorted({lesson.name, *replayed}))
        applied = 0
        sent_steps, sent_s = run.steps_done, time.monotonic()
        while not run.done:
            for delta in deltas(job.uid):
                add_delta(module, torch.from_numpy(delta))
                applied += 1
            loss, now_s = run.step(), time.monotonic()
            progress = meter.after_step(loss, now_s=now_s)
            if progress is not None:
                done, total, left_s = progress.step, progress.total, progress.left_s
                self._send(Progress(stage="distil", done=done, total=total, loss=progress.mean_loss, left_s=left_s))
            new_steps = run.steps_done - sent_steps
            is_due = new_steps >= self._config.checkpoint_steps and now_s - sent_s >= self._config.checkpoint_s
            if run.done or is_due:
                saved = InterruptedRun(
                    name=name,
                    task=lesson.digest,
                    before=before,
                    steps=run.steps_done,
                    finished=run.done,
                    state=run.to_bytes(),
                )
                # Saved first: a checkpoint that was committed can always be gone on from.
                self._runs.save(job.uid, saved)
                vector = flat_parameters(module).numpy().tobytes()
                self._send(
                    Checkpoint(
                        uid=job.uid,
                        vector=vector,
                        deltas_applied=applied,
                        run=name,
                        steps=run.steps_done,
                        tasks=tasks,
                        new_steps=new_steps,
                    )
                )
                sent_steps, sent_s = run.steps_done, now_s


def old_data(module: nn.Module, images: np.ndarray, trunk: Trunk) -> DistillationData | None:
    """What an expert is to go on answering about images that it knows; None without any."""
    return DistillationData.from_old_generation(module, features_of(trunk, images)) if len(images) else None
