"""The mixture's output from the answers of those experts that were asked and did answer.

    y(x) = sum_i g_i(x) E_i(x),  with E_i zero outside its own classes C_i

so y is a sub-probability: its sum is at most the gate mass that answered. What did not answer is reported as
missing mass, and a row without any answer is an error that names the silent experts, never a zero or a NaN.

Legend: B batch, C class, E expert, R rows of one answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.errors import RowsUnanswered, ShapeMismatch, UnknownClasses
from experts.router.gating import Gates

__all__ = ["Combined", "ExpertResponse", "combine"]


@dataclass(frozen=True, eq=False)
class ExpertResponse:
    """One expert's answer for the rows it was asked."""

    classes: tuple[str, ...]
    """The expert's classes: the columns of ``probabilities``."""

    rows: Tensor
    """Which rows of the batch, int64 ``(R,)``, distinct."""

    probabilities: Tensor
    """E_i, ``(R, C_i)``, each row a distribution over the expert's own classes."""


@dataclass(frozen=True, eq=False)
class Combined:
    """The mixture's output for a batch."""

    classes: tuple[str, ...]
    """Columns of ``outputs_BC``."""

    outputs_BC: Tensor
    """y, float32 ``(B, C)``, at least 0."""

    missing_mass_B: Tensor
    """Gate weight of the experts that did not answer a row, float32 ``(B,)``; 0 where all did."""


def combine(
    gates: Gates,
    responses: Mapping[str, ExpertResponse],
    all_classes: Sequence[str],
    renormalise: bool = False,
) -> Combined:
    """Sum the answers, each weighted by its gate.

    Args:
        gates: Gate weights of the batch.
        responses: Answers by expert uid; an expert may be absent, or have answered only some of its rows.
            Answers that the gates did not ask for weigh nothing.
        all_classes: Columns of the output, distinct; every class an answer is about must be among them.
        renormalise: Divide each row by the gate mass that answered it: by responders, so that a silent expert
            does not pull the output towards zero. Then it applies to every row, complete or not.

    Raises:
        RowsUnanswered: If none of a row's experts answered it.
        UnknownClasses: If an answer is about a class outside ``all_classes``.
        ShapeMismatch: If the probabilities of an answer are not ``(R, C_i)``.
    """
    classes = tuple(all_classes)
    column_of = {name: column for column, name in enumerate(classes)}
    weights_BE = gates.weights_BE.float()
    answered_BE = torch.zeros_like(weights_BE, dtype=torch.bool)
    outputs_BC = weights_BE.new_zeros(weights_BE.shape[0], len(classes))
    # In the gates' order, not that of arrival: a float32 sum depends on it.
    for expert, uid in enumerate(gates.uids):
        response = responses.get(uid)
        if response is None:
            continue
        _require_well_formed(uid, response, column_of)
        columns = torch.tensor([column_of[name] for name in response.classes])
        weighted = weights_BE[response.rows, expert, None] * response.probabilities.float()
        outputs_BC[response.rows[:, None], columns] += weighted
        answered_BE[response.rows, expert] = True

    answered_mass_B = torch.where(answered_BE, weights_BE, 0.0).sum(dim=1)
    _require_answers(gates, answered_mass_B)
    if renormalise:
        outputs_BC /= answered_mass_B[:, None]
    return Combined(classes, outputs_BC, torch.where(answered_BE, 0.0, weights_BE).sum(dim=1))


def _require_well_formed(uid: str, response: ExpertResponse, column_of: Mapping[str, int]) -> None:
    unknown = set(response.classes) - column_of.keys()
    if unknown:
        raise UnknownClasses(unknown, known=column_of)
    expected = (len(response.rows), len(response.classes))
    if tuple(response.probabilities.shape) != expected:
        raise ShapeMismatch(f"answer of expert {uid}", expected=expected, got=tuple(response.probabilities.shape))


def _require_answers(gates: Gates, answered_mass_B: Tensor) -> None:
    silent_rows = (answered_mass_B == 0).nonzero().flatten()
    if len(silent_rows):
        asked_E = (gates.weights_BE[silent_rows] > 0).any(dim=0)
        silent = [uid for uid, asked in zip(gates.uids, asked_E.tolist(), strict=True) if asked]
        raise RowsUnanswered(silent_rows.tolist(), experts=silent)
