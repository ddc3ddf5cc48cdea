"""Learning a small task of real digits, in this process: what is reported, in which order, and what it is worth."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from mesh_in_memory import MESH, PIXELS, digits, tiny_trunk
from trainer_lessons import (
    CHECKPOINT_STEPS,
    LATER,
    START,
    STEPS,
    TASK,
    Killed,
    Lesson,
    accuracy,
    architecture,
    job,
)

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import flat_parameters
from experts.data.dataset import ImageDataset
from experts.errors import ExpertsError
from experts.router.statistics import ClassStatistics
from experts.teachers.cnn import CnnTeacher
from experts.trunk.base import features_of
from experts.trunk.images import prepare_images
from meshnode.trainer.messages import (
    Checkpoint,
    ExpertJob,
    FromTrainer,
    Learned,
    Progress,
    Statistics,
)


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
        ("distil", 250, 250),
    ]
    left = [m.left_s for m in said if isinstance(m, Progress)]
    assert left[2] == left[5] == 0
    assert left[0] > left[1] > 0
    assert left[3] > left[4] > 0
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
    features = features_of(tiny_trunk(), TASK.images)
    expected = ClassStatistics.from_features(features, TASK.labels, fingerprint=MESH.fingerprint)
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
    Lesson(tmp_path).learn(TASK, [job("e", "0", "1")], name="first")
    teacher = CnnTeacher.from_bytes((tmp_path / "teachers" / "first.safetensors").read_bytes())
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
        old = lesson.reached("e")
        lesson.learn(drifted, [job("e", "0", "1", updating=updating, reached=old)], name="second")
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


def uninterrupted(folder: Path, *jobs: ExpertJob, task: ImageDataset = TASK) -> Lesson:
    folder.mkdir()
    lesson = Lesson(folder)
    lesson.learn(task, jobs)
    return lesson


def test_checkpoints_are_no_closer_than_the_setting_says_but_for_the_last(tmp_path: Path) -> None:
    said = Lesson(tmp_path, checkpoint_s=3600.0).learn(TASK, [job("e", "0", "1")])
    assert [(m.steps, m.new_steps) for m in said if isinstance(m, Checkpoint)] == [(250, 250)]


def test_a_run_goes_on_from_its_last_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = uninterrupted(tmp_path / "whole", job("e", "0", "1"))
    (tmp_path / "killed").mkdir()
    lesson = Lesson(tmp_path / "killed", killed_at=100)
    with pytest.raises(Killed):
        lesson.learn(TASK, [job("e", "0", "1")])
    reached = lesson.reached("e")
    lesson.killed_at = None
    # To the daemon it has learned before: it is at its second generation.
    said = lesson.learn(TASK, [job("e", "0", "1", updating=True, reached=reached)])
    assert [(m.steps, m.new_steps) for m in said if isinstance(m, Checkpoint)] == [(200, 100), (250, 50)]
    assert [(m.stage, m.done) for m in said if isinstance(m, Progress)] == [("distil", 200), ("distil", 250)]
    assert np.array_equal(lesson.last("e"), whole.last("e"))
    assert not list((tmp_path / "killed" / "runs").iterdir())


def test_steps_whose_checkpoint_was_never_committed_are_taken_again(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path, killed_at=200)
    with pytest.raises(Killed):
        lesson.learn(TASK, [job("e", "0", "1")])
    lesson.killed_at = None
    first = next(m for m in lesson.said if isinstance(m, Checkpoint))
    said = lesson.learn(TASK, [job("e", "0", "1", reached=first)])
    assert [m.steps for m in said if isinstance(m, Checkpoint)] == [200, 250]
    assert accuracy(lesson.last("e"), ("0", "1"), digits("0", "1", test=True)) > 0.95


def test_an_interrupted_run_takes_in_what_was_averaged_since(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path, lr=1e-9, killed_at=100)
    with pytest.raises(Killed):
        lesson.learn(TASK, [job("e", "0", "1")])
    lesson.killed_at = None
    averaged = lesson.last("e") + 1
    reached = msgspec.structs.replace(lesson.reached("e"), vector=averaged.tobytes())
    lesson.learn(TASK, [job("e", "0", "1", reached=reached)])
    assert np.allclose(lesson.last("e"), averaged, atol=1e-5)


@pytest.mark.parametrize("change", ["settings", "task", "no checkpoint", "damage"])
def test_a_run_that_cannot_go_on_begins_anew(tmp_path: Path, change: str) -> None:
    whole = uninterrupted(tmp_path / "whole", job("e", "0", "1"))
    (tmp_path / "killed").mkdir()
    lesson = Lesson(tmp_path / "killed", lr=0.06 if change == "settings" else 0.05, killed_at=100)
    with pytest.raises(Killed):
        lesson.learn(TASK, [job("e", "0", "1")], name="other" if change == "task" else "task")
    # Weights as at the beginning, so that the outcome is known; under the name of the interrupted run.
    reached = msgspec.structs.replace(lesson.reached("e"), vector=START.tobytes())
    lesson.killed_at, lesson.lr = None, 0.05
    if change == "damage":
        (saved,) = (tmp_path / "killed" / "runs").iterdir()
        saved.write_bytes(saved.read_bytes()[:-20] + b"x" * 20)
    said = lesson.learn(TASK, [job("e", "0", "1", reached=None if change == "no checkpoint" else reached)])
    assert [m.steps for m in said if isinstance(m, Checkpoint)] == [100, 200, 250]
    assert np.array_equal(lesson.last("e"), whole.last("e"))


@pytest.mark.parametrize("steps", [STEPS, CHECKPOINT_STEPS, CHECKPOINT_STEPS // 2])
def test_steps_of_an_earlier_task_are_none_of_a_run_whose_first_checkpoint_was_never_committed(
    tmp_path: Path, steps: int
) -> None:
    lesson = Lesson(tmp_path, steps=steps)
    lesson.learn(TASK, [job("e", "0", "1")], name="first")
    committed = lesson.reached("e")
    lesson.steps, lesson.killed_at = STEPS, CHECKPOINT_STEPS
    with pytest.raises(Killed):
        lesson.learn(LATER, [job("e", "0", "1", updating=True, reached=committed)], name="second")
    lost, lesson.killed_at = lesson.reached("e"), None
    said = lesson.learn(LATER, [job("e", "0", "1", updating=True, reached=committed)], name="second")
    checkpoints = [message for message in said if isinstance(message, Checkpoint)]
    assert [message.steps for message in checkpoints] == [100, 200, 250]
    assert checkpoints[0].vector == lost.vector
    assert checkpoints[0].run not in (lost.run, committed.run)


def test_a_finished_run_of_as_many_steps_as_an_earlier_one_is_not_taken_for_it(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path, steps=CHECKPOINT_STEPS)
    lesson.learn(TASK, [job("e", "0", "1")], name="first")
    committed, lesson.killed_at = lesson.reached("e"), CHECKPOINT_STEPS
    with pytest.raises(Killed):
        lesson.learn(LATER, [job("e", "0", "1", updating=True, reached=committed)], name="second")
    lesson.killed_at = None
    said = lesson.learn(LATER, [job("e", "0", "1", updating=True, reached=committed)], name="second")
    assert [m.steps for m in said if isinstance(m, Checkpoint)] == [CHECKPOINT_STEPS]


def test_experts_that_were_done_are_not_trained_again(tmp_path: Path) -> None:
    task = digits("0", "1", "2", "3").select(range(200))
    lesson = Lesson(tmp_path)
    low, high = job("low", "0", "1"), job("high", "2", "3")

    class _KilledInTheSecond(Lesson):
        def _hear(self, message: FromTrainer) -> None:
            super()._hear(message)
            if isinstance(message, Checkpoint) and message.uid == "high":
                raise Killed

    killed = _KilledInTheSecond(tmp_path)
    with pytest.raises(Killed):
        killed.learn(task, [low, high])
    jobs = [
        job("low", "0", "1", reached=killed.reached("low")),
        job("high", "2", "3", reached=killed.reached("high")),
    ]
    said = lesson.learn(task, jobs)
    assert [(m.uid, m.steps) for m in said if isinstance(m, Checkpoint)] == [("high", 200), ("high", 250)]
    assert isinstance(said[-1], Learned)


def test_what_an_updated_expert_must_not_forget_is_what_it_was_before_the_interrupted_run(tmp_path: Path) -> None:
    drifted = ImageDataset(LATER.images, ("1",) * len(LATER))
    vectors = {}
    for name, killed_at in (("whole", None), ("killed", 100)):
        (tmp_path / name).mkdir()
        lesson = Lesson(tmp_path / name, gamma=5.0)
        lesson.learn(TASK, [job("e", "0", "1")], name="first")
        old = lesson.reached("e")
        lesson.killed_at = killed_at
        if killed_at:
            with pytest.raises(Killed):
                lesson.learn(drifted, [job("e", "0", "1", updating=True, reached=old)], name="second")
            lesson.killed_at = None
            half = job("e", "0", "1", updating=True, reached=lesson.reached("e"))
            lesson.learn(drifted, [half], name="second")
        else:
            lesson.learn(drifted, [job("e", "0", "1", updating=True, reached=old)], name="second")
        vectors[name] = lesson.last("e")
    assert np.array_equal(vectors["whole"], vectors["killed"])
