"""The reference CNN as a teacher."""

import math
from typing import Any

import pytest
import torch

from experts.checkpoint import tensors_to_bytes
from experts.data.dataset import class_columns
from experts.data.named import load_named
from experts.errors import CorruptWeights, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.generators import torch_generator
from experts.teachers.base import Teacher
from experts.teachers.cnn import CnnTeacher, TeacherConfig, TeacherProgress, train_teacher
from experts.trunk.images import prepare_images

QUICK = TeacherConfig(epochs=1, batch_size=4)


def small_teacher(seed: int = 0, config: TeacherConfig = QUICK) -> CnnTeacher:
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return train_teacher(images, ["b", "a"] * 5, config, torch_generator(seed, "teacher"))


@pytest.mark.parametrize("pixels", [8, 28, 32, 64])
def test_the_reference_cnn_has_the_size_costs_are_quoted_against(pixels: int) -> None:
    teacher = CnnTeacher("0123456789", channels=1, pixels=pixels)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 156_042
    assert teacher.logits(torch.rand(2, 1, pixels, pixels)).shape == (2, 10)


def test_a_teacher_trained_on_few_digits_knows_unseen_ones() -> None:
    train, test = (part.of_classes({"3", "8"}) for part in load_named("digits"))
    shard = train.shard(2, seed=0)[0]
    teacher: Teacher = train_teacher(
        prepare_images(shard.images, 1, 32), shard.labels, TeacherConfig(), torch_generator(0, "teacher")
    )
    logits = teacher.logits(prepare_images(test.images, 1, 32))
    correct = logits.argmax(dim=1) == class_columns(test.labels, teacher.classes)
    assert correct.double().mean() > 0.95


def test_columns_are_the_sorted_names_of_the_labels() -> None:
    assert small_teacher().classes == ("a", "b")


def test_a_teacher_depends_on_its_generator_and_on_nothing_else() -> None:
    before = torch.get_rng_state()
    first = small_teacher(0).to_bytes()
    assert first == small_teacher(0).to_bytes()
    assert first != small_teacher(1).to_bytes()
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_after_each_epoch_and_falls() -> None:
    told: list[TeacherProgress] = []
    images = torch.cat([torch.zeros(8, 1, 8, 8), torch.ones(8, 1, 8, 8)])
    train_teacher(images, ["a"] * 8 + ["b"] * 8, TeacherConfig(epochs=6), torch_generator(0, "teacher"), told.append)
    assert [(progress.epoch, progress.epochs) for progress in told] == [(epoch, 6) for epoch in range(1, 7)]
    assert told[-1].loss < told[0].loss < 5 * math.log(2)


def test_logits_carry_no_graph_and_no_rows_give_no_rows() -> None:
    teacher = small_teacher()
    assert not teacher.logits(torch.rand(3, 1, 8, 8)).requires_grad
    assert teacher.logits(torch.rand(0, 1, 8, 8)).shape == (0, 2)


def test_more_rows_than_a_batch_are_scored_like_each_alone() -> None:
    teacher, images = small_teacher(), torch.rand(300, 1, 8, 8)
    together = teacher.logits(images)
    torch.testing.assert_close(together[299:], teacher.logits(images[299:]), atol=1e-5, rtol=1e-5)


def test_a_teacher_of_one_class_is_possible() -> None:
    teacher = train_teacher(torch.rand(3, 3, 8, 8), ["a"] * 3, QUICK, torch_generator(0, "teacher"))
    assert teacher.logits(torch.rand(2, 3, 8, 8)).shape == (2, 1)


def test_a_teacher_from_bytes_scores_alike() -> None:
    teacher, images = small_teacher(), torch.rand(3, 1, 8, 8)
    again = CnnTeacher.from_bytes(teacher.to_bytes())
    assert again.classes == teacher.classes
    assert torch.equal(again.logits(images), teacher.logits(images))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []},
        {"classes": "ab"},
        {"classes": [1, 2]},
        {"classes": ["a", "b", "c"]},
        {"channels": 3},
        {"channels": True},
        {"channels": None},
        {"pixels": 0},
        {"pixels": "8"},
    ],
)
def test_bytes_that_are_no_teacher_are_refused(change: dict[str, Any]) -> None:
    form: dict[str, object] = {"classes": ["a", "b"], "channels": 1, "pixels": 8}
    with pytest.raises(CorruptWeights):
        CnnTeacher.from_bytes(tensors_to_bytes(small_teacher().state_dict(), form | change))


def test_a_teacher_needs_images_that_fit_their_labels() -> None:
    with pytest.raises(NothingToLearnFrom):
        train_teacher(torch.zeros(0, 1, 8, 8), [], QUICK, torch_generator(0, "teacher"))
    for shape in ((3, 1, 8, 8), (2, 1, 8, 9), (2, 8, 8)):
        with pytest.raises(ShapeMismatch):
            train_teacher(torch.zeros(shape), ["a", "b"], QUICK, torch_generator(0, "teacher"))


def test_images_of_another_form_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        small_teacher().logits(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}]
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingOutOfRange):
        TeacherConfig(**change)
