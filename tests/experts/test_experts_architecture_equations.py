"""Each built-in architecture against its equation in plain loops, and at its edges."""

from collections.abc import Callable

import equations
import pytest
import torch
from architecture_forms import BuiltIn, adapters, convs, deeps, linears, mlps
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.architectures.adapter import AdapterArchitecture
from experts.architectures.base import probabilities
from experts.architectures.conv import ConvArchitecture
from experts.architectures.deep import DeepArchitecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture

Scores = Callable[[dict[str, list], list[float]], list[float]]


def assert_computes(architecture: BuiltIn, module: nn.Module, scores: Scores, seed: int) -> None:
    """Compare logits and probabilities with ``scores(weights, input_scale h)`` for two rows."""
    features_BD = torch.randn(2, architecture.feature_dim, generator=torch.Generator().manual_seed(seed))
    weights = {name: parameter.double().tolist() for name, parameter in module.named_parameters()}
    found_BC = probabilities(module, features_BD)
    for row in range(2):
        scaled = [architecture.input_scale * value for value in features_BD[row].tolist()]
        expected = scores(weights, scaled)
        tolerance = 1e-5 * max(1.0, *map(abs, scaled))
        assert module(features_BD)[row].tolist() == pytest.approx(expected, abs=tolerance)
        assert found_BC[row].tolist() == pytest.approx(equations.softmax(expected), abs=tolerance)


seeds = st.integers(0, 999)


@settings(deadline=None, max_examples=40)  # a shared machine is slow at times
@given(linears, seeds)
def test_a_linear_expert_computes_its_equation(architecture: LinearArchitecture, seed: int) -> None:
    def scores(weights: dict[str, list], z: list[float]) -> list[float]:
        return equations.linear(weights["output.weight"], weights["output.bias"], z)

    assert_computes(architecture, architecture.build("uid"), scores, seed)


@settings(deadline=None, max_examples=40)
@given(mlps, seeds)
def test_an_expert_with_a_hidden_layer_computes_its_equation(architecture: MlpArchitecture, seed: int) -> None:
    def scores(weights: dict[str, list], z: list[float]) -> list[float]:
        hidden = equations.relu(equations.linear(weights["hidden.weight"], weights["hidden.bias"], z))
        return equations.linear(weights["output.weight"], weights["output.bias"], hidden)

    assert_computes(architecture, architecture.build("uid"), scores, seed)


@settings(deadline=None, max_examples=40)
@given(deeps, seeds)
def test_a_deep_expert_computes_its_equation(architecture: DeepArchitecture, seed: int) -> None:
    module = architecture.build("uid")
    # Gains and biases begin where any order of them would do.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("norm."):
                parameter.uniform_(0.5, 1.5, generator=generator)

    def scores(weights: dict[str, list], z: list[float]) -> list[float]:
        for layer in range(architecture.layers):
            z = equations.linear(weights[f"hidden.{layer}.weight"], weights[f"hidden.{layer}.bias"], z)
            if architecture.norm == "layer":
                z = equations.normalised(weights[f"norm.{layer}.weight"], weights[f"norm.{layer}.bias"], z)
            z = equations.activated(architecture.activation, z)
        return equations.linear(weights["output.weight"], weights["output.bias"], z)

    assert_computes(architecture, module, scores, seed)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_new_deep_expert_normalises_and_nothing_more(layers: int) -> None:
    architecture = DeepArchitecture(feature_dim=5, hidden=4, layers=layers, norm="layer", num_classes=2)
    module = architecture.build("uid")
    names = [name for layer in range(layers) for name in (f"hidden.{layer}.weight", f"hidden.{layer}.bias")]
    names += [name for layer in range(layers) for name in (f"norm.{layer}.weight", f"norm.{layer}.bias")]
    assert [name for name, _ in module.named_parameters()] == [*names, "output.weight", "output.bias"]
    for layer in range(layers):
        assert module.get_parameter(f"norm.{layer}.weight").tolist() == [1.0] * 4
        assert module.get_parameter(f"norm.{layer}.bias").tolist() == [0.0] * 4
    # A peer's features of another scale are the same expert's, but for what is added to a variance near 0.
    features_BD = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 100
    with torch.no_grad():
        module.get_parameter("hidden.0.bias").zero_()
    torch.testing.assert_close(module(features_BD), module(features_BD * 2), atol=1e-4, rtol=0)


def test_a_deep_expert_of_one_layer_without_norm_is_the_one_with_a_hidden_layer() -> None:
    deep = DeepArchitecture(feature_dim=5, hidden=4, layers=1, num_classes=2).build("uid")
    mlp = MlpArchitecture(feature_dim=5, hidden=4, num_classes=2).build("uid")
    with torch.no_grad():
        for own, other in zip(deep.parameters(), mlp.parameters(), strict=True):
            other.copy_(own)
    features_BD = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(deep(features_BD), mlp(features_BD))


