"""Gates: softmax, then mask; deterministic ties; classes and experts that nobody knows."""

from itertools import pairwise

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import SettingOutOfRange, ShapeMismatch
from experts.router.gating import Router, gate, gate_logits
from experts.router.mlp import MlpRouter
from experts.router.ridge import RidgeRouter

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


# Gates from logits of experts


@settings(deadline=None)
@given(num_experts=st.integers(1, 6), top_k=st.integers(1, 8), tau=st.sampled_from([0.5, 1.0, 3.0]), data=st.data())
def test_gates_of_logits_follow_the_equation(num_experts: int, top_k: int, tau: float, data: st.DataObject) -> None:
    # Of few values, so that ties and experts that are ruled out are common.
    logit = st.sampled_from([-torch.inf, -2.0, 0.0, 0.5, 3.0])
    rows = data.draw(st.lists(st.lists(logit, min_size=num_experts, max_size=num_experts), min_size=1, max_size=5))
    uids = tuple(f"e{number}" for number in range(num_experts))
    gates = gate_logits(torch.tensor(rows), uids, tau=tau, top_k=top_k)
    for row, got in zip(rows, gates.weights_BE.tolist(), strict=True):
        scores = {uid: value for uid, value in zip(uids, row, strict=True) if value > -torch.inf}
        wanted = equations.gate_weights(scores, {uid: [uid] for uid in uids}, tau=tau, top_k=top_k)
        np.testing.assert_allclose(got, [wanted[uid] for uid in uids], rtol=1e-5)


@settings(deadline=None)
@given(experts=mixtures, top_k=st.integers(1, 5), seed=st.integers(0, 999))
def test_gates_of_scores_are_those_of_their_logits_to_the_bit(
    experts: dict[str, list[str]], top_k: int, seed: int
) -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 4
    gates = gate(scores, CLASSES, experts, top_k=top_k)
    known = {uid: [CLASSES.index(name) for name in set(names) & set(CLASSES)] for uid, names in experts.items()}
    logits = [
        torch.logsumexp(scores[:, sorted(known[uid])], dim=1) if known[uid] else torch.full((6,), -torch.inf)
        for uid in gates.uids
    ]
    assert torch.equal(gate_logits(torch.stack(logits, dim=1), gates.uids, top_k=top_k).weights_BE, gates.weights_BE)


def test_with_k_of_all_experts_or_more_the_gates_are_the_softmax() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for top_k in (4, 9):
        assert torch.equal(gate_logits(logits, "pqrs", top_k=top_k).weights_BE, torch.softmax(logits, dim=1))


def test_equal_logits_of_experts_are_taken_in_uid_order() -> None:
    gates = gate_logits(torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), "pqrs", top_k=2)
    assert (gates.weights_BE > 0).tolist() == [[False, True, True, False], [True, True, False, False]]


def test_an_expert_ruled_out_has_no_gate_and_where_all_are_nobody_is_asked() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf], [-torch.inf] * 3])
    gates = gate_logits(logits, "pqr", top_k=3)
    assert gates.weights_BE.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_logits_without_an_expert_or_a_row_have_no_gates() -> None:
    assert gate_logits(torch.zeros(2, 0), (), top_k=2).weights_BE.shape == (2, 0)
    assert gate_logits(torch.zeros(0, 2), "pq").weights_BE.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_towards_tau_0_the_gate_is_that_of_the_first_alone(dtype: torch.dtype) -> None:
    logits = torch.tensor([[100.0, 99.0], [-torch.inf, 1.0], [-3.0, -3.0]], dtype=dtype)
    for tau in (1e-4, 1e-37):
        gates = gate_logits(logits, "pq", tau=tau, top_k=2)
        assert gates.weights_BE.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


def test_logits_and_uids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        gate_logits(torch.zeros(2, 3), "pq")
    for uids in ("qp", "pp"):
        with pytest.raises(SettingOutOfRange):
            gate_logits(torch.zeros(2, 2), uids)
    for tau in (0.0, torch.inf, torch.nan):
        with pytest.raises(SettingOutOfRange):
            gate_logits(torch.zeros(2, 2), "pq", tau=tau)
    with pytest.raises(SettingOutOfRange):
        gate_logits(torch.zeros(2, 2), "pq", top_k=0)


def test_both_routers_have_one_interface() -> None:
    experts = {"p": ("a",), "q": ("b", "c")}
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    routers: list[Router] = [RidgeRouter(("a", "b", "c"), weights, 10.0), MlpRouter(experts, feature_dim=3, seed="s")]
    for router in routers:
        gates = router.gates(h, experts, tau=2.0, top_k=1)
        assert gates.uids == ("p", "q")
        assert (gates.weights_BE > 0).sum(dim=1).tolist() == [1] * 5
    scored = gate(routers[0].scores(h), ("a", "b", "c"), experts, tau=2.0)  # type: ignore[attr-defined]
    assert torch.equal(routers[0].gates(h, experts, tau=2.0).weights_BE, scored.weights_BE)
