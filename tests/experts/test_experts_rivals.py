"""Methods to compare with: each descends the loss of its paper, and keeps what it says it keeps."""

import equations
import equations_continual
import numpy as np
import pytest
import torch
from torch import nn

from experts.data.dataset import ImageDataset
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.derpp import DarkReplay, DarkReplayConfig
from experts.evaluation.baselines.ewc import Consolidated, EwcBaseline
from experts.evaluation.baselines.icarl import IcarlBaseline, Sigmoids, soft_targets
from experts.evaluation.baselines.lwf import LwfBaseline, Remembered
from experts.evaluation.baselines.moe import Balanced, GatedNetwork, MixtureBaseline, gated_network
from experts.evaluation.baselines.monolithic import MonolithicBaseline, Taught
from experts.evaluation.baselines.nearest_mean import NearestMean, nearest_mean_scores
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.slda import StreamingLda
from experts.evaluation.inputs import Inputs, PixelInputs
from experts.evaluation.networks import feature_head, mlp_100_100, without_classifier
from experts.evaluation.reservoir import Reservoir
from experts.evaluation.training import TrainingConfig, train
from experts.generators import torch_generator

B, D, C = 5, 3, 4


def drawn(*shape: int, name: str) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(0, name))


def network(name: str = "network") -> nn.Linear:
    layer = nn.Linear(D, C)
    with torch.no_grad():
        layer.weight.copy_(drawn(C, D, name=name))
        layer.bias.copy_(drawn(C, name=f"{name}/bias"))
    return layer


INPUTS, LABELS = drawn(B, D, name="inputs"), torch.tensor([0, 3, 1, 1, 2])


def test_der_adds_the_distance_to_the_logits_that_were_and_the_loss_on_the_labels() -> None:
    kept_inputs, kept_labels, kept_logits = drawn(2, D, name="kept"), torch.tensor([2, 0]), drawn(2, C, name="logits")
    # A draw of all there is: both draws are the same items, in whatever order.
    reservoir = Reservoir(2, draw_size=9, generator=torch.Generator().manual_seed(0))
    objective, module = DarkReplay(reservoir, alpha=0.3, beta=0.7), network()
    first = objective.loss(module, (INPUTS, LABELS))
    assert objective.num_replayed == 0
    assert first.item() == pytest.approx(equations.cross_entropy(module(INPUTS).tolist(), LABELS.tolist()), rel=1e-5)
    reservoir.keep(kept_inputs, kept_labels, kept_logits)
    outputs = module(kept_inputs).tolist()
    expected = equations_continual.derpp_loss(
        (module(INPUTS).tolist(), LABELS.tolist()),
        (outputs, kept_logits.tolist()),
        (outputs, kept_labels.tolist()),
        0.3,
        0.7,
    )
    assert objective.num_replayed == 2
    assert objective.loss(module, (INPUTS, LABELS)).item() == pytest.approx(expected, rel=1e-5)


