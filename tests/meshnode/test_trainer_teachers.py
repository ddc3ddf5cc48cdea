"""Whom an expert learns from: the own teacher, kept and trained once, and named ones."""

from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import PIXELS, digits
from trainer_lessons import (
    LATER,
    TASK,
    Killed,
    Lesson,
    accuracy,
    job,
)

from experts.data.dataset import ImageDataset
from experts.data.partly import PartlyLabelled
from experts.generators import torch_generator
from experts.teachers.cnn import CnnTeacher, TeacherConfig, train_teacher
from experts.trunk.images import prepare_images
from meshnode.trainer.messages import (
    Learned,
    Progress,
    TeacherChoice,
)


def test_a_task_learned_again_trains_no_teacher_and_asks_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = Lesson(tmp_path, killed_at=100)
    with pytest.raises(Killed):
        lesson.learn(TASK, [job("e", "0", "1")])
    first = lesson.said[0]
    monkeypatch.setattr(CnnTeacher, "logits", lambda *_: pytest.fail("a teacher was asked"))
    lesson.killed_at = None
    said = lesson.learn(TASK, [job("e", "0", "1", reached=lesson.reached("e"))])
    assert said[0] == first
    assert not [m for m in said if isinstance(m, Progress) and m.stage == "teacher"]
    learned = said[-1]
    assert isinstance(learned, Learned)
    assert learned.teacher_accuracy is not None
    assert learned.teacher_accuracy > 0.9


def test_a_teacher_that_is_damaged_or_of_another_task_is_trained_again(tmp_path: Path) -> None:
    lesson = Lesson(tmp_path)
    for index, (task, damage) in enumerate(((TASK, False), (TASK, True), (LATER, False))):
        if damage:
            path = tmp_path / "teachers" / "task.safetensors"
            path.write_bytes(path.read_bytes()[:-4] + b"abcd")
        config = lesson.faculty()
        reports = []
        config.teach("task", PartlyLabelled.of(task), f"digest of {len(task)}", reports.append)
        assert len(reports) == 3, index


MISLABELLED = ImageDataset(TASK.images, tuple({"0": "1", "1": "0"}[label] for label in TASK.labels))


def outside_teacher(path: Path, *classes: str) -> str:
    """A teacher file of these digits, as another node or program may have trained it; its name."""
    known = digits(*classes)
    images = prepare_images(known.images, 1, PIXELS)
    teacher = train_teacher(images, known.labels, TeacherConfig(epochs=4), torch_generator(3, "outside"))
    path.write_bytes(teacher.to_bytes())
    return f"file:{path}"


def test_a_named_teacher_instead_of_the_own_one_is_what_the_expert_learns_from(tmp_path: Path) -> None:
    """Every label is wrong and counts for nothing; only the teacher knows better."""
    teacher = TeacherChoice(name=outside_teacher(tmp_path / "outside.safetensors", "0", "1", "2"))
    lesson = Lesson(tmp_path, own=False, named=(teacher,), alpha=0.0)
    said = lesson.learn(MISLABELLED, [job("e", "0", "1")])
    assert accuracy(lesson.last("e"), ("0", "1"), digits("0", "1", test=True)) > 0.95
    learned = said[-1]
    assert isinstance(learned, Learned)
    assert learned.teacher_accuracy is None
    assert not (tmp_path / "teachers").exists()


def test_teachers_count_by_their_weight(tmp_path: Path) -> None:
    name = outside_teacher(tmp_path / "outside.safetensors", "0", "1")
    for weight, right in ((20.0, True), (0.05, False)):
        folder = tmp_path / str(weight)
        folder.mkdir()
        lesson = Lesson(folder, named=(TeacherChoice(name=name, weight=weight),), alpha=0.0)
        lesson.learn(MISLABELLED, [job("e", "0", "1")])
        assert (accuracy(lesson.last("e"), ("0", "1"), digits("0", "1", test=True)) > 0.5) is right


def test_a_teacher_of_some_classes_teaches_those_and_of_none_nothing(tmp_path: Path) -> None:
    task = digits("0", "1", "2", "3").select(range(300))
    names = [outside_teacher(tmp_path / f"{name}.safetensors", *name.split()) for name in ("0 1", "7 8")]
    vectors = []
    for count in (2, 1, 0):
        folder = tmp_path / str(count)
        folder.mkdir()
        lesson = Lesson(
            folder, own=count > 0, named=tuple(TeacherChoice(name=name) for name in names[2 - max(count, 1) :])
        )
        lesson.learn(task, [job("e", "0", "1", "2", "3")])
        assert accuracy(lesson.last("e"), ("0", "1", "2", "3"), digits("0", "1", "2", "3", test=True)) > 0.8
        vectors.append(lesson.last("e"))
    assert not np.array_equal(vectors[0], vectors[1])


def test_a_teacher_is_mapped_to_the_meshs_classes(tmp_path: Path) -> None:
    name = outside_teacher(tmp_path / "outside.safetensors", "0", "1", "2")
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[classes]\n"0" = "round"\n"1" = "straight"\n"2" = "straight"\n')
    shapes = {"0": "round", "1": "straight"}
    truth = digits("0", "1", test=True)
    lesson = Lesson(tmp_path, own=False, alpha=0.0, named=(TeacherChoice(name=name, mapping=str(mapping)),))
    wrong = ImageDataset(TASK.images, tuple(shapes[label] for label in MISLABELLED.labels))
    lesson.learn(wrong, [job("e", "round", "straight")])
    named = ImageDataset(truth.images, tuple(shapes[label] for label in truth.labels))
    assert accuracy(lesson.last("e"), ("round", "straight"), named) > 0.95


def test_a_teacher_that_cannot_be_loaded_says_why_and_is_loaded_once_it_can(tmp_path: Path) -> None:
    path = tmp_path / "late.safetensors"
    named = (TeacherChoice(name=f"file:{path}"), TeacherChoice(name="nonsense"))
    faculty = Lesson(tmp_path, named=named).faculty()
    unusable = faculty.load()
    assert unusable.keys() == {f"file:{path}", "nonsense"}
    assert "SOURCE:WHAT" in unusable["nonsense"]
    outside_teacher(path, "0", "1")
    assert faculty.load().keys() == {"nonsense"}
