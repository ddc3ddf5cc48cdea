"""Gate weights over experts from a router's logits, in the proposal's order: softmax first, then the top-k mask.

    g_i(x)   = softmax(f_R(x) / tau)_i  if i is among the top k of f_R(x), else 0        (not renormalised)

A router that scores classes gets its logits from them:

    f_R(x)_i = logsumexp over c in C_i of s_c(x)

Legend: B batch, C class, E expert, K top-k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from experts.errors import SettingOutOfRange, ShapeMismatch

__all__ = ["Gates", "Router", "expert_logits", "gate", "gate_logits"]


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


class Router(Protocol):
    """What routers have in common, whatever they are made of."""

    def gates(self, h_BD: Tensor, experts: Mapping[str, Sequence[str]], *, tau: float = 1.0, top_k: int = 1) -> Gates:
        """Gate weights over ``experts``, as `gate` says of its arguments.

        Args:
            h_BD: Trunk features.
            experts: The classes of each expert, by uid.
            tau: Softmax temperature.
            top_k: K.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
            SettingOutOfRange: If ``tau`` or ``top_k`` is.
        """
        ...


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
        tau: Softmax temperature, finite and above 0.
        top_k: K, at least 1; more than there are experts means all. Equal logits are taken in uid order, so
            that peers with equal scores ask the same experts.

    Raises:
        ShapeMismatch: If the scores are not ``(B, C)``.
        SettingOutOfRange: If ``tau`` or ``top_k`` is.
    """
    uids = tuple(sorted(experts))
    return gate_logits(expert_logits(scores_BC, classes, [experts[uid] for uid in uids]), uids, tau=tau, top_k=top_k)


def gate_logits(logits_BE: Tensor, uids: Sequence[str], *, tau: float = 1.0, top_k: int = 1) -> Gates:
    """Gate weights from the router's logits of experts.

    A logit of -inf says that the router does not know the expert, or rules it out for this row: its gate is 0.
    A row where all are -inf has no gate above 0.

    Args:
        logits_BE: f_R ``(B, E)``, not NaN.
        uids: The columns: E expert uids, sorted, distinct.
        tau: As for `gate`.
        top_k: As for `gate`.

    Raises:
        ShapeMismatch: If the logits are not ``(B, E)``.
        SettingOutOfRange: If ``tau`` or ``top_k`` is, or the uids are not sorted and distinct.
    """
    if logits_BE.ndim != 2 or logits_BE.shape[1] != len(uids):
        raise ShapeMismatch("expert logits", expected=("B", len(uids)), got=tuple(logits_BE.shape))
    if not 0.0 < tau < float("inf"):
        raise SettingOutOfRange("tau", tau, allowed="finite and above 0")
    if top_k < 1:
        raise SettingOutOfRange("top_k", top_k, allowed="at least 1")
    if list(uids) != sorted(set(uids)):
        raise SettingOutOfRange("uids", tuple(uids), allowed="sorted and distinct")

    # Experts without a known class stay out of the softmax, which has no value where all are -inf.
    known_E = ~torch.isneginf(logits_BE).all(dim=0)
    soft_BE = torch.zeros_like(logits_BE)
    if known_E.any():
        known_BE = logits_BE[:, known_E]
        # Less the greatest, so that no small tau makes it overflow.
        soft_BE[:, known_E] = torch.softmax((known_BE - known_BE.detach().amax(dim=1, keepdim=True)) / tau, dim=1)
    ruled_out_B1 = torch.isneginf(logits_BE).all(dim=1, keepdim=True)

    # A stable sort, not topk: topk breaks ties as it likes, and replicas of one lineage tie exactly.
    chosen_BK = torch.sort(logits_BE, dim=1, descending=True, stable=True).indices[:, :top_k]
    mask_BE = torch.zeros_like(logits_BE, dtype=torch.bool).scatter_(1, chosen_BK, value=True)
    return Gates(tuple(uids), torch.where(mask_BE & ~ruled_out_B1, soft_BE, 0.0))


def expert_logits(scores_BC: Tensor, classes: Sequence[str], expert_classes: Sequence[Sequence[str]]) -> Tensor:
    """f_R from class scores, ``(B, E)``; -inf for an expert none of whose classes has a score.

    Args:
        scores_BC: s ``(B, C)``.
        classes: C class names, the columns of the scores.
        expert_classes: The classes of each expert.

    Raises:
        ShapeMismatch: If the scores are not ``(B, C)``.
    """
    if scores_BC.ndim != 2 or scores_BC.shape[1] != len(classes):
        raise ShapeMismatch("scores", expected=("B", len(classes)), got=tuple(scores_BC.shape))
    column_of = {name: column for column, name in enumerate(classes)}
    logits_BE = scores_BC.new_full((scores_BC.shape[0], len(expert_classes)), -torch.inf)
    for expert, names in enumerate(expert_classes):
        columns = [column_of[name] for name in sorted(set(names)) if name in column_of]
        if columns:
            logits_BE[:, expert] = torch.logsumexp(scores_BC[:, columns], dim=1)
    return logits_BE
