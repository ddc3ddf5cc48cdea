"""An expert is added, removed or replaced, and every other expert's output stays the same bits.

Legend: B batch, C class, E expert, R rows of one expert.
"""

from collections.abc import Mapping

import pytest
import torch
from architecture_forms import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.architectures.base import probabilities
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import weights_to_bytes
from experts.combine import Combined, ExpertResponse, combine
from experts.router.gating import Gates, gate

KINDS = sorted(SMALL)
CLASSES = ("a", "b", "c", "d", "e", "f")
ROWS = 9

kinds = st.sampled_from(KINDS)


class Mixture:
    """Experts by uid, each asked for the rows that the gates give it, as the mesh asks them."""

    def __init__(self) -> None:
        self.classes: dict[str, tuple[str, ...]] = {}
        self.modules: dict[str, nn.Module] = {}

    def put(self, uid: str, kind: str, classes: tuple[str, ...], seed: str = "seed") -> None:
        config = SMALL[kind].to_config() | {"num_classes": len(classes)}
        self.modules[uid] = architecture_from_config(config).build(f"{seed}/{uid}")
        self.classes[uid] = classes

    def remove(self, uid: str) -> None:
        del self.modules[uid], self.classes[uid]

    def responses(self, gates: Gates, features_BD: torch.Tensor) -> dict[str, ExpertResponse]:
        found = {}
        for uid, module in self.modules.items():
            rows_R = gates.rows_of(uid)
            found[uid] = ExpertResponse(self.classes[uid], rows_R, probabilities(module, features_BD[rows_R]))
        return found

    def output(self, weights: Mapping[str, torch.Tensor], features_BD: torch.Tensor) -> Combined:
        """y for fixed gates: those of the experts that are there."""
        gates = fixed_gates({uid: weights[uid] for uid in self.modules})
        return combine(gates, self.responses(gates, features_BD), CLASSES)


def fixed_gates(weights: Mapping[str, torch.Tensor]) -> Gates:
    uids = tuple(sorted(weights))
    return Gates(uids, torch.stack([weights[uid] for uid in uids], dim=1))


