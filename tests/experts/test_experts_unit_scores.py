"""The importance of units against gates in plain loops, and what has to hold of it whatever the network."""

import copy
from typing import get_args

import pytest
import torch
from architecture_forms import SMALL
from torch import Tensor, nn
from torch.nn import functional

from experts.architectures.mlp import MlpArchitecture
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.errors import SettingOutOfRange, UndefinedFigure
from experts.generators import torch_generator
from experts.preservation.chain import ACTIVATIONS, Chain, MeanOverPositions, Stage, conv_layer, linear_layer
from experts.preservation.fisher import fisher_diagonal
from experts.preservation.reading import chain_of
from experts.preservation.scores import ScoreName, unit_scores

NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
FROM_DATA: tuple[ScoreName, ...] = ("gate", "fisher_sum", "fisher_theta2")
N = 7

FEATURES_ND = torch.randn(N, 12, generator=torch.Generator().manual_seed(0)).double()
LABELS_N = torch.arange(N) % 2


def two_convolutions() -> Chain:
    """Filters over filters, and a linear stage that reads each position of the second map."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(4, 2, 3, 3, generator=generator), torch.randn(3, 4, 1, 1, generator=generator)
    last = torch.randn(2, 3 * 6, generator=generator)
    stages = [
        Stage("first", conv_layer(first, torch.randn(4, generator=generator)), activation="silu"),
        Stage("second", conv_layer(second, torch.zeros(3)), activation="tanh", after=nn.Flatten()),
        Stage("output", linear_layer(last, None)),
    ]
    return Chain(stages, input_scale=0.5, input_map=(2, 3, 2))


def chain(kind: str) -> Chain:
    if kind == "two convolutions":
        return two_convolutions().double()
    module = SMALL[kind].build("uid")
    if kind == "adapter":  # it begins as a linear expert, whose other units do nothing
        with torch.no_grad():
            module.get_parameter("up.weight").uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    return chain_of(SMALL[kind], module).double()


CHAINS = [*sorted(SMALL), "two convolutions"]


def gated(network: Chain, features_BD: Tensor, gates: list[Tensor]) -> Tensor:
    """Logits, where what each unit passes on is multiplied by its gate."""
    values = scaled = network.scaled(features_BD)
    for stage, gates_U in zip(network.stages, gates, strict=True):
        values = stage.weights(values)
        if stage.norm is not None:
            values = stage.norm(values)
        if stage.skip:
            values = values + scaled
        values = ACTIVATIONS[stage.activation](values)
        values = values * gates_U.reshape(-1, *[1] * (values.ndim - 2))
        if stage.after is not None:
            values = stage.after(values)
    return values


@pytest.mark.parametrize("name", CHAINS)
def test_a_gates_score_is_the_mean_of_each_samples_squared_gradient_at_it(name: str) -> None:
    network = chain(name)
    expected = [torch.zeros(stage.units, dtype=torch.float64) for stage in network.stages]
    for n in range(N):
        gates = [torch.ones(stage.units, dtype=torch.float64, requires_grad=True) for stage in network.stages]
        loss = functional.cross_entropy(gated(network, FEATURES_ND[n : n + 1], gates), LABELS_N[n : n + 1])
        for index, gradient in enumerate(torch.autograd.grad(loss, gates)):
            expected[index] += gradient**2 / N
    for found_U, expected_U in zip(unit_scores(network, FEATURES_ND, LABELS_N), expected, strict=True):
        assert found_U.dtype == torch.float64
        torch.testing.assert_close(found_U, expected_U, rtol=1e-9, atol=1e-30)


def test_sums_are_over_all_that_leads_to_a_unit_and_on_from_it() -> None:
    architecture = SMALL["deep"]
    module = architecture.build("uid")
    features_ND = FEATURES_ND.float()
    information = fisher_diagonal(module, features_ND, LABELS_N)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    squares = {name: value.square() for name, value in parameters.items()}
    weighted = {name: information[name] * squares[name] for name in squares}
    first = ("hidden.0.weight", "hidden.0.bias", "norm.0.weight", "norm.0.bias")
    network = chain_of(architecture, module)
    for score, values in (("fisher_sum", information), ("fisher_theta2", weighted), ("magnitude", squares)):
        found = unit_scores(network, features_ND, LABELS_N, score=score)
        assert [len(scores_U) for scores_U in found] == [4, 4, 2]
        for u in range(4):
            incoming = sum(float(values[name][u].sum()) for name in first)
            outgoing = float(values["hidden.1.weight"][:, u].sum())
            expected = incoming * outgoing if score == "magnitude" else incoming + outgoing
            assert found[0][u].item() == pytest.approx(expected, rel=1e-5)
        for c in range(2):
            expected = float(values["output.weight"][c].sum() + values["output.bias"][c])
            assert found[2][c].item() == pytest.approx(expected, rel=1e-5)


def test_filters_are_scored_with_all_their_places_and_all_that_reads_their_map() -> None:
    network = chain("two convolutions")
    first, second, last = network.stages
    weights = [stage.weights.weight.detach().square() for stage in network.stages]
    bias = first.weights.bias.detach().square()
    found = unit_scores(network, FEATURES_ND, None, score="magnitude")
    torch.testing.assert_close(found[0], (weights[0].sum(dim=(1, 2, 3)) + bias) * weights[1].sum(dim=(0, 2, 3)))
    # The columns of the flattened map that are positions of the second filter: 6 to 11.
    assert found[1][1].item() == pytest.approx(float(weights[1][1].sum() * weights[2][:, 6:12].sum()))
    assert (first.units, second.units, last.units) == (4, 3, 2)


@pytest.mark.parametrize("score", FROM_DATA)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_unit_that_never_answers_scores_nothing(name: str, score: ScoreName) -> None:
    network = chain(name)
    with torch.no_grad():
        network.stages[0].weights.bias[1] = -1e3
    scores_U = unit_scores(network, FEATURES_ND, LABELS_N, score=score)[0]
    assert scores_U[1] == 0
    assert (scores_U[[0, 2]] > 0).all()


def test_a_unit_that_nothing_reads_scores_nothing_by_magnitude_and_by_its_gate() -> None:
    network = chain("mlp")
    with torch.no_grad():
        network.output.weights.weight[:, 1] = 0
    for score in ("magnitude", "gate"):
        scores_U = unit_scores(network, FEATURES_ND, LABELS_N, score=score)[0]
        assert scores_U[1] == 0
        assert (scores_U[[0, 2]] > 0).all()


@pytest.mark.parametrize("score", NAMES)
@pytest.mark.parametrize("name", ["mlp", "deep", "conv", "two convolutions"])
def test_units_in_another_order_have_their_scores_in_that_order(name: str, score: ScoreName) -> None:
    network = chain(name)
    other = copy.deepcopy(network)
    first, following = other.stages[0], other.stages[1]
    order_U = torch.randperm(first.units, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        layers = [first.weights] if first.norm is None else [first.weights, first.norm]
        for parameter in (each for layer in layers for each in layer.parameters()):
            parameter.copy_(parameter[order_U].clone())
        following.weights.weight.copy_(following.weights.weight[:, order_U].clone())
    torch.testing.assert_close(other(FEATURES_ND), network(FEATURES_ND))
    before = unit_scores(network, FEATURES_ND, LABELS_N, score=score)
    after = unit_scores(other, FEATURES_ND, LABELS_N, score=score)
    torch.testing.assert_close(after[0], before[0][order_U], rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("score", NAMES)
def test_the_same_unit_louder_within_and_quieter_without_is_as_important_but_by_the_plain_sum(score: ScoreName) -> None:
    network = chain("mlp")
    with torch.no_grad():
        network.stages[0].weights.bias[1] = 0
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.stages[0].weights.weight[1] *= 8
        other.stages[1].weights.weight[:, 1] /= 8
    torch.testing.assert_close(other(FEATURES_ND), network(FEATURES_ND))
    before, after = (unit_scores(each, FEATURES_ND, LABELS_N, score=score)[0] for each in (network, other))
    assert bool(torch.isclose(after[1], before[1], rtol=1e-5)) == (score != "fisher_sum")


def test_what_the_gates_call_important_is_what_a_trained_expert_misses() -> None:
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.arange(300) % 3
    centres_CD = torch.randn(3, 8, generator=generator) * 2
    features_ND = centres_CD[labels_N] + torch.randn(300, 8, generator=generator)
    architecture = MlpArchitecture(feature_dim=8, hidden=6, num_classes=3)
    module = architecture.build("uid")
    data = DistillationData(features_ND=features_ND, labels_N=labels_N)
    run = DistillationRun(module, data, DistillationConfig(steps=300), torch_generator(0, "test"))
    while not run.done:
        run.step()
    network = chain_of(architecture, module)
    scores_U = unit_scores(network, features_ND, labels_N)[0]
    losses_U = torch.empty(6)
    for unit in range(6):
        without = copy.deepcopy(network)
        with torch.no_grad():
            without.output.weights.weight[:, unit] = 0
            losses_U[unit] = functional.cross_entropy(without(features_ND), labels_N)
    # Two of six are missed most, by far.
    assert set(scores_U.argsort()[-2:].tolist()) == set(losses_U.argsort()[-2:].tolist())
    assert losses_U.sort().values[-2] > 3 * losses_U.sort().values[-3]


def test_more_samples_than_one_pass_takes_are_averaged_over_all() -> None:
    network = chain("mlp")
    features_ND = torch.randn(600, 12, generator=torch.Generator().manual_seed(4)).double()
    labels_N = torch.arange(600) % 2
    parts = [unit_scores(network, features_ND[rows], labels_N[rows])[0] for rows in (slice(200), slice(200, 600))]
    found_U = unit_scores(network, features_ND, labels_N)[0]
    torch.testing.assert_close(found_U, (200 * parts[0] + 400 * parts[1]) / 600)


@pytest.mark.parametrize("score", NAMES)
def test_the_chain_and_the_global_stream_stay_as_they_were_also_for_frozen_weights(score: ScoreName) -> None:
    network = chain("deep")
    expected = unit_scores(network, FEATURES_ND, LABELS_N, score=score)
    network.requires_grad_(False).train()
    stream = torch.get_rng_state()
    with torch.no_grad():
        found = unit_scores(network, FEATURES_ND, LABELS_N, score=score)
    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(part.training for part in network.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("score", FROM_DATA)
def test_the_models_own_labels_come_from_the_generator_given(score: ScoreName) -> None:
    network = chain("mlp")
    first, again, other = (
        unit_scores(network, FEATURES_ND, None, score=score, kind="true", generator=torch_generator(seed, "labels"))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("score", FROM_DATA)
def test_what_is_missing_or_out_of_range_is_refused_by_name(score: ScoreName) -> None:
    network = chain("conv")
    with pytest.raises(UndefinedFigure, match="there are no samples"):
        unit_scores(network, FEATURES_ND[:0], LABELS_N[:0], score=score)
    with pytest.raises(UndefinedFigure, match="no labels"):
        unit_scores(network, FEATURES_ND, None, score=score)
    with pytest.raises(UndefinedFigure, match="no generator"):
        unit_scores(network, FEATURES_ND, None, score=score, kind="true")
    with pytest.raises(SettingOutOfRange, match="labels_N = 2"):
        unit_scores(network, FEATURES_ND, LABELS_N + 1, score=score)


def test_magnitude_needs_no_data() -> None:
    network = chain("mlp")
    with_data = unit_scores(network, FEATURES_ND, LABELS_N, score="magnitude")
    assert torch.equal(unit_scores(network, FEATURES_ND[:0], None, score="magnitude")[0], with_data[0])


def test_a_map_that_is_averaged_has_one_gate() -> None:
    # Half of the map says the one, half the opposite: a gate on all of it changes nothing, one on each place would.
    filters, weights = torch.zeros(1, 1, 1, 1), torch.tensor([[1.0], [-1.0]])
    filters[0, 0, 0, 0] = 1
    stages = [
        Stage("conv", conv_layer(filters, torch.zeros(1)), after=MeanOverPositions()),
        Stage("output", linear_layer(weights, None)),
    ]
    network = Chain(stages, input_map=(1, 1, 2))
    features_ND = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    assert unit_scores(network, features_ND, torch.tensor([0, 1]))[0].tolist() == [0.0]
