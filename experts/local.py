"""An expert whose module is at hand: what it scores, called without a network in between.

    E_i(x) = softmax(module(h)) over the expert's own classes, zero for every other    (proposal, section 2.1)

Legend: B batch, D feature, C class, E expert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.errors import UnknownClasses

__all__ = ["LocalExpert", "label_log_likelihoods"]


@dataclass(frozen=True, eq=False, slots=True)
class LocalExpert:
    """A module and the names of its columns."""

    classes: tuple[str, ...]
    """The expert's classes: the columns of the module's logits."""

    module: nn.Module
    """Maps features ``(B, D)`` to logits ``(B, C_i)``."""


def label_log_likelihoods(
    experts: Mapping[str, LocalExpert], features_BD: Tensor, labels: Sequence[str]
) -> tuple[tuple[str, ...], Tensor]:
    """log E_i(x)_y: how likely each expert holds the true class of each row.

    Args:
        experts: By uid, at least one.
        features_BD: Trunk features ``(B, D)``.
        labels: B class names.

    Returns: The uids, sorted, and ``(B, E)`` in nats, at most 0, -inf where the class is not one of the expert's;
        without a graph for gradients.

    Raises:
        UnknownClasses: If no expert answers for a label.
        ShapeMismatch: If the features do not fit a module.
    """
    known = {name for expert in experts.values() for name in expert.classes}
    if foreign := set(labels) - known:
        raise UnknownClasses(foreign, known=known)
    uids = tuple(sorted(experts))
    log_likelihood_BE = features_BD.new_full((len(labels), len(uids)), -torch.inf)
    for column, uid in enumerate(uids):
        column_of = {name: place for place, name in enumerate(experts[uid].classes)}
        rows = torch.tensor([row for row, label in enumerate(labels) if label in column_of], dtype=torch.int64)
        if len(rows):
            # Outside inference mode: what is trained on this may save it for a backward pass.
            with torch.no_grad():
                log_p_RC = torch.log_softmax(experts[uid].module(features_BD[rows]), dim=1)
            places = torch.tensor([column_of[labels[row]] for row in rows.tolist()])
            log_likelihood_BE[rows, column] = log_p_RC.gather(1, places[:, None])[:, 0]
    return uids, log_likelihood_BE
