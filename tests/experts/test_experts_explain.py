"""Explanations: every number follows from the one before, and all are those that were used."""

import json
import math

import equations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import SettingOutOfRange, ShapeMismatch
from experts.router.explain import explain_logits, explain_ridge, explain_scores
from experts.router.gating import gate
from experts.router.ridge import RidgeRouter

CLASSES = ("a", "b", "c", "d")
class_sets = st.lists(st.sampled_from([*CLASSES, "unknown"]), min_size=1, max_size=4, unique=True)
mixtures = st.dictionaries(st.sampled_from(["e1", "e2", "e3"]), class_sets, min_size=1)


def router(seed: int, num_features: int = 6) -> RidgeRouter:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(num_features + 1, len(CLASSES), generator=generator, dtype=torch.float64)
    return RidgeRouter(CLASSES, weights, 2.0)


def features(seed: int, rows: int = 3, num_features: int = 6) -> torch.Tensor:
    return torch.randn(rows, num_features, generator=torch.Generator().manual_seed(seed + 1))


@settings(deadline=None)
@given(experts=mixtures, top_k=st.integers(1, 4), tau=st.sampled_from([0.5, 2.0]), seed=st.integers(0, 999))
def test_the_gates_told_are_those_used_and_each_logit_is_made_of_its_classes(
    experts: dict[str, list[str]], top_k: int, tau: float, seed: int
) -> None:
    solved, h = router(seed), features(seed)
    used = gate(solved.scores(h), CLASSES, experts, tau=tau, top_k=top_k)
    for one in explain_ridge(solved, h, experts, tau=tau, top_k=top_k):
        told = {expert.uid: expert for expert in one.experts}
        assert [told[uid].gate for uid in used.uids] == used.weights_BE[one.row].tolist()
        scores = dict(zip(CLASSES, solved.scores(h)[one.row].tolist(), strict=True))
        logits = equations.gate_logits(scores, experts)
        soft = equations.gate_weights(scores, experts, tau=tau, top_k=len(experts))
        for uid, expert in told.items():
            assert expert.soft_gate == pytest.approx(soft[uid], abs=1e-5)
            if uid not in logits:
                assert expert.logit is None
                assert expert.carried_by == ()
                continue
            assert expert.logit == pytest.approx(logits[uid], abs=1e-5)
            assert {carrier.name for carrier in expert.carried_by} == set(experts[uid]) & set(CLASSES)
            assert sum(carrier.share for carrier in expert.carried_by) == pytest.approx(1.0, abs=1e-5)
            for carrier in expert.carried_by:
                assert carrier.share == pytest.approx(math.exp(scores[carrier.name] - logits[uid]), abs=1e-5)
        ranked = sorted(logits.values(), reverse=True)
        if len(ranked) > 1:
            assert one.margin == pytest.approx(ranked[0] - ranked[1], abs=1e-5)
        else:
            assert one.margin is None


@settings(deadline=None)
@given(most=st.integers(1, 9), num_features=st.integers(1, 6), seed=st.integers(0, 999))
def test_contributions_sum_to_the_score(most: int, num_features: int, seed: int) -> None:
    solved, h = router(seed, num_features), features(seed, num_features=num_features)
    for one in explain_ridge(solved, h, {"p": CLASSES}, most=most):
        assert [part.name for part in one.parts] == [top.name for top in one.top_classes]
        for part in one.parts:
            column = CLASSES.index(part.name)
            weights = solved.weights.tolist()
            score = equations.class_scores(weights, h[one.row].tolist(), solved.kappa)[column]
            total = part.bias + sum(value for _, value in part.features) + part.rest
            assert total == pytest.approx(part.score, abs=1e-12)
            assert part.score == pytest.approx(score, abs=1e-9)
            assert len(part.features) == min(most, num_features)
            sizes = [abs(value) for _, value in part.features]
            assert sizes == sorted(sizes, reverse=True)
            for number, value in part.features:
                assert value == pytest.approx(solved.kappa * h[one.row, number].item() * weights[number][column])
        best = [top.score for top in one.top_classes]
        assert best == sorted(solved.scores(h)[one.row].tolist(), reverse=True)[:most]


def test_experts_stand_in_the_order_in_which_the_mask_takes_them() -> None:
    (one,) = explain_logits(torch.tensor([[1.0, 2.0, 2.0, -torch.inf]]), "pqrs", top_k=1)
    assert [expert.uid for expert in one.experts] == ["q", "r", "p", "s"]
    assert [expert.gate > 0 for expert in one.experts] == [True, False, False, False]
    assert one.margin == 0.0
    assert one.experts[-1].logit is None


def test_it_can_be_printed_and_be_sent() -> None:
    experts = {"clothes": ("a", "b"), "shoes": ("c",), "foreign": ("z",)}
    explained = explain_ridge(router(0), features(0), experts, most=2)
    for one in explained:
        assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["row"] == one.row
        text = "\n".join(one.lines())
        for word in (
            f"row {one.row}",
            "expert clothes: logit",
            "carried by",
            "not asked",
            "margin",
            "bias",
            "the rest",
        ):
            assert word in text
        assert "expert foreign: unknown to the router" in text
    (plain,) = explain_scores(torch.zeros(1, 1), ("a",), {})
    assert plain.lines() == ("row 0", "  classes: a 0.00")
    assert plain.margin is None


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(SettingOutOfRange):
        explain_scores(torch.zeros(1, 1), ("a",), {}, most=0)
    with pytest.raises(ShapeMismatch):
        explain_scores(torch.zeros(1, 2), ("a",), {})
