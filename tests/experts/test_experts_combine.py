"""Combining answers: the dense sum, missing mass, and rows that nobody answered."""

import equations
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experts.combine import ExpertResponse, combine
from experts.errors import RowsUnanswered, ShapeMismatch, UnknownClasses
from experts.router.gating import Gates, gate

CLASSES = ("a", "b", "c", "d")
EXPERTS = {"p": ("a", "b"), "q": ("c", "b"), "r": ("d",)}


def answer(uid: str, rows: torch.Tensor, seed: int = 0) -> ExpertResponse:
    generator = torch.Generator().manual_seed(seed + ord(uid))
    logits = torch.randn(len(rows), len(EXPERTS[uid]), generator=generator)
    return ExpertResponse(EXPERTS[uid], rows, torch.softmax(logits, dim=1))


def random_gates(seed: int, top_k: int) -> Gates:
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed))
    return gate(scores, CLASSES, EXPERTS, top_k=top_k)


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    top_k=st.integers(1, 3),
    silent=st.sets(st.sampled_from("pqr")),
    renormalise=st.booleans(),
)
def test_the_output_is_the_dense_sum_over_those_that_answered(
    seed: int, top_k: int, silent: set[str], renormalise: bool
) -> None:
    gates = random_gates(seed, top_k)
    responses = {uid: answer(uid, gates.rows_of(uid), seed) for uid in EXPERTS if uid not in silent}
    answers: list[dict[str, dict[str, float]]] = [{} for _ in range(7)]
    for uid, response in responses.items():
        for row, values in zip(response.rows.tolist(), response.probabilities.tolist(), strict=True):
            answers[row][uid] = dict(zip(response.classes, values, strict=True))
    assume(all(answers))
    combined = combine(gates, responses, CLASSES, renormalise)
    for row, weights in enumerate(gates.weights_BE.tolist()):
        named = dict(zip(gates.uids, weights, strict=True))
        outputs, missing = equations.mixture(named, answers[row], CLASSES, renormalise=renormalise)
        np.testing.assert_allclose(combined.outputs_BC[row], outputs, atol=1e-6)
        assert float(combined.missing_mass_B[row]) == pytest.approx(missing, abs=1e-6)


def test_the_order_of_arrival_changes_no_bit() -> None:
    uids = tuple("pqrstu")
    generator = torch.Generator().manual_seed(1)
    gates = Gates(uids, torch.rand(50, 6, generator=generator) / 6)
    responses = {uid: ExpertResponse(("a",), torch.arange(50), torch.rand(50, 1, generator=generator)) for uid in uids}
    forwards = combine(gates, responses, CLASSES, True)
    backwards = combine(gates, dict(reversed(responses.items())), CLASSES, True)
    assert torch.equal(forwards.outputs_BC, backwards.outputs_BC)


def test_nothing_is_missing_when_all_answer_and_a_silent_expert_is_missed_by_its_gate() -> None:
    gates = Gates(("p", "r"), torch.tensor([[0.75, 0.25], [0.5, 0.125]]))
    rows = torch.arange(2)
    complete = combine(gates, {"p": answer("p", rows), "r": answer("r", rows)}, CLASSES, False)
    assert complete.missing_mass_B.tolist() == [0.0, 0.0]
    partial = combine(gates, {"p": answer("p", rows)}, CLASSES, False)
    assert partial.missing_mass_B.tolist() == [0.25, 0.125]
    torch.testing.assert_close(partial.outputs_BC.sum(dim=1), torch.tensor([0.75, 0.5]))
    whole = combine(gates, {"p": answer("p", rows)}, CLASSES, True)
    torch.testing.assert_close(whole.outputs_BC.sum(dim=1), torch.ones(2))
    assert whole.missing_mass_B.tolist() == [0.25, 0.125]


def test_renormalising_applies_to_complete_rows_too() -> None:
    gates = Gates(("p",), torch.tensor([[0.5]]))
    combined = combine(gates, {"p": answer("p", torch.tensor([0]))}, CLASSES, True)
    assert float(combined.outputs_BC.sum()) == pytest.approx(1.0)


def test_rows_without_an_answer_are_named_with_their_silent_experts() -> None:
    gates = Gates(("p", "q", "r"), torch.tensor([[1.0, 0, 0], [0, 0.75, 0.25], [0, 1.0, 0]]))
    with pytest.raises(RowsUnanswered) as caught:
        combine(gates, {"p": answer("p", torch.arange(3))}, CLASSES, False)
    assert caught.value.rows == (1, 2)
    assert caught.value.experts == ("q", "r")


@pytest.mark.parametrize("renormalise", [False, True])
def test_rows_that_no_expert_was_gated_for_are_unanswered(renormalise: bool) -> None:
    with pytest.raises(RowsUnanswered) as caught:
        combine(Gates((), torch.zeros(2, 0)), {}, CLASSES, renormalise)
    assert caught.value.rows == (0, 1)
    assert caught.value.experts == ()


def test_answers_about_unknown_classes_or_of_another_shape_are_refused() -> None:
    gates = Gates(("p",), torch.ones(2, 1))
    rows = torch.arange(2)
    with pytest.raises(UnknownClasses):
        combine(gates, {"p": ExpertResponse(("z",), rows, torch.ones(2, 1))}, CLASSES, False)
    with pytest.raises(ShapeMismatch):
        combine(gates, {"p": ExpertResponse(("a",), rows, torch.ones(2, 2))}, CLASSES, False)


def test_an_empty_batch_combines_to_nothing() -> None:
    combined = combine(Gates(("p",), torch.zeros(0, 1)), {}, CLASSES, True)
    assert combined.outputs_BC.shape == (0, 4)
