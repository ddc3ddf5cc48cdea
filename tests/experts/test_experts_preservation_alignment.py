"""Replicas that began differently, in one order of units."""

import copy

import pytest
import torch
from old_experts import features, form, learned
from torch import nn

from experts.checkpoint import flat_parameters, load_flat
from experts.errors import NothingToLearnFrom, ShapeMismatch
from experts.preservation.alignment import Alignment, align


def aligned(kind: str, module: nn.Module, reference: nn.Module, seed: int = 0, **settings: object) -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    return align(form(kind, **settings), module, reference, features(), generator=generator)


SHUFFLED = {
    "mlp": [("hidden", "output", None)],
    "conv": [("conv", "output", None)],
    "deep": [("hidden.0", "hidden.1", "norm.0"), ("hidden.1", "output", "norm.1")],
}


def shuffled(kind: str, module: nn.Module, seed: int) -> nn.Module:
    """The same function with its hidden units in another order."""
    generator, module = torch.Generator().manual_seed(seed), copy.deepcopy(module)
    with torch.no_grad():
        for layer, after, norm in SHUFFLED[kind]:
            order = torch.randperm(len(module.get_parameter(f"{layer}.weight")), generator=generator)
            for name in (layer, norm) if norm else (layer,):
                for part in ("weight", "bias"):
                    parameter = module.get_parameter(f"{name}.{part}")
                    parameter.copy_(parameter[order])
            columns = module.get_parameter(f"{after}.weight")
            columns.copy_(columns[:, order])
    return module


@pytest.mark.parametrize("kind", SHUFFLED)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_replica_in_another_order_comes_back_bit_for_bit(kind: str, seed: int) -> None:
    reference = learned(form(kind))
    other = shuffled(kind, reference, seed)
    assert not torch.equal(flat_parameters(other), flat_parameters(reference))
    result = aligned(kind, other, reference)
    assert torch.equal(flat_parameters(result.module), flat_parameters(reference))
    assert all(alike == pytest.approx(1.0) for alike in result.correlations.values())
    assert result.correlations.keys() == {layer for layer, _, _ in SHUFFLED[kind]}


@pytest.mark.parametrize("kind", ["linear", "mlp", "adapter", "conv", "deep"])
def test_what_a_replica_computes_stays_the_same(kind: str) -> None:
    module, reference = learned(form(kind), seed=4), learned(form(kind), seed=5)
    before, items = flat_parameters(module), features(30, seed=8)
    result = aligned(kind, module, reference)
    with torch.no_grad():
        assert torch.allclose(result.module(items), module(items), atol=1e-4)
    assert torch.equal(flat_parameters(module), before)


def test_a_mean_of_aligned_replicas_computes_what_both_do() -> None:
    reference = learned(form("mlp"))
    noisy = copy.deepcopy(shuffled("mlp", reference, 1))
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    items = features(200, seed=8)

    def error(module: nn.Module) -> float:
        mean = copy.deepcopy(reference)
        load_flat(mean, (flat_parameters(module) + flat_parameters(reference)) / 2)
        with torch.no_grad():
            return float((mean(items) - reference(items)).square().mean() / reference(items).var())

    assert error(aligned("mlp", noisy, reference).module) < 0.01
    assert error(noisy) > 0.1


def test_it_says_how_alike_they_are_and_what_moved() -> None:
    reference, stranger = learned(form("mlp"), seed=5), learned(form("mlp"), seed=4)
    twin, other = aligned("mlp", reference, reference), aligned("mlp", stranger, reference)
    assert twin.moved == {"hidden": 0}
    assert other.correlations["hidden"] < 0.9 < twin.correlations["hidden"]


def test_items_that_say_nothing_are_refused() -> None:
    module, generator = learned(form("mlp")), torch.Generator()
    with pytest.raises(NothingToLearnFrom):
        align(form("mlp"), module, module, features(0), generator=generator)
    with pytest.raises(ShapeMismatch):
        align(form("mlp"), module, module, torch.zeros(3, 4), generator=generator)
