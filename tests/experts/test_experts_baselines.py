"""Baselines: class-incremental, seeded by name, and forgetting as much as each should."""

import numpy as np
import pytest
import torch

from experts.data.dataset import ImageDataset
from experts.errors import NothingToLearnFrom
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.sequential import SequentialBaseline, SequentialConfig
from experts.evaluation.metrics import accuracy
from experts.teachers.cnn import TeacherConfig

PLACES = {"east": (1, 5), "north": (0, 3), "south": (5, 3), "west": (3, 0)}


def task(*classes: str, seed: int = 0, size: int = 24) -> ImageDataset:
    """Noise with one bright block whose place is the class."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 60, (size * len(classes), 8, 8), dtype=np.uint8)
    labels = [classes[i % len(classes)] for i in range(len(images))]
    for image, label in zip(images, labels, strict=True):
        row, column = PLACES[label]
        image[row : row + 3, column : column + 3] += 190
    return ImageDataset(images, tuple(labels))


def baseline(kind: type[Baseline], seed: int = 0) -> Baseline:
    if kind is JointBaseline:
        return JointBaseline(TeacherConfig(epochs=6, batch_size=16), channels=1, pixels=8, seed=seed)
    return SequentialBaseline(SequentialConfig(epochs=10, batch_size=16), channels=1, pixels=8, seed=seed)


def score(learner: Baseline, test: ImageDataset) -> float:
    return accuracy(learner.predict(test.images), test.labels)


FIRST, SECOND = task("north", "west"), task("east", "south")
FIRST_TEST, SECOND_TEST = task("north", "west", seed=1), task("east", "south", seed=1)


@pytest.mark.parametrize("kind", [SequentialBaseline, JointBaseline])
def test_only_classes_seen_are_predicted(kind: type[Baseline]) -> None:
    learner = baseline(kind)
    learner.learn(FIRST)
    assert score(learner, FIRST_TEST) > 0.9
    assert set(learner.predict(SECOND_TEST.images)) <= {"north", "west"}


def test_sequential_fine_tuning_learns_the_new_and_forgets_the_old() -> None:
    learner = baseline(SequentialBaseline)
    learner.learn(FIRST)
    learner.learn(SECOND)
    assert score(learner, SECOND_TEST) > 0.9
    assert score(learner, FIRST_TEST) < 0.2


def test_joint_training_keeps_all_tasks() -> None:
    learner = baseline(JointBaseline)
    learner.learn(FIRST)
    learner.learn(SECOND)
    assert score(learner, SECOND_TEST) > 0.9
    assert score(learner, FIRST_TEST) > 0.9


def test_growing_the_head_keeps_the_rows_of_old_classes() -> None:
    config = SequentialConfig(epochs=1, batch_size=16)
    learner = SequentialBaseline(config, channels=1, pixels=8, seed=0)
    learner.learn(task("north", "west", size=400))
    learner.learn(task("south", size=1))  # a single step: it cannot teach the old classes anew
    assert score(learner, FIRST_TEST) > 0.9


def test_a_class_that_comes_again_adds_no_second_row() -> None:
    learner = baseline(SequentialBaseline)
    learner.learn(FIRST)
    learner.learn(task("north", "south"))
    assert set(learner.predict(task(*PLACES).images)) <= {"north", "south", "west"}


@pytest.mark.parametrize("kind", [SequentialBaseline, JointBaseline])
def test_runs_are_a_function_of_their_seed_and_touch_no_shared_stream(kind: type[Baseline]) -> None:
    noise = np.random.default_rng(5).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    answers = []
    for seed, global_seed in ((0, 1), (0, 2), (7, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        learner = baseline(kind, seed)
        learner.learn(FIRST)
        assert torch.equal(torch.get_rng_state(), before)
        answers.append(learner.predict(noise))
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


@pytest.mark.parametrize("kind", [SequentialBaseline, JointBaseline])
def test_a_task_without_images_is_refused(kind: type[Baseline]) -> None:
    with pytest.raises(NothingToLearnFrom):
        baseline(kind).learn(FIRST.select([]))
