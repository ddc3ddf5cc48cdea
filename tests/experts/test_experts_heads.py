"""Heads: where tasks are told, a network tells the classes of one task from one another, and from no others."""

import dataclasses
from collections.abc import Callable

import equations
import equations_continual
import pytest
import torch
from baseline_examples import CLASSES, FIRST, FIRST_TEST, SECOND, SECOND_TEST, FlatInputs
from torch import nn

from experts.data.dataset import ImageDataset
from experts.evaluation.baselines.base import named_answers
from experts.evaluation.baselines.derpp import DarkReplay, DarkReplayBaseline, DarkReplayConfig
from experts.evaluation.baselines.er import ReplayBaseline
from experts.evaluation.baselines.ewc import EwcBaseline
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.lwf import LwfBaseline, Remembered
from experts.evaluation.baselines.moe import Balanced, GatedNetwork, MixtureBaseline, gated_network
from experts.evaluation.baselines.monolithic import MonolithicBaseline, Taught
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.baselines.sequential import SequentialBaseline
from experts.evaluation.heads import Heads, OneHead
from experts.evaluation.metrics import accuracy
from experts.evaluation.networks import feature_head
from experts.evaluation.reservoir import Reservoir
from experts.evaluation.scenarios.base import Scenario, ScenarioTask
from experts.evaluation.suite.networks import head_setup, pixel_setup
from experts.evaluation.training import Objective, TrainingConfig
from experts.generators import torch_generator
from experts.preservation.fisher import fisher_diagonal

B, D, C = 5, 3, 4
PARTS = ((0, 2), (1, 3))
HEADS = Heads(PARTS, C)


def drawn(*shape: int, name: str) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(0, name))


INPUTS, LABELS = drawn(B, D, name="inputs"), torch.tensor([0, 3, 1, 1, 2])


def network() -> nn.Linear:
    layer = nn.Linear(D, C)
    with torch.no_grad():
        layer.weight.copy_(drawn(C, D, name="weight"))
        layer.bias.copy_(drawn(C, name="bias"))
    return layer


def among_own(outputs: list[list[float]], labels: list[int]) -> float:
    """The mean over items of the cross-entropy among the two classes of each label's head."""
    own = [next(part for part in PARTS if label in part) for label in labels]
    logits = [[row[column] for column in part] for row, part in zip(outputs, own, strict=True)]
    return equations.cross_entropy(logits, [part.index(label) for part, label in zip(own, labels, strict=True)])


def test_the_cross_entropy_is_among_the_classes_of_the_labels_head() -> None:
    module = network()
    loss = Objective(HEADS).loss(module, (INPUTS, LABELS))
    assert loss.item() == pytest.approx(among_own(module(INPUTS).tolist(), LABELS.tolist()), rel=1e-5)
    Objective(HEADS).loss(module, (INPUTS[:1], LABELS[:1])).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.any(dim=1).tolist() == [True, False, True, False]  # an item of the first head


def test_a_class_of_two_tasks_is_told_from_those_of_both() -> None:
    logits = drawn(1, C, name="logits")
    own = Heads([(0, 1), (1, 2), (3,)], C).own(logits, torch.tensor([1]))
    assert torch.equal(own[0, :3], logits[0, :3])
    assert own.softmax(dim=1)[0, 3] == 0


