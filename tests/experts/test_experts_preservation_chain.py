"""An expert as a chain of layers with units, and units that are mapped."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from old_experts import KINDS, D, features, form, learned

from experts.errors import NothingCorresponds
from experts.preservation.chain import Chain, Stage, columns_by_unit, linear_layer
from experts.preservation.depth import lengthened
from experts.preservation.mapping import assign, map_units, similarity_of
from experts.preservation.reading import chain_of, write_chain

FORMS = [(kind, {}) for kind in KINDS] + [
    ("deep", {"activation": activation, "norm": norm, "layers": layers})
    for activation, norm, layers in (("relu", "none", 1), ("tanh", "none", 3), ("silu", "layer", 2))
]


@pytest.mark.parametrize(("kind", "settings"), FORMS)
def test_a_chain_computes_what_the_module_does(kind: str, settings: dict[str, object]) -> None:
    architecture = form(kind, **settings)
    module, items = learned(architecture), features(9)
    chain = chain_of(architecture, module)
    assert chain.feature_dim == D
    with torch.no_grad():
        assert torch.allclose(chain(items), module(items), atol=1e-5)


@pytest.mark.parametrize(("kind", "settings"), FORMS)
def test_a_module_of_a_chain_has_its_weights(kind: str, settings: dict[str, object]) -> None:
    architecture = form(kind, **settings)
    module, other = learned(architecture), architecture.build("other")
    write_chain(chain_of(architecture, module), architecture, other)
    for name, parameter in module.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter)


def test_the_chain_does_not_share_the_modules_weights() -> None:
    architecture = form("mlp")
    module = learned(architecture)
    before = module.get_parameter("hidden.weight").clone()
    chain = chain_of(architecture, module)
    with torch.no_grad():
        chain.hidden[0].weights.weight.zero_()
    assert torch.equal(module.get_parameter("hidden.weight"), before)


def test_a_bias_without_a_place_becomes_part_of_the_next() -> None:
    architecture = form("adapter")
    chain, items = chain_of(architecture, learned(architecture)), features(9)
    with torch.no_grad():
        assert chain.stages[1].weights.bias is not None
        chain.stages[1].weights.bias.copy_(torch.randn(D, generator=torch.Generator().manual_seed(3)))
    module = architecture.build("new")
    write_chain(chain, architecture, module)
    with torch.no_grad():
        assert torch.allclose(module(items), chain(items), atol=1e-5)


def test_what_a_stage_gets_gives_and_answers_fit_together() -> None:
    architecture = form("deep", activation="relu", norm="none")
    chain, items = chain_of(architecture, learned(architecture)), features(9)
    with torch.no_grad():
        outputs = chain.trace(items)
        for index, stage in enumerate(chain.stages):
            sums = chain.sums_of(index, items)
            assert torch.equal(stage.weights(chain.inputs_of(index, items)), sums)
            assert torch.equal(outputs[index], torch.relu(sums) if stage.activation == "relu" else sums)


def test_columns_stand_by_the_unit_that_they_read() -> None:
    architecture = form("conv")
    chain = chain_of(architecture, learned(architecture))
    filters, output = chain.stages
    assert columns_by_unit(filters.weights, 2).shape == (6, 2, 9)
    assert columns_by_unit(output.weights, 6).shape == (3, 6, 1)


def test_only_a_kind_that_says_what_its_layers_are_for_can_be_read() -> None:
    class Silent(type(form("mlp"))):  # type: ignore[misc]
        __slots__ = ()
        anatomy = None

    with pytest.raises(NothingCorresponds, match="mlp"):
        chain_of(Silent(feature_dim=2, hidden=2, num_classes=2), form("mlp").build(""))


scores = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=4)


@given(scores, st.integers(1, 4), st.integers(0, 10**6))
def test_the_assignment_has_the_largest_sum(importance: list[float], num_new: int, seed: int) -> None:
    similarity = torch.rand(len(importance), num_new, generator=torch.Generator().manual_seed(seed)).double()
    weighed = similarity * torch.tensor(importance, dtype=torch.float64)[:, None]
    pairs = assign(similarity, torch.tensor(importance, dtype=torch.float64))
    size = min(len(importance), num_new)
    best = max(
        sum(float(weighed[old, new]) for old, new in zip(olds, news, strict=True))
        for olds in itertools.permutations(range(len(importance)), size)
        for news in itertools.combinations(range(num_new), size)
    )
    assert sum(float(weighed[old, new]) for old, new in pairs) == pytest.approx(best)
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs) == size


def test_alike_are_units_that_answer_alike() -> None:
    items = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    old = torch.relu(torch.stack([items[:, 0], items[:, 1], items[:, 0] + items[:, 1]], dim=1))
    order = torch.tensor([2, 0, 1])
    new = 3 * old[:, order] + 1
    assert similarity_of("correlation", old, new).argmax(dim=1).tolist() == [1, 2, 0]
    assert torch.allclose(similarity_of("correlation", old, new).amax(dim=1), torch.ones(3, dtype=torch.float64))
    louder = old * torch.tensor([1.0, 5.0, 25.0])
    assert similarity_of("statistics", louder, louder[:, order].flip(0)).argmax(dim=1).tolist() == [1, 2, 0]
    assert torch.equal(similarity_of("role", old, new), torch.ones(3, 3, dtype=torch.float64))


def test_a_unit_that_always_answers_the_same_is_like_none() -> None:
    answers = torch.tensor([[1.0, 0.3], [1.0, 0.7], [1.0, 0.1]])
    assert similarity_of("correlation", answers, answers).tolist() == [[0.5, 0.5], [0.5, pytest.approx(1.0)]]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6))
def test_new_units_together_answer_what_the_kept_old_ones_did(num_old: int, num_new: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(num_old, generator=generator).double()
    answers = torch.rand(40, num_old, generator=generator)
    pairs = assign(torch.ones(num_old, num_new, dtype=torch.float64), importance)
    units = map_units(pairs, importance, answers, generator, num_new=num_new)
    rebuilt = answers[:, units.source_V] @ units.reconstruction_UV.T + units.offset_U
    kept = sorted(set(units.source_V.tolist()))
    assert torch.allclose(rebuilt[:, kept], answers[:, kept], atol=1e-5)
    assert torch.allclose(rebuilt.mean(dim=0), answers.mean(dim=0), atol=1e-5)
    assert units.mapped + units.merged + units.dropped == num_old
    assert units.mapped + units.duplicated == num_new


def test_the_most_important_units_are_doubled_first_and_then_shared() -> None:
    importance = torch.tensor([1.0, 8.0, 3.0], dtype=torch.float64)
    pairs = assign(torch.ones(3, 6, dtype=torch.float64), importance)
    units = map_units(pairs, importance, torch.rand(9, 3), torch.Generator().manual_seed(0), num_new=6)
    # 8 is doubled, then its halves of 4 are more than 3, then of 8/3 and 3 the 3.
    assert torch.bincount(units.source_V).tolist() == [1, 3, 2]


def test_a_chain_of_one_stage_has_no_hidden_units() -> None:
    architecture = form("linear")
    chain = chain_of(architecture, learned(architecture))
    assert isinstance(chain, Chain)
    assert chain.hidden == []
    assert chain.output.units == 3


def test_of_one_item_statistics_say_nothing_and_no_unit_is_like_nothing() -> None:
    alike = similarity_of("statistics", torch.rand(1, 3), torch.rand(1, 2))
    assert bool(torch.isfinite(alike).all())


def test_the_share_of_the_importance_that_is_kept_is_never_above_one() -> None:
    # Rounded, the sum of some is above the sum of all now and then, though the others are 0.
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        importance = torch.rand(12, generator=generator, dtype=torch.float64)
        importance[torch.rand(12, generator=generator) < 0.4] = 0
        num_new = max(1, int((importance > 0).sum()))
        pairs = assign(torch.ones(12, num_new, dtype=torch.float64), importance)
        units = map_units(pairs, importance, torch.rand(9, 12), generator, num_new=num_new)
        assert units.importance_kept <= 1.0


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
def test_behind_units_without_an_activation_a_layer_more_is_exact(activation: str) -> None:
    items = features(9)
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((5, D), (3, 5))]
    chain = Chain([Stage("first", linear_layer(weights[0], None)), Stage("output", linear_layer(weights[1], None))])
    with torch.no_grad():
        longer = lengthened(chain, activation)
        assert len(longer.stages) == 3
        assert torch.allclose(longer(items), chain(items), atol=1e-4)
