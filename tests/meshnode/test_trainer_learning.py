"""Learning a small task of real digits, in this process: what is reported, in which order, and what it is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_in_memory import MESH, PIXELS, digits, tiny_trunk

from experts.architectures.mlp import MlpArchitecture
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import flat_parameters, load_flat, weights_to_bytes
from experts.data.dataset import ImageDataset
from experts.distillation import DistillationConfig
from experts.errors import ExpertsError
from experts.router.statistics import ClassStatistics
from experts.teachers.cnn import CnnTeacher, TeacherConfig
from experts.trunk.base import features_of
from experts.trunk.images import prepare_images
from meshnode.trainer.learning import Learner, LearnerConfig
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.messages import Checkpoint, ExpertJob, FromTrainer, Learn, Learned, Progress, Statistics

TASK = digits("0", "1").select(range(100))
LATER = digits("0", "1").select(range(100, 160))
STEPS, CHECKPOINT_STEPS = 250, 100


def architecture(num_classes: int) -> MlpArchitecture:
    return MlpArchitecture(feature_dim=MESH.spec.feature_dim, hidden=4, num_classes=num_classes)


def job(uid: str, *classes: str, updating: bool = False, vector: np.ndarray | None = None) -> ExpertJob:
    module = architecture(len(classes)).build(uid)
    if vector is not None:
        load_flat(module, torch.from_numpy(vector.copy()))
    return ExpertJob(
        uid=uid,
        classes=classes,
        architecture=architecture(len(classes)).to_config(),
        weights=weights_to_bytes(module),
        updating=updating,
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
    said: list[FromTrainer] = field(default_factory=list)

    def learn(
        self,
        task: ImageDataset,
        jobs: Sequence[ExpertJob],
        *,
        name: str = "task",
        deltas: Callable[[str], list[np.ndarray]] = no_deltas,
    ) -> list[FromTrainer]:
        config = LearnerConfig(
            distillation=DistillationConfig(steps=self.steps, gamma=self.gamma, lr=self.lr),
            teacher=TeacherConfig(epochs=3),
            checkpoint_steps=CHECKPOINT_STEPS,
            seed=1,
        )
        self.said = []
        learner = Learner(tiny_trunk(), self.memory(), self.folder, config, self.said.append)
        learner.learn(Learn(run=1, task=name, experts=tuple(jobs)), task, name, deltas)
        return self.said

    def memory(self) -> ReplayMemory:
        return ReplayMemory(self.folder / "replay.msgpack", capacity=80, seed=1)

    def last(self, uid: str) -> np.ndarray:
        """The vector of the last checkpoint."""
        vectors = [said.vector for said in self.said if isinstance(said, Checkpoint) and said.uid == uid]
        return np.frombuffer(vectors[-1], np.float32)


def accuracy(vector: np.ndarray, classes: Sequence[str], data: ImageDataset) -> float:
    module = architecture(len(classes)).build("x")
    load_flat(module, torch.from_numpy(vector.copy()))
    columns = module(features_of(tiny_trunk(), data.images)).argmax(dim=1).tolist()
    return float(np.mean([classes[column] == label for column, label in zip(columns, data.labels, strict=True)]))


def test_a_task_is_reported_from_its_statistics_to_the_end_in_order(tmp_path: Path) -> None:
    said = Lesson(tmp_path).learn(TASK, [job("e", "0", "1")])
    kinds = [type(message).__name__ for message in said]
    assert kinds[0] == "Statistics"
    assert kinds[-1] == "Learned"
    progress = [(m.stage, m.done, m.total) for m in said if isinstance(m, Progress)]
    assert progress == [
        ("teacher", 1, 3),
        ("teacher", 2, 3),
        ("teacher", 3, 3),
        ("distil", 100, 250),
        ("distil", 200, 250),
    ]
    checkpoints = [m for m in said if isinstance(m, Checkpoint)]
    assert [(m.uid, m.steps, m.deltas_applied) for m in checkpoints] == [("e", 100, 0), ("e", 200, 0), ("e", 250, 0)]
    learned = said[-1]
    assert isinstance(learned, Learned)
    assert learned.replay_samples == 80
    assert learned.teacher_accuracy > 0.9
    losses = [m.loss for m in said if isinstance(m, Progress)]
    assert losses[2] < losses[0]
    assert losses[4] < losses[3]


def test_the_statistics_are_those_of_the_tasks_features(tmp_path: Path) -> None:
    said = Lesson(tmp_path).learn(TASK, [])
    assert isinstance(said[0], Statistics)
    expected = ClassStatistics.from_features(features_of(tiny_trunk(), TASK.images), TASK.labels)
    assert said[0].data == expected.to_bytes()
    assert ClassStatistics.from_bytes(said[0].data).counts == TASK.class_counts


def test_the_expert_answers_for_real_digits_it_has_not_seen(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path)
    lesson.learn(TASK, [job("e", "0", "1")])
    test = digits("0", "1", test=True)
    untrained = flat_parameters(architecture(2).build("e")).numpy()
    assert accuracy(untrained, ("0", "1"), test) < 0.9
    assert accuracy(lesson.last("e"), ("0", "1"), test) > 0.95


def test_the_teacher_is_kept_and_has_seen_the_task(tmp_path: Path) -> None:
    Lesson(tmp_path).learn(TASK, [], name="first")
    teacher = CnnTeacher.from_bytes((tmp_path / "first.safetensors").read_bytes())
    assert teacher.classes == ("0", "1")
    test = digits("0", "1", test=True)
    columns = teacher.logits(prepare_images(test.images, 1, PIXELS)).argmax(dim=1).tolist()
    right = [teacher.classes[column] == label for column, label in zip(columns, test.labels, strict=True)]
    assert np.mean(right) > 0.9


def test_the_same_task_and_seed_give_the_same_bits(tmp_path: Path) -> None:
    vectors = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lesson = Lesson(tmp_path / name)
        lesson.learn(TASK, [job("e", "0", "1")])
        vectors.append(lesson.last("e"))
    assert np.array_equal(*vectors)


def test_each_expert_learns_only_the_classes_it_answers_for(tmp_path: Path) -> None:
    task = digits("0", "1", "2", "3").select(range(200))
    lesson = Lesson(tmp_path)
    lesson.learn(task, [job("low", "0", "1"), job("high", "2", "3", "9")])
    assert accuracy(lesson.last("low"), ("0", "1"), digits("0", "1", test=True)) > 0.9
    assert accuracy(lesson.last("high"), ("2", "3", "9"), digits("2", "3", test=True)) > 0.9
    order = [m.uid for m in lesson.said if isinstance(m, Checkpoint)]
    assert order == ["low"] * 3 + ["high"] * 3


def test_deltas_that_come_between_steps_are_added_and_counted(tmp_path: Path) -> None:
    num_parameters = architecture(2).num_parameters
    delta = np.linspace(-1, 1, num_parameters, dtype=np.float32)
    asked = 0

    def deltas(uid: str) -> list[np.ndarray]:
        nonlocal asked
        assert uid == "e"
        asked += 1
        return {1: [delta], 151: [delta, -3 * delta]}.get(asked, [])

    # So small a rate that the steps themselves move nothing worth mention.
    lesson = Lesson(tmp_path, lr=1e-9)
    said = lesson.learn(TASK, [job("e", "0", "1")], deltas=deltas)
    start = flat_parameters(architecture(2).build("e")).numpy()
    checkpoints = [m for m in said if isinstance(m, Checkpoint)]
    assert [m.deltas_applied for m in checkpoints] == [1, 3, 3]
    for checkpoint, factor in zip(checkpoints, (1, -1, -1), strict=True):
        assert np.allclose(np.frombuffer(checkpoint.vector, np.float32), start + factor * delta, atol=1e-5)
    assert asked == STEPS


def test_learning_goes_on_from_where_a_delta_has_put_it(tmp_path: Path) -> None:
    """A delta half-way is no different from having started there: both end as good experts."""
    far = np.full(architecture(2).num_parameters, 0.5, np.float32)
    lesson = Lesson(tmp_path, steps=400)
    pending = [[far]]
    lesson.learn(TASK, [job("e", "0", "1")], deltas=lambda uid: pending.pop() if pending else [])
    assert accuracy(lesson.last("e"), ("0", "1"), digits("0", "1", test=True)) > 0.9


def test_updating_replays_what_the_old_generation_said(tmp_path: Path) -> None:
    """The new data calls every image a 1; only replay keeps the 0 alive."""
    drifted = ImageDataset(LATER.images, ("1",) * len(LATER))
    test = digits("0", "1", test=True)
    kept = {}
    for name, gamma, updating in (("replay", 5.0, True), ("no weight", 0.0, True), ("not updating", 5.0, False)):
        folder = tmp_path / name
        folder.mkdir()
        lesson = Lesson(folder, gamma=gamma)
        lesson.learn(TASK, [job("e", "0", "1")], name="first")
        old = lesson.last("e")
        lesson.learn(drifted, [job("e", "0", "1", updating=updating, vector=old)], name="second")
        kept[name] = accuracy(lesson.last("e"), ("0", "1"), test)
    assert kept["replay"] > 0.9
    assert kept["no weight"] < 0.7
    assert kept["not updating"] < 0.7


def test_an_expert_without_anything_remembered_is_updated_without_replay(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path)
    lesson.learn(TASK, [job("e", "0", "1", updating=True)])
    assert accuracy(lesson.last("e"), ("0", "1"), digits("0", "1", test=True)) > 0.95


def test_a_task_of_the_wrong_classes_is_an_error_and_is_not_remembered(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path)
    with pytest.raises(ExpertsError):
        lesson.learn(TASK, [job("e", "7", "8")])
    assert len(lesson.memory()) == 0
    assert not any(isinstance(message, Learned) for message in lesson.said)


def test_a_job_names_an_architecture_that_can_be_built() -> None:
    assert architecture_from_config(job("e", "0", "1").architecture) == architecture(2)
