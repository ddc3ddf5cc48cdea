"""Gates: softmax, then mask; deterministic ties; classes and experts that nobody knows."""

from itertools import pairwise

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import SettingOutOfRange, ShapeMismatch
from experts.router.gating import gate

CLASSES = ("a", "b", "c", "d", "e")
class_sets = st.lists(st.sampled_from([*CLASSES, "unknown"]), min_size=1, max_size=4, unique=True)
mixtures = st.dictionaries(st.sampled_from(["e1", "e2", "e3", "e4"]), class_sets, min_size=1)


@settings(deadline=None)
@given(experts=mixtures, top_k=st.integers(1, 5), tau=st.sampled_from([0.5, 1.0, 3.0]), seed=st.integers(0, 999))
def test_gates_follow_the_equation(experts: dict[str, list[str]], top_k: int, tau: float, seed: int) -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 4
    gates = gate(scores, CLASSES, experts, tau=tau, top_k=top_k)
    assert gates.uids == tuple(sorted(experts))
    for row, got in zip(scores.tolist(), gates.weights_BE.tolist(), strict=True):
        named = dict(zip(CLASSES, row, strict=True))
        logits = sorted(equations.gate_logits(named, experts).values(), reverse=True)
        if any(0 < higher - lower < 1e-5 for higher, lower in pairwise(logits)):
            continue  # which of the two is the higher one, float32 cannot tell; exact ties are told by uid
        wanted = equations.gate_weights(named, experts, tau=tau, top_k=top_k)
        np.testing.assert_allclose(got, [wanted[uid] for uid in gates.uids], rtol=1e-4, atol=1e-7)


def test_the_mask_comes_after_the_softmax_and_nothing_is_renormalised() -> None:
    gates = gate(torch.zeros(1, 4), "abcd", {"p": "ab", "q": "c", "r": "d"}, top_k=1)
    torch.testing.assert_close(gates.weights_BE, torch.tensor([[0.5, 0.0, 0.0]]))


def test_equal_logits_are_taken_in_uid_order() -> None:
    experts = dict.fromkeys(reversed("pqrstuvwxyz"), ("a",))
    gates = gate(torch.zeros(3, 1), ("a",), experts, top_k=2)
    assert [gates.uids[i] for i in gates.weights_BE[0].nonzero().flatten()] == ["p", "q"]


def test_rows_of_an_expert_are_those_that_gate_it() -> None:
    scores = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    gates = gate(scores, "ab", {"first": "a", "second": "b"})
    assert gates.rows_of("first").tolist() == [0, 2]
    assert gates.rows_of("second").tolist() == [1]


def test_an_expert_of_unknown_classes_is_never_asked() -> None:
    gates = gate(torch.zeros(2, 1), ("a",), {"known": ("a",), "unknown": ("z",)}, top_k=2)
    assert gates.weights_BE.tolist() == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("experts", [{}, {"unknown": ("z",)}])
def test_without_a_known_expert_all_gates_are_zero(experts: dict[str, tuple[str, ...]]) -> None:
    gates = gate(torch.zeros(2, 1), ("a",), experts)
    assert gates.weights_BE.shape == (2, len(experts))
    assert not gates.weights_BE.any()


def test_a_class_no_expert_covers_moves_no_gate() -> None:
    experts = {"p": ("a",), "q": ("b",)}
    low, high = torch.tensor([[1.0, 2.0, -50.0]]), torch.tensor([[1.0, 2.0, 50.0]])
    assert torch.equal(gate(low, "abc", experts).weights_BE, gate(high, "abc", experts).weights_BE)


def test_far_apart_and_huge_scores_stay_finite() -> None:
    gates = gate(torch.tensor([[1e30, -1e30], [1e4, 1e4]]), "ab", {"p": "a", "q": "b"}, top_k=2)
    torch.testing.assert_close(gates.weights_BE, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        gate(torch.zeros(2, 3), "ab", {"p": "a"})
    with pytest.raises(SettingOutOfRange):
        gate(torch.zeros(2, 1), "a", {"p": "a"}, tau=0.0)
    with pytest.raises(SettingOutOfRange):
        gate(torch.zeros(2, 1), "a", {"p": "a"}, top_k=0)
