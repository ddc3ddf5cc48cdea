"""Methods with a module for each task: routed experts and their variants, and a network a task."""

import pytest
import torch
from baseline_examples import CLASSES, FIRST, FIRST_TEST, SECOND, SECOND_TEST, FlatInputs, routed, score, task

from experts.distillation.config import DistillationConfig
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.base import named_answers
from experts.evaluation.baselines.routed_experts import RoutedConfig
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.baselines.task_networks import TaskNetworks
from experts.evaluation.inputs import PixelInputs
from experts.evaluation.metrics import accuracy
from experts.evaluation.networks import mlp_100_100
from experts.evaluation.training import TrainingConfig
from experts.router.features import ReluFeaturesConfig
from experts.router.ridge import RouterConfig


def test_experts_of_domains_share_their_classes_and_one_ridge_over_both_does_not_fit() -> None:
    plain, inverted = task(*CLASSES), task(*CLASSES, inverted=True)
    tests = task(*CLASSES, seed=1), task(*CLASSES, seed=1, inverted=True)
    experts, alone = routed("tasks", top_k=2), RouterArgmax(FlatInputs(), RouterConfig(ridge=1e-2))
    for learner in (experts, alone):
        learner.learn(plain)
        learner.learn(inverted)
    assert min(score(experts, test) for test in tests) > 0.9
    # The classes of either domain are the other's, seen as a negative: what is linear cannot tell.
    assert sum(score(alone, test) for test in tests) < 1.5


def test_a_further_task_adds_one_expert_and_changes_no_other() -> None:
    learner = routed()
    learner.learn(FIRST)
    before = learner.scores(FIRST_TEST.images, FIRST.classes)
    held = learner.holdings()
    learner.learn(SECOND)
    after = learner.holdings()
    expert = 65 * 8 + 9 * 2
    assert after.num_parameters - held.num_parameters == expert + 65 * 2
    assert after.num_updated == expert + 65 * 4
    # Asked among the first task's classes: the router's scores move, the expert does not.
    moved = learner.scores(FIRST_TEST.images, FIRST.classes)
    shares = [scores / scores.sum(dim=1, keepdim=True) for scores in (before, moved)]
    assert torch.allclose(*shares, atol=1e-6)


@pytest.mark.parametrize("gates", ["router", "uniform", "random", "hash", "energy"])
def test_only_gates_that_know_the_tasks_find_the_right_expert(gates: str) -> None:
    learner = routed(gates=gates)
    learner.learn(FIRST)
    learner.learn(SECOND)
    # Told the task, any of them is right: there is one expert to ask.
    told = named_answers(learner.scores(FIRST_TEST.images, FIRST.classes), FIRST.classes)
    assert told is not None
    assert accuracy(told, FIRST_TEST.labels) > 0.9
    both = (score(learner, FIRST_TEST) + score(learner, SECOND_TEST)) / 2
    if gates == "router":
        assert both > 0.9
    elif gates in ("random", "hash"):
        assert 0.25 < both < 0.75


def test_a_router_may_see_random_features_that_experts_do_not() -> None:
    projection = ReluFeaturesConfig(feature_dim=64, width=40, start=0, stop=64)
    learner = routed(projection=projection)
    learner.learn(FIRST)
    assert score(learner, FIRST_TEST) > 0.9
    assert learner.holdings().num_parameters == (64 + 40 + 1) * 2 + 65 * 8 + 9 * 2


@pytest.mark.parametrize("setting", [{"hidden": 0}, {"target": "domains"}, {"gates": "oracle"}])
def test_settings_of_routed_experts_out_of_range_are_refused(setting: dict[str, object]) -> None:
    given_ = {"router": RouterConfig(), "distillation": DistillationConfig(), "hidden": 8, "target": "tasks", **setting}
    with pytest.raises(SettingOutOfRange):
        RoutedConfig(**given_)  # type: ignore[arg-type]


def task_networks(epochs: int = 12, held_out_ratio: float = 0.25) -> TaskNetworks:
    config = TrainingConfig(epochs=epochs, batch_size=8, lr=0.003, optimizer="adam")
    inputs = PixelInputs(channels=1, pixels=8)
    return TaskNetworks(inputs, mlp_100_100, config, seed=0, held_out_ratio=held_out_ratio)


def test_a_network_a_task_answers_for_its_own_classes_and_forgets_nothing() -> None:
    subject = task_networks()
    first, second = ("east", "north"), ("south", "west")
    subject.learn(task(*first))
    before = subject.scores(task(*first, seed=9).images, first)
    subject.learn(task(*second))
    assert torch.equal(subject.scores(task(*first, seed=9).images, first), before)
    assert bool(torch.isneginf(subject.scores(task(*first).images, ("nobody",))).all())
    for classes in (first, second):
        test = task(*classes, seed=9)
        answers = named_answers(subject.scores(test.images, classes), classes)
        assert answers is not None
        assert accuracy(answers, test.labels) > 0.95
    held = subject.holdings()
    assert (held.num_parameters, held.kept_bytes) == (2 * held.num_updated, 0)


def test_of_a_networks_epochs_the_first_of_the_best_is_kept() -> None:
    # One epoch of this is right on all that is held out, or later ones would be kept.
    subject, once = task_networks(epochs=8), task_networks(epochs=8)
    subject.learn(task("east", "north", size=200))
    once.learn(task("east", "north", size=200))
    assert subject.best_epochs == once.best_epochs
    assert subject.best_epochs[0] < 8
    with pytest.raises(SettingOutOfRange):
        task_networks(held_out_ratio=1.0)