def test_der_keeps_the_logits_that_an_item_had_before_its_step() -> None:
    module = network()
    before = module(INPUTS).detach()
    reservoir = Reservoir(B, draw_size=B, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(batch_size=B, lr=1.0)
    train(module, (INPUTS, LABELS), config, torch.Generator().manual_seed(0), DarkReplay(reservoir, 1.0, 1.0))
    kept = reservoir.draw()
    assert kept is not None
    assert torch.allclose(kept[2], kept[0] @ network().weight.T + network().bias)
    assert not torch.allclose(module(INPUTS), before, atol=0.1)


def test_ewc_holds_each_weight_as_much_as_it_matters() -> None:
    module = network()
    fisher = {name: drawn(*value.shape, name=name).square() for name, value in module.named_parameters()}
    objective = Consolidated(module, fisher, strength=3.0)
    held = torch.cat([value.detach().flatten().clone() for value in module.parameters()])
    plain = equations.cross_entropy(module(INPUTS).tolist(), LABELS.tolist())
    assert objective.loss(module, (INPUTS, LABELS)).item() == pytest.approx(plain, rel=1e-5)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(drawn(*value.shape, name="moved"))
    moved = torch.cat([value.detach().flatten() for value in module.parameters()])
    flat = torch.cat([value.flatten() for value in fisher.values()])
    expected = equations.cross_entropy(module(INPUTS).tolist(), LABELS.tolist())
    expected += equations_continual.ewc_penalty(3.0, flat.tolist(), moved.tolist(), held.tolist())
    assert objective.loss(module, (INPUTS, LABELS)).item() == pytest.approx(expected, rel=1e-5)


def test_before_the_first_task_ewc_holds_nothing() -> None:
    module = network()
    objective = Consolidated(module, {}, strength=1e9)
    with torch.no_grad():
        module.weight += 1.0
    plain = equations.cross_entropy(module(INPUTS).tolist(), LABELS.tolist())
    assert objective.loss(module, (INPUTS, LABELS)).item() == pytest.approx(plain, rel=1e-5)


def test_lwf_goes_on_saying_of_old_classes_what_was_said() -> None:
    module, said = network(), drawn(B, C, name="said")
    old, seen = (1, 3), (0, 1, 2, 3)
    loss = Remembered(old, seen, strength=0.5, temperature=2.0).loss(module, (INPUTS, LABELS, said))
    outputs = module(INPUTS).tolist()
    expected = equations_continual.lwf_loss((outputs, said.tolist()), LABELS.tolist(), old, seen, 0.5, 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # In the first task there is nothing to go on saying, and columns to come are no rivals.
    labels = torch.tensor([1, 3, 1, 1, 3])
    loss = Remembered((), (1, 3), strength=0.5, temperature=2.0).loss(module, (INPUTS, labels, said))
    expected = equations.cross_entropy([[row[1], row[3]] for row in outputs], [0, 1, 0, 0, 1])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_icarl_asks_old_columns_for_what_was_said_and_the_others_for_the_label() -> None:
    module, said = network(), drawn(B, C, name="said")
    targets = soft_targets(said, LABELS, [1, 3])
    loss = Sigmoids().loss(module, (INPUTS, LABELS, targets))
    expected = equations_continual.icarl_loss(module(INPUTS).tolist(), said.tolist(), LABELS.tolist(), (1, 3))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_nearest_mean_answers_and_a_class_without_one_does_not() -> None:
    means = {"a": torch.tensor([0.0, 0.0]), "c": torch.tensor([3.0, 4.0])}
    scores = nearest_mean_scores(torch.tensor([[0.0, 1.0]]), means, ("a", "b", "c"))
    assert scores.tolist() == [[-1.0, -torch.inf, -18.0]]


class FourPixels(Inputs):
    """Images of two by two as features."""

    shape = (4,)
    flops_per_image = 0

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images.reshape(len(images), 4).astype(np.float32) / 64)


def in_two_tasks() -> tuple[ImageDataset, ImageDataset]:
    """One class alone in each task, and one in both."""
    images = np.random.default_rng(3).integers(0, 256, (24, 2, 2), dtype=np.uint8)
    labels = tuple("aabbbc"[row % 6] if row >= 12 else "ab"[row % 2] for row in range(24))
    whole = ImageDataset(images, labels)
    return whole.select(range(12)), whole.select(range(12, 24))


@pytest.mark.parametrize("kind", ["nearest mean", "SLDA"])
def test_means_and_shape_of_all_tasks_are_those_of_all_images_at_once(kind: str) -> None:
    parts, asked = in_two_tasks(), np.array([[[7, 80], [190, 33]]], dtype=np.uint8)
    subject = NearestMean(FourPixels()) if kind == "nearest mean" else StreamingLda(FourPixels(), shrinkage=0.1)
    for part in parts:
        subject.learn(part)
    rows = [row for part in parts for row in FourPixels()(part.images).tolist()]
    labels, h = [label for part in parts for label in part.labels], FourPixels()(asked)[0].tolist()
    expected = (
        equations_continual.nearest_mean(rows, labels, h)
        if kind == "nearest mean"
        else equations_continual.lda_scores(rows, labels, h, 0.1)
    )
    scores = subject.scores(asked, ("a", "nobody", "b", "c"))[0].tolist()
    assert scores == pytest.approx([expected["a"], -torch.inf, expected["b"], expected["c"]], rel=1e-5)


def test_a_monolith_learns_from_each_images_own_teacher_and_from_its_label() -> None:
    module = network()
    said = drawn(B, C, name="teacher")
    said[:, 2] = -torch.inf
    loss = Taught(alpha=0.3, temperature=2.0).loss(module, (INPUTS, LABELS, said))
    teacher = [[None if column == 2 else value for column, value in enumerate(row)] for row in said.tolist()]
    expected = equations.distillation_over_rows(
        module(INPUTS).tolist(), [teacher], [1.0], LABELS.tolist(), alpha=0.3, temperature=2.0
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_mixture_is_trained_on_its_own_likelihood_and_on_a_balanced_load() -> None:
    form = gated_network(num_experts=3, expert_hidden=5, router_hidden=4)
    module = form((D,), "abcd", torch_generator(0, "mixture"))
    assert isinstance(module, GatedNetwork)
    gate, log_p = module.parts(INPUTS)
    expected = equations_continual.balanced_mixture_loss(gate.tolist(), log_p.tolist(), LABELS.tolist(), 0.7)
    loss = Balanced(0.7).loss(module, (INPUTS, LABELS))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in module.parameters())
    # What it answers with is that likelihood: a distribution over all classes.
    assert torch.allclose(module(INPUTS).exp().sum(dim=1), torch.ones(B))
    assert equations_continual.balanced_mixture_loss(
        gate.tolist(), log_p.tolist(), LABELS.tolist(), 0.0
    ) == pytest.approx(-module(INPUTS)[torch.arange(B), LABELS].mean().item(), rel=1e-5)


def test_the_layers_before_the_classifier_are_the_networks_own() -> None:
    for form, shape in ((mlp_100_100, (1, 4, 4)), (feature_head, (16,))):
        whole = form(shape, "ab", torch_generator(0, "form"))
        inputs = drawn(3, *shape, name="pixels")
        features = without_classifier(whole)(inputs)
        last = list(whole.children())[-1]
        assert torch.equal(last(features), whole(inputs))


@pytest.mark.parametrize(
    "setting", [{"capacity": 0}, {"replay_size": 0}, {"alpha": -1.0}, {"beta": float("inf")}, {"beta": float("nan")}]
)
def test_settings_of_dark_replay_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(SettingOutOfRange):
        DarkReplayConfig(**{"capacity": 1, "alpha": 1.0, "beta": 1.0, **setting})  # type: ignore[arg-type]


def test_strengths_and_numbers_out_of_range_are_refused() -> None:
    setup = NetworkSetup(inputs=PixelInputs(channels=1, pixels=8), form=mlp_100_100, classes=("a", "b"))
    config = TrainingConfig()
    with pytest.raises(SettingOutOfRange):
        EwcBaseline(setup, config, strength=-1.0, seed=0)
    with pytest.raises(SettingOutOfRange):
        EwcBaseline(setup, config, strength=1.0, gamma=1.5, seed=0)
    with pytest.raises(SettingOutOfRange):
        LwfBaseline(setup, config, strength=float("nan"), seed=0)
    with pytest.raises(SettingOutOfRange):
        LwfBaseline(setup, config, temperature=0.0, seed=0)
    with pytest.raises(SettingOutOfRange):
        IcarlBaseline(setup, config, capacity=0, seed=0)
    with pytest.raises(SettingOutOfRange):
        MonolithicBaseline(setup, config, alpha=1.5, seed=0)
    with pytest.raises(SettingOutOfRange):
        MonolithicBaseline(setup, config, temperature=0.0, seed=0)
    with pytest.raises(SettingOutOfRange):
        MixtureBaseline(setup, config, balance=-1.0, seed=0)
    with pytest.raises(SettingOutOfRange):
        StreamingLda(FourPixels(), shrinkage=0.0)
