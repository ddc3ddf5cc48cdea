"""Methods: asked among classes, seeded by name, and forgetting as much as each should."""

from collections.abc import Callable

import equations_continual
import numpy as np
import pytest
import torch
from baseline_examples import (
    CLASSES,
    FIRST,
    FIRST_TEST,
    PLACES,
    SECOND,
    SECOND_TEST,
    FlatInputs,
    on_pixels,
    routed,
    score,
    task,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import NothingToLearnFrom, SettingOutOfRange
from experts.evaluation.baselines.base import Baseline, named_answers
from experts.evaluation.baselines.derpp import DarkReplayBaseline, DarkReplayConfig
from experts.evaluation.baselines.er import ReplayBaseline
from experts.evaluation.baselines.ewc import EwcBaseline
from experts.evaluation.baselines.icarl import IcarlBaseline
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.lwf import LwfBaseline
from experts.evaluation.baselines.moe import MixtureBaseline, gated_network
from experts.evaluation.baselines.monolithic import MonolithicBaseline
from experts.evaluation.baselines.nearest_mean import NearestMean
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.baselines.sequential import SequentialBaseline
from experts.evaluation.baselines.slda import StreamingLda
from experts.evaluation.metrics import accuracy
from experts.evaluation.networks import feature_head, reference_cnn
from experts.evaluation.training import TrainingConfig
from experts.router.features import ReluFeaturesConfig
from experts.router.ridge import RouterConfig


def baseline(kind: str, seed: int = 0) -> Baseline:
    config = TrainingConfig(epochs=10, batch_size=16, lr=0.05)
    on_features = NetworkSetup(inputs=FlatInputs(), form=feature_head, classes=CLASSES)
    adam = TrainingConfig(epochs=6, batch_size=16, lr=2e-3, optimizer="adam")
    dark = DarkReplayConfig(capacity=20, alpha=0.2, beta=1.0)
    # A mean over columns is a small step.
    brisk = TrainingConfig(epochs=20, batch_size=8, lr=0.3)
    mixed = on_pixels(gated_network(num_experts=3, expert_hidden=12, router_hidden=8, input_scale=1.0))
    projection = ReluFeaturesConfig(feature_dim=64, width=40, start=0, stop=64, seed=seed)
    makers: dict[str, Callable[[], Baseline]] = {
        "sequential": lambda: SequentialBaseline(on_pixels(), config, seed=seed),
        "joint": lambda: JointBaseline(on_pixels(), adam, seed=seed),
        "ER": lambda: ReplayBaseline(on_pixels(), config, capacity=20, seed=seed),
        "ER on features": lambda: ReplayBaseline(on_features, config, capacity=20, seed=seed),
        "DER++": lambda: DarkReplayBaseline(on_pixels(), config, dark, seed=seed),
        "EWC": lambda: EwcBaseline(on_pixels(), config, strength=10.0, seed=seed),
        "LwF": lambda: LwfBaseline(on_pixels(), config, seed=seed),
        "iCaRL": lambda: IcarlBaseline(on_pixels(), brisk, capacity=21, mirrored=True, seed=seed),
        "iCaRL on features": lambda: IcarlBaseline(on_features, brisk, capacity=21, seed=seed),
        "monolithic": lambda: MonolithicBaseline(on_pixels(), config, seed=seed),
        "central": lambda: MonolithicBaseline(on_features, adam, keeps_all=True, seed=seed),
        "mixture": lambda: MixtureBaseline(mixed, brisk, seed=seed),
        "nearest mean": lambda: NearestMean(FlatInputs()),
        "SLDA": lambda: StreamingLda(FlatInputs()),
        "projected": lambda: RouterArgmax(FlatInputs(), RouterConfig(ridge=1e-2), projection=projection),
        "router argmax": lambda: RouterArgmax(FlatInputs(), RouterConfig(ridge=1e-2)),
        "router argmax by task": lambda: RouterArgmax(FlatInputs(), RouterConfig(ridge=1e-2), by_task=True),
        "routed experts": lambda: routed(seed=seed),
    }
    return makers[kind]()


KEEPING_NETWORKS = ("joint", "ER", "ER on features", "DER++", "iCaRL", "iCaRL on features", "central")
NETWORKS = ("sequential", "EWC", "LwF", "monolithic", "mixture", *KEEPING_NETWORKS)
OURS = ("router argmax", "router argmax by task", "routed experts")
KEEPING = (*KEEPING_NETWORKS, "nearest mean", "SLDA", "projected", *OURS)
UNTRAINED = ("nearest mean", "SLDA", "projected")


@pytest.mark.parametrize("kind", [*NETWORKS, *UNTRAINED, *OURS])
def test_only_classes_seen_are_predicted(kind: str) -> None:
    learner = baseline(kind)
    learner.learn(FIRST)
    assert score(learner, FIRST_TEST) > 0.9
    assert learner.seen == ("north", "west")
    assert set(learner.predict(SECOND_TEST.images)) <= {"north", "west"}


def test_sequential_fine_tuning_learns_the_new_and_forgets_the_old() -> None:
    config = TrainingConfig(epochs=8, batch_size=16, lr=0.1)
    learner = SequentialBaseline(on_pixels(reference_cnn), config, seed=0)
    learner.learn(task("north", "west", size=60))
    learner.learn(task("east", "south", size=60))
    assert score(learner, SECOND_TEST) > 0.9
    assert score(learner, FIRST_TEST) < 0.2


@pytest.mark.parametrize("kind", KEEPING)
def test_a_method_that_keeps_something_keeps_all_tasks(kind: str) -> None:
    learner = baseline(kind)
    learner.learn(FIRST)
    learner.learn(SECOND)
    assert score(learner, SECOND_TEST) > 0.9
    assert score(learner, FIRST_TEST) > 0.9


@pytest.mark.parametrize("kind", [*NETWORKS, *UNTRAINED, *OURS])
def test_an_answer_is_among_the_classes_that_may_be_named(kind: str) -> None:
    learner = baseline(kind)
    learner.learn(FIRST)
    learner.learn(SECOND)
    # Asked between two classes of different tasks: no row may be answered from outside.
    allowed = ("south", "west")
    answers = named_answers(learner.scores(task(*CLASSES, seed=3).images, allowed), allowed)
    assert answers is not None
    assert set(answers) <= set(allowed)
    west = task("west", seed=4)
    assert named_answers(learner.scores(west.images, ("east", "west")), ("east", "west")) is not None


def test_ewc_moves_what_mattered_the_less_the_more_strongly_it_is_told_to() -> None:
    config = TrainingConfig(epochs=3, batch_size=16, lr=0.05)
    moved = []
    for strength in (0.0, 20.0, 200.0):
        learner = EwcBaseline(on_pixels(), config, strength=strength, seed=0)
        learner.learn(FIRST)
        fisher = dict(learner._fisher)
        held = {name: value.detach().clone() for name, value in learner._network.named_parameters()}
        learner.learn(SECOND)
        now = dict(learner._network.named_parameters())
        moved.append(sum((fisher[name] * (now[name] - held[name]).square()).sum().item() for name in held))
    assert moved[0] > 1.5 * moved[1] > 1.5 * 1.5 * moved[2]


def test_lwf_goes_on_saying_of_new_images_what_it_said_of_old_classes() -> None:
    config = TrainingConfig(epochs=10, batch_size=16, lr=0.05)
    moved = []
    for strength in (0.0, 3.0):
        learner = LwfBaseline(on_pixels(), config, strength=strength, seed=0)
        learner.learn(FIRST)
        before = learner.scores(SECOND_TEST.images, FIRST.classes).softmax(dim=1)
        learner.learn(SECOND)
        after = learner.scores(SECOND_TEST.images, FIRST.classes).softmax(dim=1)
        moved.append((after - before).abs().mean().item())
    assert moved[1] < moved[0] / 2


def test_icarl_learns_classes_that_come_again_and_keeps_as_many_of_each_domain() -> None:
    config = TrainingConfig(epochs=20, batch_size=8, lr=0.3)
    learner = IcarlBaseline(on_pixels(), config, capacity=20, seed=0)
    again, again_test = (task("north", "west", seed=seed, inverted=True) for seed in (2, 3))
    learner.learn(FIRST)
    assert {len(kept) for kept in learner._exemplars.values()} == {10}
    assert score(learner, again_test) < 0.6
    learner.learn(again)
    assert [len(kept) for kept in learner._exemplars.values()] == [5] * 4
    dark = [kept.mean() < 0.5 for kept in learner._exemplars.values()]
    assert dark == [True, True, False, False]
    assert min(score(learner, FIRST_TEST), score(learner, again_test)) > 0.9


def test_features_have_no_mirror_image() -> None:
    on_features = NetworkSetup(inputs=FlatInputs(), form=feature_head, classes=CLASSES)
    with pytest.raises(SettingOutOfRange):
        IcarlBaseline(on_features, TrainingConfig(), capacity=20, mirrored=True, seed=0)


@pytest.mark.parametrize("kind", [*UNTRAINED, *OURS])
def test_what_has_no_column_for_a_class_gives_no_answer_and_a_network_always_does(kind: str) -> None:
    learner, network = baseline(kind), baseline("ER on features")
    for method in (learner, network):
        method.learn(FIRST)
    assert named_answers(learner.scores(SECOND_TEST.images, SECOND.classes), SECOND.classes) is None
    assert named_answers(network.scores(SECOND_TEST.images, SECOND.classes), SECOND.classes) is not None


def test_a_class_that_comes_again_adds_no_second_answer() -> None:
    learner = baseline("router argmax by task")
    learner.learn(FIRST)
    learner.learn(task("north", "south"))
    assert set(learner.predict(task(*PLACES).images)) <= {"north", "south", "west"}


@pytest.mark.parametrize("kind", [*NETWORKS, "routed experts"])
def test_runs_are_a_function_of_their_seed_and_touch_no_shared_stream(kind: str) -> None:
    noise = np.random.default_rng(5).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    scores = []
    for seed, global_seed in ((0, 1), (0, 2), (7, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        learner = baseline(kind, seed)
        learner.learn(FIRST)
        assert torch.equal(torch.get_rng_state(), before)
        scores.append(learner.scores(noise, learner.seen))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("kind", [*NETWORKS, *OURS])
def test_a_task_without_images_is_refused(kind: str) -> None:
    with pytest.raises(NothingToLearnFrom):
        baseline(kind).learn(FIRST.select([]))


def test_what_a_method_holds_is_what_it_would_have_to_keep_and_send() -> None:
    item_bytes, task_bytes = FIRST.images[0].nbytes, FIRST.images.nbytes
    held = {}
    for kind in ("sequential", "joint", "ER", "router argmax", "routed experts"):
        learner = baseline(kind)
        learner.learn(FIRST)
        held[kind] = learner.holdings()
    assert [held[kind].kept_bytes for kind in ("sequential", "joint", "ER")] == [0, task_bytes, 20 * item_bytes]
    assert {held[kind].sent_bytes for kind in ("sequential", "joint", "ER")} == {task_bytes}
    beside = {kind: baseline(kind) for kind in ("DER++", "EWC", "LwF", "iCaRL")}
    for learner in beside.values():
        learner.learn(FIRST)
    kept = {kind: learner.holdings().kept_bytes for kind, learner in beside.items()}
    weights = beside["EWC"].holdings().num_parameters
    # Four logits beside each image; a float32 of Fisher information for each weight; ten exemplars of either class.
    assert kept == {"DER++": 20 * (item_bytes + 16), "EWC": 4 * weights, "LwF": 0, "iCaRL": 20 * item_bytes}
    assert held["router argmax"].num_parameters == 65 * 2
    assert held["router argmax"].kept_bytes == held["router argmax"].sent_bytes > 64 * 65 // 2 * 4
    expert = 65 * 8 + 9 * 2
    assert held["routed experts"].num_parameters == held["router argmax"].num_parameters + expert
    assert held["routed experts"].sent_bytes > held["router argmax"].sent_bytes + 4 * expert
    assert all(of.flops > 0 for of in held.values())


def test_training_twice_as_long_costs_twice_the_flops() -> None:
    flops = []
    for epochs in (1, 2):
        config = TrainingConfig(epochs=epochs, batch_size=16)
        learner = SequentialBaseline(on_pixels(), config, seed=0)
        learner.learn(FIRST)
        flops.append(learner.holdings().flops)
    # Forward, and backward to weights and inputs but not to the first layer's.
    of_layers = [64 * 100, 100 * 100, 100 * 4]
    assert flops[0] == 2 * len(FIRST) * (3 * sum(of_layers) - of_layers[0])
    assert flops[1] == 2 * flops[0]


def test_who_keeps_images_makes_their_inputs_anew_for_every_task() -> None:
    inputs = FlatInputs()
    config = TrainingConfig(batch_size=16)
    plain: list[int] = []
    costly: list[int] = []
    for flops_per_image, flops in ((0, plain), (7, costly)):
        inputs.flops_per_image = flops_per_image
        setup = NetworkSetup(inputs=inputs, form=feature_head, classes=CLASSES)
        for learner in (
            SequentialBaseline(setup, config, seed=0),
            ReplayBaseline(setup, config, capacity=20, seed=0),
            JointBaseline(setup, config, seed=0),
        ):
            for data in (FIRST, SECOND):
                learner.learn(data)
            flops.append(learner.holdings().flops)
    both = len(FIRST) + len(SECOND)
    assert [of - without for of, without in zip(costly, plain, strict=True)] == [
        7 * both,
        7 * (both + 20),
        7 * (both + len(FIRST)),
    ]


def test_a_ridge_costs_its_scatter_its_means_and_its_solve() -> None:
    learner = baseline("router argmax")
    learner.learn(FIRST)
    first = learner.holdings().flops
    learner.learn(SECOND)
    items, dim = len(FIRST), 64
    of_solve = [(dim + 1) ** 3 // 3 + 2 * (dim + 1) ** 2 * columns for columns in (2, 4)]
    scatter = 2 * items * dim**2 + 7 * items
    assert first == scatter + 2 * 2 * (dim + 1) ** 2 + of_solve[0]
    assert learner.holdings().flops - first == scatter + 2 * 4 * (dim + 1) ** 2 + of_solve[1]


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"optimizer": "adagrad"},
        {"weight_decay": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(SettingOutOfRange):
        TrainingConfig(**setting)  # type: ignore[arg-type]


@given(data=st.data())
@settings(deadline=None)
def test_the_best_of_the_allowed_columns_is_the_answer(data: st.DataObject) -> None:
    scores = st.lists(st.floats(-9, 9), min_size=4, max_size=4)
    rows = data.draw(st.lists(scores, min_size=1, max_size=6))
    labels = data.draw(st.lists(st.sampled_from(CLASSES), min_size=len(rows), max_size=len(rows)))
    allowed = sorted(data.draw(st.sets(st.sampled_from(CLASSES), min_size=1)))
    columns = [CLASSES.index(name) for name in allowed]
    answers = named_answers(torch.tensor(rows, dtype=torch.float64)[:, columns], allowed)
    assert answers is not None
    assert accuracy(answers, labels) == pytest.approx(
        equations_continual.masked_accuracy(rows, CLASSES, labels, allowed)
    )


def test_a_row_without_any_score_is_no_answer() -> None:
    assert named_answers(torch.tensor([[1.0, 2.0], [-torch.inf, -torch.inf]]), ("a", "b")) is None
    assert named_answers(torch.empty(3, 0), ()) is None
