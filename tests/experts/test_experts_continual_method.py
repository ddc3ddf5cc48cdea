"""The continual learner as a method of the evaluation: measured like any other, and sparing where it may be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from continual_examples import features, images_of, settings

from experts.data.dataset import ImageDataset
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.continual_learner import ContinualMethod, Labelling
from experts.evaluation.cost import count_flops, count_solves
from experts.evaluation.inputs import Inputs
from experts.evaluation.runner import kept_run, run_scenario
from experts.evaluation.scenarios.base import Scenario, ScenarioTask

CLASSES = ("east", "north", "south", "west")


class PooledInputs(Inputs):
    """The features of `continual_examples`."""

    shape = (16,)
    flops_per_image = 7

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        return features(images)


def task(name: str, classes: tuple[str, ...], seed: int, *, inverted: bool = False) -> ScenarioTask:
    train, test = (
        ImageDataset(images, tuple(labels))
        for images, labels in (
            images_of(classes, 320, seed, inverted=inverted),
            images_of(classes, 60, seed + 50, inverted=inverted),
        )
    )
    return ScenarioTask(name=name, train=train, test=test, classes=classes)


def by_class() -> Scenario:
    tasks = (task("one", ("east", "north"), 1), task("two", ("south", "west"), 2))
    return Scenario(name="classes", kind="class-incremental", tasks=tasks)


def by_domain() -> Scenario:
    tasks = (task("plain", CLASSES, 1), task("inverted", CLASSES, 2, inverted=True), task("again", CLASSES, 3))
    return Scenario(name="domains", kind="domain-incremental", tasks=tasks)


def method(setting: str = "class-incremental", **where: object) -> ContinualMethod:
    return ContinualMethod(PooledInputs(), settings(setting), seed=0, **where)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream_batch", [None, 16])
def test_classes_are_learned_one_task_after_the_other_with_and_without_boundaries(stream_batch: int | None) -> None:
    subject = method(stream_batch=stream_batch)
    result = run_scenario(subject, by_class())
    assert result.matrix.average_accuracy() > 0.9
    assert result.matrix.forgetting() < 0.1
    assert [each.spawn for each in subject.decisions if each.spawn] == [("east", "north"), ("south", "west")]


def test_domains_are_found_and_one_that_comes_back_adds_no_expert() -> None:
    found, told = method("domain-incremental"), method("domain-incremental", told=True)
    assert run_scenario(found, by_domain()).matrix.average_accuracy() > 0.85
    assert len(found.learner.knowledge.experts) == 2
    run_scenario(told, by_domain())
    assert told.decisions[0].context == "task 000"


def test_tasks_are_numbered_and_answered_among_their_classes() -> None:
    scenario = Scenario(name="tasks", kind="task-incremental", tasks=by_class().tasks)
    subject = method("task-incremental")
    assert run_scenario(subject, scenario).matrix.average_accuracy() > 0.95
    assert [each.context for each in subject.decisions] == ["task 000", "task 001"]


def test_costs_are_of_what_it_keeps_sends_and_computes() -> None:
    subject = method()
    first, second = run_scenario(subject, by_class()).costs
    knowledge = subject.learner.knowledge
    of_experts = [expert.architecture.num_parameters for expert in knowledge.experts.values()]
    assert second.num_parameters == sum(of_experts) + 17 * 4
    assert second.parameters_added == of_experts[1] + 17 * 2
    assert second.parameters_updated == of_experts[1] + 17 * 4
    assert second.kept_bytes == knowledge.kept_bytes > knowledge.replay.num_bytes > 0
    assert second.sent_bytes > 4 * of_experts[1]
    # All images are looked at at least once, and every step costs something.
    assert min(first.flops, second.flops) > 320 * 7 + 100 * 2 * 32 * 16 * 8


@pytest.mark.parametrize("setting", ["class-incremental", "domain-incremental"])
def test_its_flops_are_those_of_all_that_it_computes(setting: str) -> None:
    scenario = by_class() if setting == "class-incremental" else by_domain()
    subject = method(setting)

    def learn() -> None:
        for each in scenario.tasks:
            subject.learn(each.train)

    (_, of_steps), of_solves = count_solves(lambda: count_flops(learn))
    # It leaves out what carrying an expert over takes, which is much of so little training.
    assert 0.7 < subject.holdings().flops / (of_steps + of_solves) < 1.0


def test_a_finished_run_is_kept_like_that_of_any_method(tmp_path: Path) -> None:
    def run() -> object:
        return run_scenario(method(), by_class())

    first = kept_run(tmp_path, ["terms"], run)  # type: ignore[arg-type]
    assert kept_run(tmp_path, ["terms"], lambda: pytest.fail("it was kept")).matrix.rows() == first.matrix.rows()


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(SettingOutOfRange):
        method(stream_batch=0)


def test_some_labels_are_those_of_the_same_images_with_the_others_and_without_them() -> None:
    given = [
        method(labelling=Labelling(ratio=0.3, gives_others=others))._given(by_class().tasks[0].train)
        for others in (True, False)
    ]
    named = [[label for label in labels if label is not None] for _, labels in given]
    assert named[0] == named[1]
    assert [len(images) for images, _ in given] == [320, len(named[0])]
    assert 60 < len(named[0]) < 135
    with pytest.raises(SettingOutOfRange):
        Labelling(ratio=0.0, gives_others=True)


def test_a_learner_that_gets_few_labels_learns_the_classes() -> None:
    subject = method(labelling=Labelling(ratio=0.3, gives_others=True))
    assert run_scenario(subject, by_class()).matrix.average_accuracy() > 0.85