def random_case(seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Features, and gate weights of four experts; each is asked for some rows only, p for all."""
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.randn(ROWS, 12, generator=generator)
    weights_BE = torch.rand(ROWS, 4, generator=generator)
    weights_BE[:, 1:] *= torch.rand(ROWS, 3, generator=generator) < 0.7
    return features_BD, dict(zip("pqrs", (weights_BE / 4).unbind(dim=1), strict=True))


def columns(*names: str) -> list[int]:
    return [CLASSES.index(name) for name in names]


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    # As integers: to a float, 0 is -0.
    return torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32))


@settings(deadline=None, max_examples=25)  # a shared machine is slow at times
@given(st.tuples(kinds, kinds, kinds, kinds), st.integers(0, 999))
def test_adding_replacing_and_removing_an_expert_changes_only_its_own_classes(
    chosen: tuple[str, str, str, str], seed: int
) -> None:
    features_BD, weights = random_case(seed)
    mixture = Mixture()
    mixture.put("p", chosen[0], ("a", "b"))
    mixture.put("q", chosen[1], ("c",))
    mixture.put("s", chosen[2], ("f",))
    others = columns("a", "b", "c", "f")
    before_BC = mixture.output(weights, features_BD).outputs_BC

    mixture.put("r", chosen[3], ("d", "e"))  # between the others in the order of the sum
    added_BC = mixture.output(weights, features_BD).outputs_BC
    assert same_bits(added_BC[:, others], before_BC[:, others])

    for kind in KINDS:
        mixture.put("r", kind, ("d", "e"), seed=f"replaced by {kind}")
        replaced_BC = mixture.output(weights, features_BD).outputs_BC
        assert same_bits(replaced_BC[:, others], before_BC[:, others])
        if weights["r"].any():
            assert not torch.equal(replaced_BC, added_BC)

    mixture.remove("r")
    assert same_bits(mixture.output(weights, features_BD).outputs_BC, before_BC)


@settings(deadline=None, max_examples=25)
@given(st.tuples(kinds, kinds, kinds), st.integers(0, 999))
def test_an_expert_of_the_same_classes_changes_no_other_answer(chosen: tuple[str, str, str], seed: int) -> None:
    # Two experts share the class b: their sum changes when one goes, what the other says does not.
    features_BD, weights = random_case(seed)
    mixture = Mixture()
    mixture.put("p", chosen[0], ("a", "b"))
    alone = mixture.responses(fixed_gates({"p": weights["p"]}), features_BD)["p"]
    mixture.put("q", chosen[1], ("b", "c"))
    mixture.put("r", chosen[2], ("d",))
    gates = fixed_gates({uid: weights[uid] for uid in "pqr"})
    together = mixture.responses(gates, features_BD)["p"]
    assert torch.equal(together.rows, alone.rows)
    assert same_bits(together.probabilities, alone.probabilities)
    combined = combine(gates, mixture.responses(gates, features_BD), CLASSES)
    only = columns("a", "d")
    without_q = combine(
        gates, {uid: r for uid, r in mixture.responses(gates, features_BD).items() if uid != "q"}, CLASSES
    )
    assert same_bits(combined.outputs_BC[:, only], without_q.outputs_BC[:, only])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gates_of_all_stay_when_an_expert_is_replaced_by_one_of_another_form(kind: str) -> None:
    # Gates depend on classes, never on what answers for them.
    features_BD, _ = random_case(3)
    scores_BC = torch.randn(ROWS, len(CLASSES), generator=torch.Generator().manual_seed(4))
    mixture = Mixture()
    mixture.put("p", "mlp", ("a", "b", "c"))
    mixture.put("q", "conv", ("d", "e", "f"))
    gates = gate(scores_BC, CLASSES, mixture.classes, top_k=2)
    before = combine(gates, mixture.responses(gates, features_BD), CLASSES)
    mixture.put("q", kind, ("d", "e", "f"), seed="another")
    again = gate(scores_BC, CLASSES, mixture.classes, top_k=2)
    after = combine(again, mixture.responses(again, features_BD), CLASSES)
    assert same_bits(again.weights_BE, gates.weights_BE)
    assert same_bits(after.outputs_BC[:, :3], before.outputs_BC[:, :3])
    assert not torch.equal(after.outputs_BC[:, 3:], before.outputs_BC[:, 3:])


def test_an_expert_of_classes_that_the_router_does_not_know_yet_changes_no_gate() -> None:
    scores_BC = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(5))
    known = {"p": ("a", "b"), "s": ("c",)}
    before = gate(scores_BC, ("a", "b", "c"), known, top_k=3)
    after = gate(scores_BC, ("a", "b", "c"), known | {"r": ("d",)}, top_k=3)
    kept = [after.uids.index(uid) for uid in before.uids]
    assert same_bits(after.weights_BE[:, kept], before.weights_BE)
    assert not after.weights_BE[:, after.uids.index("r")].any()


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_building_training_and_dropping_an_expert_touches_no_other_module(kind: str, other: str) -> None:
    features_BD, _ = random_case(6)
    module = SMALL[kind].build("p")
    weights, answer = weights_to_bytes(module), probabilities(module, features_BD)

    added = SMALL[other].build("r")
    added(features_BD).square().sum().backward()
    with torch.no_grad():
        for parameter in added.parameters():
            parameter.fill_(float("nan"))
    del added
    replacement = SMALL[other].build("p")  # even under the same uid: nothing is shared or remembered
    with torch.no_grad():
        for parameter in replacement.parameters():
            parameter.zero_()

    assert weights_to_bytes(module) == weights
    assert same_bits(probabilities(module, features_BD), answer)
    assert all(parameter.grad is None for parameter in module.parameters())
    # And whoever builds it after the other one holds the same replica.
    assert weights_to_bytes(SMALL[kind].build("p")) == weights
