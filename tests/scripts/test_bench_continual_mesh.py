"""What each node of the measured mesh is given, and what is made of its counters."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experts.data.dataset import ImageDataset
from experts.evaluation.scenarios.base import Scenario, ScenarioTask

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_continual_mesh_plan import LEARNERS, MESH_NODES, Sizes, bytes_between, plan_of, reduced


def images(labels: str, start: int = 0) -> ImageDataset:
    """Each with its number in its first two pixels."""
    pixels = np.zeros((len(labels), 4, 4), np.uint8)
    numbers = np.arange(start, start + len(labels))
    pixels[:, 0, 0], pixels[:, 0, 1] = numbers // 256, numbers % 256
    return ImageDataset(pixels, list(labels))


def scenario() -> Scenario:
    tasks = [
        ScenarioTask(
            name=f"{a}, {b}",
            train=images((a + b) * 20 + a * 9, 100 * number),
            test=images(b * 7 + a * 5),
            classes=(a, b),
        )
        for number, (a, b) in enumerate(("ab", "cd", "ef", "gh", "ij"))
    ]
    return Scenario(name="letters", kind="class-incremental", tasks=tuple(tasks))


def shown(data: ImageDataset) -> list[bytes]:
    return [image.tobytes() for image in data.images]


def test_a_reduced_scenario_has_the_first_images_of_each_class_in_equal_numbers() -> None:
    whole, small = scenario(), reduced(scenario(), Sizes(train=10, test=4))
    assert [task.name for task in small.tasks] == [task.name for task in whole.tasks]
    for task, before in zip(small.tasks, whole.tasks, strict=True):
        assert Counter(task.train.labels) == dict.fromkeys(task.classes, 5)
        assert Counter(task.test.labels) == dict.fromkeys(task.classes, 2)
        assert shown(task.train) == shown(before.train)[:10], "they alternate"


def test_every_image_of_a_task_is_given_to_one_node_of_those_that_learn_it() -> None:
    tasks = scenario().tasks
    plan = plan_of(tasks, seed=1)
    assert set(plan.nodes) == set(MESH_NODES)
    for wave, task, names in zip(plan.waves, tasks, LEARNERS, strict=True):
        assert [share.node for share in wave] == list(names)
        dealt = [image for share in wave for image in shown(share.images)]
        assert Counter(dealt) == Counter(shown(task.train))
        assert all(set(share.images.labels) == set(task.classes) for share in wave)
    assert [share.task for wave in plan.waves for share in wave] == ["1", "2", "3", "3", "4", "5"]


def test_shares_follow_from_the_seed_alone() -> None:
    def third(seed: int) -> list[list[bytes]]:
        return [shown(share.images) for share in plan_of(scenario().tasks, seed=seed).waves[2]]

    assert third(1) == third(1)
    assert third(1) != third(2)


def test_one_node_is_given_all_of_it_in_the_same_order() -> None:
    tasks = scenario().tasks
    plan = plan_of(tasks, [("one",)] * len(tasks), seed=3)
    assert plan.nodes == ("one",)
    assert [shown(share.images) for (share,) in plan.waves] == [shown(task.train) for task in tasks]


def test_as_many_learners_as_tasks() -> None:
    with pytest.raises(ValueError, match="shorter"):
        plan_of(scenario().tasks, LEARNERS[:3], seed=0)


def test_a_counter_that_began_anew_is_no_negative_traffic() -> None:
    assert bytes_between({"blob": 100, "round": 50}, {"blob": 130, "round": 20, "infer": 7}) == {"blob": 30, "infer": 7}
