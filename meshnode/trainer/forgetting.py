"""What the worker does where a task is to be forgotten: it deletes what it keeps of it, and distils without it.

What it keeps are images in the replay memory, the teacher that was trained on the task, teachers' answers, interrupted
runs, of which images the published statistics were made, and the task's file if it was found in a stream. An expert
that has learned from the task is distilled anew: from a generation that had not, or from its first weights, on the
tasks that are left, in their order, each as it was learned the first time.

Legend: N images, D feature.
"""

import time
from collections.abc import Callable, Collection

from torch import nn

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights, weights_to_bytes
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationRun, ProgressMeter
from experts.generators import torch_generator
from experts.teachers.cnn import TeacherProgress
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.interrupted import InterruptedRuns
from meshnode.trainer.learning import PROGRESS_EVERY_STEPS, LearnerConfig, Lesson, old_data
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.messages import (
    ExpertJob,
    Forget,
    Forgotten,
    FromTrainer,
    LearningFailed,
    Progress,
    Redistil,
    Redistilled,
    TaskFile,
)
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.task_folder import TaskFolder
from meshnode.trainer.teaching import Faculty

__all__ = ["Redistiller", "forget"]


def forget(
    order: Forget,
    memory: ReplayMemory,
    faculty: Faculty,
    runs: InterruptedRuns,
    publisher: Publisher,
    tasks: TaskFolder,
) -> Forgotten:
    """Delete what is kept of a task, or say what that would be. Deleting again what is gone does nothing."""
    of_runs = runs.of(order.experts, order.digests)
    has_teacher, num_logits = faculty.has_own(order.task), faculty.num_kept
    found_file = tasks.has_found(order.task)
    leaving = memory.leaving(order.task, order.digests, order.classes)
    if not order.dry_run:
        memory.forget(order.task, order.digests, order.classes)
        faculty.forget(order.task)
        runs.drop(of_runs)
        publisher.forget(order.task)
        tasks.drop_found(order.task)
    return Forgotten(
        images=len(leaving.rows),
        unsure_images=leaving.unsure,
        teacher=has_teacher,
        logits=num_logits,
        runs=len(of_runs),
        replay_samples=len(memory),
        waiting=publisher.waiting,
        found_file=found_file,
    )


class Redistiller:
    """Distils experts again, with the parts that learned them.

    Args:
        trunk: The mesh's, frozen.
        memory: Images of what was learned, without those to be forgotten by now.
        faculty: The teachers.
        load: Opens a task file of the data folder; None if it is gone or has other content by now.
        config: How tasks are learned.
        send: Takes what the daemon is to know of the progress.
    """

    def __init__(
        self,
        trunk: Trunk,
        memory: ReplayMemory,
        faculty: Faculty,
        load: Callable[[TaskFile], PartlyLabelled | None],
        config: LearnerConfig,
        send: Callable[[FromTrainer], None],
    ) -> None:
        self._trunk = trunk
        self._device = trunk.mean_D.device
        self._memory = memory
        self._faculty = faculty
        self._load = load
        self._config = config
        self._send = send

    def redistil(self, order: Redistil) -> Redistilled | LearningFailed:
        """The expert after all these tasks.

        Raises:
            ExpertsError: A task cannot be learned as it is, or the weights are not the expert's.
        """
        job, learned = order.expert, set(order.learned)
        module = architecture_from_config(job.architecture).build(job.uid)
        load_weights(module, job.weights)
        module.to(self._device)
        for file in order.tasks:
            task = self._load(file)
            if task is not None and set(job.classes).intersection(task.labels):
                self._distil(job, module, file, task, learned)
                learned.add(file.name)
        if not learned:
            return LearningFailed(reason="none of its other tasks' files is left as it was")
        return Redistilled(weights=weights_to_bytes(module), tasks=tuple(sorted(learned)))

    def _distil(
        self, job: ExpertJob, module: nn.Module, file: TaskFile, task: PartlyLabelled, learned: Collection[str]
    ) -> None:
        """Learn one task; of the others only those are replayed that were learned before."""
        lesson = Lesson(
            name=file.name,
            digest=file.digest,
            task=task,
            features_ND=features_of(self._trunk, task.images),
            taught=self._faculty.teach(file.name, task, file.digest, _unheard),
        )
        run = DistillationRun(
            module,
            lesson.of(job, self._device),
            self._config.distillation,
            torch_generator(self._config.seed, f"distil/{file.name}/{job.uid}"),
            replay=old_data(module, self._memory.images_of(job.classes, learned), self._trunk),
        )
        steps = self._config.distillation.steps
        meter = ProgressMeter(total=steps, every_steps=PROGRESS_EVERY_STEPS, now_s=time.monotonic())
        while not run.done:
            progress = meter.after_step(run.step(), now_s=time.monotonic())
            if progress is not None:
                done, total, left_s = progress.step, progress.total, progress.left_s
                self._send(Progress(stage="distil", done=done, total=total, loss=progress.mean_loss, left_s=left_s))


def _unheard(progress: TeacherProgress) -> None:
    """A task that was learned has its teacher on the disk."""
