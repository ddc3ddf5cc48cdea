"""Scenarios: which images are in which task, what an answer may name, and that nothing a method draws changes them."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.errors import MalformedDataset, SettingOutOfRange, UnknownClasses, UnknownScenario
from experts.evaluation.scenarios.base import Scenario, ScenarioTask, shuffled
from experts.evaluation.scenarios.permuted import permuted_fashion_mnist
from experts.evaluation.scenarios.registry import SCENARIO_NAMES, make_scenario
from experts.evaluation.scenarios.rotated import drawn_angles, rotated_fashion_mnist, rotated_images
from experts.evaluation.scenarios.split import DIGITS, split_by_class, split_fashion_mnist


def noise(classes: tuple[str, ...], per_class: int, *, pixels: int = 28, seed: int = 0) -> ImageDataset:
    """Images that all differ, classes in turn."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (per_class * len(classes), pixels, pixels), dtype=np.uint8)
    return ImageDataset(images, tuple(classes[row % len(classes)] for row in range(len(images))))


FASHION = noise(FASHION_MNIST_CLASSES, 12), noise(FASHION_MNIST_CLASSES, 3, seed=1)
SETS = {
    "fashion-mnist": FASHION,
    "mnist-5k": (noise(DIGITS, 4, seed=2), noise(DIGITS, 2, seed=3)),
    "digits": (noise(DIGITS, 4, pixels=8, seed=4), noise(DIGITS, 2, pixels=8, seed=5)),
}


def rows_of(images: ImageDataset) -> set[bytes]:
    return {image.tobytes() for image in images.images}


def test_split_fashion_mnist_is_five_pairs_in_label_order() -> None:
    scenario = split_fashion_mnist(FASHION)
    assert scenario.kind == "class-incremental"
    assert [task.classes for task in scenario.tasks] == [FASHION_MNIST_CLASSES[i : i + 2] for i in range(0, 10, 2)]
    assert all(set(task.train.labels) == set(task.test.labels) == set(task.classes) for task in scenario.tasks)
    assert sum(len(task.train) for task in scenario.tasks) == len(FASHION[0])
    assert sum(len(task.test) for task in scenario.tasks) == len(FASHION[1])


def test_only_the_first_training_images_are_used_and_all_test_images() -> None:
    scenario = split_fashion_mnist(FASHION, train_images=40)
    trained = set().union(*(rows_of(task.train) for task in scenario.tasks))
    assert trained == rows_of(FASHION[0].select(range(40)))
    assert sum(len(task.test) for task in scenario.tasks) == len(FASHION[1])


def test_another_order_has_the_same_classes_in_other_tasks() -> None:
    first, again, other = (split_fashion_mnist(FASHION, order=order) for order in (1, 1, 2))
    assert first.digest() == again.digest()
    assert first.classes == other.classes == tuple(sorted(FASHION_MNIST_CLASSES))
    assert [task.classes for task in first.tasks] != [task.classes for task in other.tasks]


PUBLIC = ("domainnet", "office-home", "split-cifar-100", "split-imagenet", "visual-decathlon")
"""Made of files: test_experts_scenarios_public."""


def made(name: str) -> Scenario:
    """In order 3; the registry's domains take 20,000 or 60,000 images each, which the test would spend seconds on."""
    if name == "rotated-fashion-mnist":
        return rotated_fashion_mnist(FASHION, order=3, images_per_domain=20)
    if name == "rotated-fashion-mnist-60k":
        return rotated_fashion_mnist(FASHION, order=3, angles=drawn_angles(3), images_per_domain=20)
    if name == "permuted-fashion-mnist":
        return permuted_fashion_mnist(FASHION, order=3, images_per_domain=20)
    return make_scenario(name, SETS.__getitem__, order=3)


@pytest.mark.parametrize("name", [name for name in SCENARIO_NAMES if name not in PUBLIC])
def test_a_scenario_is_the_same_whatever_was_drawn_before(name: str) -> None:
    digests = set()
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        before = torch.get_rng_state()
        scenario = made(name)
        assert torch.equal(torch.get_rng_state(), before)
        digests.add(scenario.digest())
    assert len(digests) == 1


