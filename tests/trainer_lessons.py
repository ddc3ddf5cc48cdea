"""Lessons of a trainer in this process: small tasks of real digits, and what was said while they were learned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mesh_in_memory import MESH, PIXELS, digits, tiny_trunk
from replay_memories import replay_memory

from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters, load_flat, weights_to_bytes
from experts.data.dataset import ImageDataset
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig
from experts.teachers.cnn import TeacherConfig
from experts.trunk.base import features_of
from meshnode.trainer.interrupted import InterruptedRuns
from meshnode.trainer.learning import Learner, LearnerConfig
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.messages import (
    Checkpoint,
    ExpertJob,
    FromTrainer,
    Learn,
    PrivacyTerms,
    TeacherChoice,
)
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.teaching import Faculty, FacultyConfig

__all__ = [
    "CHECKPOINT_STEPS",
    "Killed",
    "LATER",
    "Lesson",
    "START",
    "STEPS",
    "TASK",
    "accuracy",
    "architecture",
    "job",
    "no_deltas",
]

TASK = digits("0", "1").select(range(100))
LATER = digits("0", "1").select(range(100, 160))
STEPS, CHECKPOINT_STEPS = 250, 100


def architecture(num_classes: int) -> MlpArchitecture:
    return MlpArchitecture(feature_dim=MESH.spec.feature_dim, hidden=4, num_classes=num_classes)


START = flat_parameters(architecture(2).build("e")).numpy()
"""What the expert "e" begins with."""


class Killed(Exception):
    """Not one that anybody catches."""


def job(uid: str, *classes: str, updating: bool = False, reached: Checkpoint | None = None) -> ExpertJob:
    module = architecture(len(classes)).build(uid)
    if reached is not None:
        load_flat(module, torch.from_numpy(np.frombuffer(reached.vector, np.float32).copy()))
    return ExpertJob(
        uid=uid,
        classes=classes,
        architecture=architecture(len(classes)).to_config(),
        weights=weights_to_bytes(module),
        updating=updating,
        run=reached.run if reached else None,
        steps=reached.steps if reached else 0,
    )


def no_deltas(uid: str) -> list[np.ndarray]:
    return []


@dataclass
class Lesson:
    """A learner in a folder, and what it said."""

    folder: Path
    gamma: float = 1.0
    lr: float = 0.05
    steps: int = STEPS
    own: bool = True
    alpha: float = 0.5
    named: tuple[TeacherChoice, ...] = ()
    checkpoint_s: float = 0.0
    killed_at: int | None = None
    """Steps of the checkpoint at which everything ends, just after it was sent."""
    said: list[FromTrainer] = field(default_factory=list)

    def learn(
        self,
        task: ImageDataset | PartlyLabelled,
        jobs: Sequence[ExpertJob],
        *,
        name: str = "task",
        deltas: Callable[[str], list[np.ndarray]] = no_deltas,
    ) -> list[FromTrainer]:
        config = LearnerConfig(
            distillation=DistillationConfig(steps=self.steps, gamma=self.gamma, lr=self.lr, alpha=self.alpha),
            checkpoint_steps=CHECKPOINT_STEPS,
            checkpoint_s=self.checkpoint_s,
            seed=1,
        )
        self.said = []
        faculty, runs = self.faculty(), InterruptedRuns(self.folder / "runs")
        assert faculty.load() == {}
        publisher = Publisher(self.folder / "published.msgpack", PrivacyTerms(), MESH.fingerprint)
        partly = PartlyLabelled.of(task) if isinstance(task, ImageDataset) else task
        learner = Learner(tiny_trunk(), self.memory(), faculty, runs, publisher, config, self._hear)
        learner.learn(Learn(run=1, task=name, experts=tuple(jobs)), partly, name, deltas)
        return self.said

    def _hear(self, message: FromTrainer) -> None:
        self.said.append(message)
        if self.killed_at is not None and isinstance(message, Checkpoint) and message.steps == self.killed_at:
            raise Killed

    def faculty(self) -> Faculty:
        return Faculty(
            self.folder,
            FacultyConfig(
                own=TeacherConfig(epochs=3) if self.own else None,
                named=self.named,
                channels=1,
                pixels=PIXELS,
                device=torch.device("cpu"),
                cache_bytes=2**20,
                seed=1,
            ),
        )

    def memory(self) -> ReplayMemory:
        return replay_memory(self.folder / "replay.msgpack", capacity=80, seed=1)

    def last(self, uid: str) -> np.ndarray:
        """The vector of the last checkpoint."""
        return np.frombuffer(self.reached(uid).vector, np.float32)

    def reached(self, uid: str) -> Checkpoint:
        """The last checkpoint."""
        return [said for said in self.said if isinstance(said, Checkpoint) and said.uid == uid][-1]


def accuracy(vector: np.ndarray, classes: Sequence[str], data: ImageDataset) -> float:
    module = architecture(len(classes)).build("x")
    load_flat(module, torch.from_numpy(vector.copy()))
    columns = module(features_of(tiny_trunk(), data.images)).argmax(dim=1).tolist()
    return float(np.mean([classes[column] == label for column, label in zip(columns, data.labels, strict=True)]))