def test_replay_has_the_labels_of_its_own_heads_and_all_logits() -> None:
    kept_inputs, kept_labels, kept_logits = drawn(2, D, name="kept"), torch.tensor([2, 1]), drawn(2, C, name="said")
    reservoir = Reservoir(2, draw_size=2, generator=torch.Generator().manual_seed(0))
    reservoir.keep(kept_inputs, kept_labels, kept_logits)
    module = network()
    outputs = module(kept_inputs)
    expected = among_own(module(INPUTS).tolist(), LABELS.tolist())
    expected += 0.3 * (outputs - kept_logits).square().mean().item()
    expected += 0.7 * among_own(outputs.tolist(), kept_labels.tolist())
    loss = DarkReplay(reservoir, 0.3, 0.7, HEADS).loss(module, (INPUTS, LABELS))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_lwf_remembers_each_old_head_by_itself() -> None:
    columns = 6
    module, said = nn.Linear(D, columns), drawn(B, columns, name="said of six")
    with torch.no_grad():
        module.weight.copy_(drawn(columns, D, name="weight of six"))
        module.bias.copy_(drawn(columns, name="bias of six"))
    labels = [4, 5, 5, 4, 4]
    heads = Heads([(0, 1), (2, 3), (4, 5)], columns)
    objective = Remembered(range(4), range(columns), 0.5, 2.0, heads)
    outputs = module(INPUTS).tolist()
    expected = equations.cross_entropy([row[4:] for row in outputs], [label - 4 for label in labels])
    for own in (slice(0, 2), slice(2, 4)):
        expected += 0.5 * equations.softened_kl([row[own] for row in said.tolist()], [row[own] for row in outputs], 2)
    assert objective.loss(module, (INPUTS, torch.tensor(labels), said)).item() == pytest.approx(expected, rel=1e-5)


def test_a_monoliths_labels_are_told_from_those_of_their_own_task() -> None:
    module, said = network(), drawn(B, C, name="teacher")
    labels = [1, 3, 3, 1, 1]
    said[:, [0, 2]] = -torch.inf
    loss = Taught(0.3, 2.0, HEADS).loss(module, (INPUTS, torch.tensor(labels), said))
    outputs = module(INPUTS).tolist()
    taught = equations.softened_kl(
        [[row[1], row[3]] for row in said.tolist()], [[row[1], row[3]] for row in outputs], 2
    )
    assert loss.item() == pytest.approx(0.3 * among_own(outputs, labels) + 0.7 * taught, rel=1e-5)


def test_a_mixture_is_trained_on_what_it_says_among_the_classes_of_the_head() -> None:
    module = gated_network(num_experts=3, expert_hidden=5, router_hidden=4)((D,), "abcd", torch_generator(0, "mixture"))
    assert isinstance(module, GatedNetwork)
    gate, log_p = module.parts(INPUTS)
    balance = equations_continual.balanced_mixture_loss(gate.tolist(), log_p.tolist(), LABELS.tolist(), 0.7)
    balance -= equations_continual.balanced_mixture_loss(gate.tolist(), log_p.tolist(), LABELS.tolist(), 0.0)
    expected = among_own(module(INPUTS).tolist(), LABELS.tolist()) + balance
    assert Balanced(0.7, HEADS).loss(module, (INPUTS, LABELS)).item() == pytest.approx(expected, rel=1e-5)


def test_what_mattered_is_what_mattered_to_the_head() -> None:
    module = network()
    labels = torch.tensor([1, 3, 3, 1, 1])
    information = fisher_diagonal(OneHead(module, {1, 3}), INPUTS, labels)["network.weight"]
    alone = nn.Linear(D, 2)
    with torch.no_grad():
        alone.weight.copy_(module.weight[[1, 3]])
        alone.bias.copy_(module.bias[[1, 3]])
    expected = fisher_diagonal(alone, INPUTS, torch.tensor([0, 1, 1, 0, 0]))["weight"]
    assert torch.allclose(information[[1, 3]], expected, rtol=1e-5)
    assert not information[[0, 2]].any()


CONFIG = TrainingConfig(epochs=10, batch_size=16, lr=0.05)
DARK = DarkReplayConfig(capacity=20, alpha=0.2, beta=1.0)


def setup_of(scenario: Scenario) -> NetworkSetup:
    return head_setup(scenario, FlatInputs())