def test_a_digest_tells_tasks_apart() -> None:
    scenario = split_fashion_mnist(FASHION)
    turned = dataclasses.replace(scenario, tasks=scenario.tasks[::-1])
    changed = scenario.tasks[0].train.images.copy()
    changed[0, 0, 0] ^= 1
    other_pixel = dataclasses.replace(scenario.tasks[0], train=ImageDataset(changed, scenario.tasks[0].train.labels))
    others = (
        turned,
        dataclasses.replace(scenario, kind="task-incremental"),
        dataclasses.replace(scenario, tasks=(other_pixel, *scenario.tasks[1:])),
    )
    assert len({scenario.digest(), *(other.digest() for other in others)}) == 4


def test_what_may_be_named_is_what_was_seen_or_shared_or_the_tasks_own() -> None:
    split = split_fashion_mnist(FASHION)
    assert split.allowed(-1, 4) == ()
    assert split.allowed(1, 4) == tuple(sorted(FASHION_MNIST_CLASSES[:4]))
    told = dataclasses.replace(split, kind="task-incremental")
    assert told.allowed(1, 4) == told.allowed(4, 4) == tuple(sorted(FASHION_MNIST_CLASSES[8:]))
    rotated = rotated_fashion_mnist(FASHION, images_per_domain=10)
    assert rotated.allowed(0, 3) == tuple(sorted(FASHION_MNIST_CLASSES))


def test_domains_share_no_training_image_while_there_are_enough_and_all_test_images() -> None:
    dealt = rotated_fashion_mnist(FASHION, angles=[0.0, 0.0, 0.0], images_per_domain=40, order=1)
    parts = [rows_of(task.train) for task in dealt.tasks]
    assert set.union(*parts) == rows_of(FASHION[0])
    assert all(len(part) == 40 for part in parts)
    assert all(rows_of(task.test) == rows_of(FASHION[1]) for task in dealt.tasks)
    whole = rotated_fashion_mnist(FASHION, angles=[0.0, 0.0], images_per_domain=len(FASHION[0]))
    assert rows_of(whole.tasks[0].train) == rows_of(whole.tasks[1].train)
    with pytest.raises(SettingOutOfRange):
        rotated_fashion_mnist(FASHION, images_per_domain=len(FASHION[0]) + 1)


@given(quarters=st.integers(-4, 4), pixels=st.integers(1, 9))
@settings(deadline=None)
def test_quarter_turns_are_exact(quarters: int, pixels: int) -> None:
    image = np.arange(pixels * pixels, dtype=np.uint8).reshape(1, pixels, pixels) * 3
    assert np.array_equal(rotated_images(image, 90.0 * quarters)[0], np.rot90(image[0], quarters))


def test_a_turn_keeps_the_centre_is_bilinear_and_black_outside() -> None:
    image = np.full((1, 9, 9), 200, dtype=np.uint8)
    turned = rotated_images(image, 45.0)[0]
    assert turned[4, 4] == 200
    assert turned[0, 0] == 0
    # By the four neighbours of where it comes from, zeros beyond the edge.
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (9, 1))[None]
    cosine = np.cos(np.radians(36))
    assert rotated_images(ramp, 36.0)[0, 4, 6] == round(20 * (4 + 2 * cosine))
    assert rotated_images(image[:0], 36.0).shape == (0, 9, 9)


def test_four_sets_never_mean_two_things_by_one_name() -> None:
    scenario = make_scenario("four-sets", SETS.__getitem__)
    assert scenario.kind == "task-incremental"
    assert [len(task.classes) for task in scenario.tasks] == [5, 5, 10, 10]
    assert len(scenario.classes) == 30
    assert {part.images.shape[1:] for task in scenario.tasks for part in (task.train, task.test)} == {(28, 28)}


