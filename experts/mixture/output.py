"""The mixture's output from experts at hand: each called once, for the rows that want it; and the dense reference.

    y(x) = sum_i g_i(x) E_i(x)                                                       (proposal, section 2.1)

Where few gates of a row are above 0, grouping saves the calls whose answer would weigh nothing; the sum is the same.

Legend: B batch, D feature, C class, E expert.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from experts.architectures.base import probabilities
from experts.combine import Combined, ExpertResponse, combine
from experts.errors import ShapeMismatch, UnknownClasses
from experts.local import LocalExpert
from experts.router.gating import Gates

__all__ = ["dense_output", "mixture_output"]


def mixture_output(
    experts: Mapping[str, LocalExpert],
    gates: Gates,
    h_BD: Tensor,
    all_classes: Sequence[str],
    *,
    renormalise: bool = False,
) -> Combined:
    """Ask each gated expert once, for its rows together, and sum up.

    Args:
        experts: By uid. One that is gated but not here is as silent: its gate weight is reported as missing.
        gates: Gate weights of the batch.
        h_BD: Trunk features, as many rows as the gates.
        all_classes: As for `combine`.
        renormalise: As for `combine`.

    Raises:
        RowsUnanswered: If none of a row's experts is here, or none was gated.
        UnknownClasses: If an expert answers for a class outside ``all_classes``.
        ShapeMismatch: If the features do not fit the gates or an expert.
    """
    _require_rows(gates, h_BD)
    responses: dict[str, ExpertResponse] = {}
    for uid in gates.uids:
        rows_R = gates.rows_of(uid)
        if uid in experts and len(rows_R):
            expert = experts[uid]
            responses[uid] = ExpertResponse(expert.classes, rows_R, probabilities(expert.module, h_BD[rows_R]))
    return combine(gates, responses, all_classes, renormalise)


def dense_output(experts: Mapping[str, LocalExpert], gates: Gates, h_BD: Tensor, all_classes: Sequence[str]) -> Tensor:
    """The same sum without grouping, y float32 ``(B, C)``: every expert answers every row, whatever its gate.

    Args:
        experts: By uid, those of the gates and possibly more.
        gates: Gate weights of the batch.
        h_BD: Trunk features, as many rows as the gates.
        all_classes: Columns of the output, distinct.

    Raises:
        UnknownClasses: If an expert answers for a class outside ``all_classes``.
        ShapeMismatch: If the features do not fit the gates or an expert.
    """
    _require_rows(gates, h_BD)
    column_of = {name: column for column, name in enumerate(all_classes)}
    outputs_BC = torch.zeros(len(h_BD), len(column_of), device=h_BD.device)
    for expert_column, uid in enumerate(gates.uids):
        expert = experts[uid]
        if foreign := set(expert.classes) - column_of.keys():
            raise UnknownClasses(foreign, known=column_of)
        columns = [column_of[name] for name in expert.classes]
        weights_B1 = gates.weights_BE[:, expert_column, None].float()
        outputs_BC[:, columns] += weights_B1 * probabilities(expert.module, h_BD).float()
    return outputs_BC


def _require_rows(gates: Gates, h_BD: Tensor) -> None:
    if h_BD.ndim != 2 or len(h_BD) != len(gates.weights_BE):
        raise ShapeMismatch("features", expected=(len(gates.weights_BE), "D"), got=tuple(h_BD.shape))