@settings(deadline=None, max_examples=40)
@given(convs, seeds)
def test_a_convolutional_head_computes_its_equation(architecture: ConvArchitecture, seed: int) -> None:
    def scores(weights: dict[str, list], z: list[float]) -> list[float]:
        image = equations.map_of(z, architecture.channels, architecture.height, architecture.width)
        responses = equations.convolved(weights["conv.weight"], weights["conv.bias"], image)
        pooled = [equations.mean_response(response) for response in responses]
        return equations.linear(weights["output.weight"], weights["output.bias"], pooled)

    assert_computes(architecture, architecture.build("uid"), scores, seed)


@settings(deadline=None, max_examples=40)
@given(adapters, seeds)
def test_an_adapter_computes_its_equation(architecture: AdapterArchitecture, seed: int) -> None:
    module = architecture.build("uid")
    # It begins at 0, where any sign or transposition of it would do.
    with torch.no_grad():
        module.get_parameter("up.weight").uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))

    def scores(weights: dict[str, list], z: list[float]) -> list[float]:
        corrected = equations.adapted(weights["down.weight"], weights["down.bias"], weights["up.weight"], z)
        return equations.linear(weights["output.weight"], weights["output.bias"], corrected)

    assert_computes(architecture, module, scores, seed)


@settings(deadline=None, max_examples=40)
@given(adapters, seeds)
def test_a_new_adapter_is_the_linear_expert_of_its_seed(architecture: AdapterArchitecture, seed: int) -> None:
    linear = LinearArchitecture(
        feature_dim=architecture.feature_dim,
        num_classes=architecture.num_classes,
        input_scale=architecture.input_scale,
    )
    features_BD = torch.randn(3, architecture.feature_dim, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(architecture.build("uid")(features_BD), linear.build("uid")(features_BD))


def test_a_new_adapters_correction_learns_at_the_second_step() -> None:
    module = AdapterArchitecture(feature_dim=4, bottleneck=3, num_classes=2).build("uid")
    features_BD = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    moved = []
    for _ in range(2):
        module.zero_grad()
        module(features_BD)[:, 0].sum().backward()
        parameters = dict(module.named_parameters())
        moved.append({name: bool(p.grad is not None and p.grad.any()) for name, p in parameters.items()})
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.sub_(0.1 * parameter.grad)
    # While P is 0, nothing reaches V; P itself moves at once.
    assert moved[0]["up.weight"]
    assert not moved[0]["down.weight"]
    assert moved[1]["down.weight"]


def test_a_convolutional_head_answers_alike_wherever_the_same_thing_is() -> None:
    # One pixel away from every edge: the mean over positions does not know where it is.
    module = ConvArchitecture(channels=2, height=6, width=5, filters=4, num_classes=3).build("uid")
    maps_BCHW = torch.zeros(2, 2, 6, 5)
    maps_BCHW[0, :, 1, 1] = maps_BCHW[1, :, 4, 3] = torch.tensor([2.0, -1.0])
    first, second = module(maps_BCHW.flatten(start_dim=1))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    swapped = module(maps_BCHW.flip(1).flatten(start_dim=1))[0]
    assert not torch.allclose(first, swapped, atol=1e-3)


def test_a_map_of_one_position_leaves_of_each_filter_its_centre() -> None:
    architecture = ConvArchitecture(channels=3, height=1, width=1, filters=2, num_classes=2, input_scale=1.0)
    module = architecture.build("uid")
    centre = module.get_parameter("conv.weight")[:, :, 1, 1]
    h = torch.tensor([[0.5, -2.0, 1.0]])
    pooled = torch.relu(h @ centre.T + module.get_parameter("conv.bias"))
    expected = pooled @ module.get_parameter("output.weight").T + module.get_parameter("output.bias")
    torch.testing.assert_close(module(h), expected)


def test_the_scale_multiplies_the_features_and_nothing_else() -> None:
    plain = LinearArchitecture(feature_dim=3, num_classes=2, input_scale=1.0).build("uid")
    scaled = LinearArchitecture(feature_dim=3, num_classes=2, input_scale=0.5).build("uid")
    h = torch.tensor([[1.0, -2.0, 4.0]])
    assert torch.equal(scaled(h), plain(h / 2))
    assert not torch.equal(scaled(h), plain(h))


def test_initial_weights_of_a_known_uid() -> None:
    # As numbers too: a digest says that something changed, not what.
    module = MlpArchitecture(feature_dim=3, hidden=2, num_classes=2).build("uid")
    assert module.state_dict()["hidden.weight"].tolist()[0] == pytest.approx(
        [-0.11532582342624664, 0.512233316898346, 0.5068522691726685], abs=0
    )