def test_tuning_never_sees_a_test_image_and_learns_no_held_out_one() -> None:
    scenario = split_fashion_mnist(FASHION)
    tuning = scenario.for_tuning(0.25)
    for task, tuned in zip(scenario.tasks, tuning.tasks, strict=True):
        assert rows_of(tuned.train) | rows_of(tuned.test) == rows_of(task.train)
        assert not rows_of(tuned.train) & rows_of(tuned.test)
        assert not rows_of(tuned.test) & rows_of(task.test)
        assert len(tuned.test) == round(0.25 * len(task.train))
    with pytest.raises(MalformedDataset):
        scenario.for_tuning(0.0)


def test_a_limited_scenario_has_the_first_images_of_each_task() -> None:
    limited = split_fashion_mnist(FASHION).limited(5, 4)
    assert {(len(task.train), len(task.test)) for task in limited.tasks} == {(5, 4)}
    assert limited.tasks[0].train.labels == split_fashion_mnist(FASHION).tasks[0].train.labels[:5]


def test_fewer_images_are_of_every_class_in_turn_however_they_lie() -> None:
    task = split_fashion_mnist(FASHION).tasks[0]
    by_class = np.argsort(task.train.labels, kind="stable")
    sorted_ = dataclasses.replace(task, train=task.train.select(by_class))
    scenario = Scenario(name="x", kind="class-incremental", tasks=(sorted_,))
    fewer = scenario.with_fewer(5, None)
    (only,) = fewer.tasks
    assert sorted(only.train.class_counts.values()) == [2, 3]
    assert rows_of(only.train) <= rows_of(task.train)
    assert len(only.test) == len(task.test)
    assert scenario.with_fewer(10**6, 10**6).digest() == scenario.digest()
    with pytest.raises(SettingOutOfRange, match="at least 2"):
        scenario.with_fewer(1, None)


def test_what_is_no_scenario_is_refused() -> None:
    task = split_fashion_mnist(FASHION).tasks[0]
    with pytest.raises(SettingOutOfRange):
        Scenario(name="x", kind="class-incremental", tasks=())
    with pytest.raises(MalformedDataset, match="no test image"):
        ScenarioTask(name="x", train=task.train, test=task.test.select([]), classes=task.classes)
    with pytest.raises(MalformedDataset, match="not its classes"):
        ScenarioTask(name="x", train=task.train, test=task.test, classes=task.classes[:1])
    small = SETS["digits"]
    other = ScenarioTask(name="y", train=small[0], test=small[1], classes=DIGITS)
    with pytest.raises(MalformedDataset, match="size"):
        Scenario(name="x", kind="class-incremental", tasks=(task, other))
    with pytest.raises(MalformedDataset, match="domains"):
        Scenario(name="x", kind="domain-incremental", tasks=split_fashion_mnist(FASHION).tasks)
    with pytest.raises(SettingOutOfRange):
        split_by_class("x", FASHION, FASHION_MNIST_CLASSES, classes_per_task=0)
    with pytest.raises(UnknownClasses):
        split_by_class("x", FASHION, ["yak"])
    with pytest.raises(UnknownScenario) as caught:
        make_scenario("x", SETS.__getitem__)
    assert caught.value.known == SCENARIO_NAMES


def test_a_last_task_has_what_remains() -> None:
    scenario = split_by_class("x", FASHION, FASHION_MNIST_CLASSES, classes_per_task=4)
    assert [len(task.classes) for task in scenario.tasks] == [4, 4, 2]


@given(number=st.integers(0, 30), order=st.integers(0, 5))
@settings(deadline=None)
def test_every_order_is_a_permutation_and_the_first_changes_nothing(number: int, order: int) -> None:
    positions = shuffled(range(number), order, "test")
    assert sorted(positions) == list(range(number))
    assert shuffled(range(number), 0, "test") == list(range(number))


def test_drawn_angles_are_the_orders_own_and_spread_over_half_a_turn() -> None:
    draws = [drawn_angles(order) for order in range(40)]
    assert draws == [drawn_angles(order) for order in range(40)]
    assert len(set(draws)) == 40
    angles = [angle for draw in draws for angle in draw]
    assert len(angles) == 200
    assert all(0 <= angle < 180 for angle in angles)
    assert min(angles) < 10
    assert max(angles) > 170
    assert abs(sum(angles) / 200 - 90) < 15
