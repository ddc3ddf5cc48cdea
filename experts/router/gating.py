"""Gate weights over experts from class scores, in the proposal's order: softmax first, then the top-k mask.

    f_R(x)_i = logsumexp over c in C_i of s_c(x)
    g_i(x)   = softmax(f_R(x) / tau)_i  if i is among the top k of f_R(x), else 0        (not renormalised)

Legend: B batch, C class, E expert, K top-k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.errors import SettingOutOfRange, ShapeMismatch

__all__ = ["Gates", "gate"]


@dataclass(frozen=True, eq=False)
class Gates:
    """Gate weights of a batch."""

    uids: tuple[str, ...]
    """Expert uids in sorted order: the columns of ``weights_BE``."""

    weights_BE: Tensor
    """g, ``(B, E)``, in [0, 1], at most K above 0 in a row; a row sums to at most 1."""

    def rows_of(self, uid: str) -> Tensor:
        """The rows that want this expert's answer, int64 ``(R,)``, increasing."""
        return self.weights_BE[:, self.uids.index(uid)].nonzero().flatten()


def gate(
    scores_BC: Tensor,
    classes: Sequence[str],
    experts: Mapping[str, Sequence[str]],
    *,
    tau: float = 1.0,
    top_k: int = 1,
) -> Gates:
    """Gate weights from the router's class scores.

    A class that no expert covers contributes to nobody. An expert counts by the classes the router knows;
    with none of them its logit is -inf and its gate 0. If that holds for every expert, all gates are 0.

    Args:
        scores_BC: s ``(B, C)``.
        classes: C class names, the columns of the scores.
        experts: The classes of each expert, by uid.
        tau: Softmax temperature, above 0.
        top_k: K, at least 1; more than there are experts means all. Equal logits are taken in uid order, so
            that peers with equal scores ask the same experts.

    Raises:
        ShapeMismatch: If the scores are not ``(B, C)``.
        SettingOutOfRange: If ``tau`` or ``top_k`` is.
    """
    if scores_BC.ndim != 2 or scores_BC.shape[1] != len(classes):
        raise ShapeMismatch("scores", expected=("B", len(classes)), got=tuple(scores_BC.shape))
    if not tau > 0:
        raise SettingOutOfRange("tau", tau, allowed="above 0")
    if top_k < 1:
        raise SettingOutOfRange("top_k", top_k, allowed="at least 1")

    uids = tuple(sorted(experts))
    logits_BE = _expert_logits(scores_BC, classes, [experts[uid] for uid in uids])
    # Experts without a known class stay out of the softmax, which has no value where all are -inf.
    known_E = ~torch.isneginf(logits_BE).all(dim=0)
    soft_BE = torch.zeros_like(logits_BE)
    soft_BE[:, known_E] = torch.softmax(logits_BE[:, known_E] / tau, dim=1)

    # A stable sort, not topk: topk breaks ties as it likes, and replicas of one lineage tie exactly.
    chosen_BK = torch.sort(logits_BE, dim=1, descending=True, stable=True).indices[:, :top_k]
    mask_BE = torch.zeros_like(logits_BE, dtype=torch.bool).scatter_(1, chosen_BK, value=True)
    return Gates(uids, torch.where(mask_BE, soft_BE, 0.0))


def _expert_logits(scores_BC: Tensor, classes: Sequence[str], expert_classes: list[Sequence[str]]) -> Tensor:
    """f_R, ``(B, E)``."""
    column_of = {name: column for column, name in enumerate(classes)}
    logits_BE = scores_BC.new_full((scores_BC.shape[0], len(expert_classes)), -torch.inf)
    for expert, names in enumerate(expert_classes):
        columns = [column_of[name] for name in sorted(set(names)) if name in column_of]
        if columns:
            logits_BE[:, expert] = torch.logsumexp(scores_BC[:, columns], dim=1)
    return logits_BE