MAKERS: dict[str, Callable[[NetworkSetup], NetworkBaseline]] = {
    "SGD": lambda setup: SequentialBaseline(setup, CONFIG, seed=0),
    "EWC": lambda setup: EwcBaseline(setup, CONFIG, strength=20.0, seed=0),
    "LwF": lambda setup: LwfBaseline(setup, CONFIG, seed=0),
    "ER": lambda setup: ReplayBaseline(setup, CONFIG, capacity=20, seed=0),
    "DER++": lambda setup: DarkReplayBaseline(setup, CONFIG, DARK, seed=0),
    "monolithic": lambda setup: MonolithicBaseline(setup, CONFIG, seed=0),
    "joint": lambda setup: JointBaseline(setup, CONFIG, seed=0),
    "mixture": lambda setup: MixtureBaseline(
        NetworkSetup(
            inputs=setup.inputs,
            form=gated_network(num_experts=3, expert_hidden=12, router_hidden=8),
            classes=setup.classes,
            told=setup.told,
        ),
        TrainingConfig(epochs=20, batch_size=8, lr=0.3),
        seed=0,
    ),
}


def told() -> Scenario:
    tasks = tuple(
        ScenarioTask(name=name, classes=train.classes, train=train, test=test)
        for name, train, test in (("first", FIRST, FIRST_TEST), ("second", SECOND, SECOND_TEST))
    )
    return Scenario(name="places", kind="task-incremental", tasks=tasks)


@pytest.mark.parametrize("kind", MAKERS)
def test_told_tasks_are_all_answered(kind: str) -> None:
    learner = MAKERS[kind](setup_of(told()))
    for task in told().tasks:
        learner.learn(task.train)
    assert within(learner, FIRST_TEST) > 0.9
    assert within(learner, SECOND_TEST) > 0.9


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind not in ("DER++", "mixture")])
def test_what_is_learned_moves_no_classifier_of_another_head(kind: str) -> None:
    learner = MAKERS[kind](setup_of(told()))
    first = list(learner._network.parameters())[-2].detach().clone()
    learner.learn(FIRST)
    moved = (list(learner._network.parameters())[-2] - first).abs().amax(dim=1)
    own = [CLASSES.index(name) for name in FIRST.classes]
    assert [column for column in range(C) if moved[column] > 0] == own


@pytest.mark.parametrize("kind", ["DER++", "mixture"])
def test_what_says_or_replays_all_columns_is_told_from_one_without_heads(kind: str) -> None:
    scores = []
    for setup in (setup_of(told()), dataclasses.replace(setup_of(told()), told=())):
        learner = MAKERS[kind](setup)
        learner.learn(FIRST)
        scores.append(learner.scores(FIRST_TEST.images, CLASSES).softmax(dim=1))
    foreign = [CLASSES.index(name) for name in SECOND.classes]
    # Nothing has pushed the other head's classes down.
    assert scores[0][:, foreign].sum(dim=1).mean() > 2 * scores[1][:, foreign].sum(dim=1).mean()


def test_ewc_holds_every_weight_and_of_the_classifier_what_the_head_has() -> None:
    learner = EwcBaseline(setup_of(told()), CONFIG, strength=20.0, seed=0)
    learner.learn(FIRST)
    assert learner._fisher.keys() == dict(learner._network.named_parameters()).keys()
    matters = list(learner._fisher.values())[-2].any(dim=1)
    own = [CLASSES.index(name) for name in FIRST.classes]
    assert [column for column in range(C) if matters[column]] == own


def within(learner: NetworkBaseline, test: ImageDataset) -> float:
    answers = named_answers(learner.scores(test.images, test.classes), test.classes)
    assert answers is not None
    return accuracy(answers, test.labels)


def test_networks_have_a_head_for_each_task_where_tasks_are_told_alone() -> None:
    assert setup_of(told()).told == pixel_setup(told()).told == (FIRST.classes, SECOND.classes)
    untold = Scenario(name="places", kind="class-incremental", tasks=told().tasks)
    assert setup_of(untold).heads is None
    assert NetworkSetup(inputs=FlatInputs(), form=feature_head, classes=CLASSES).heads is None
