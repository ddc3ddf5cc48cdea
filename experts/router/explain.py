"""Why the router chose whom it chose, row by row: every number between the features and the gate weights.

    s_c    = kappa (sum_d h_d B_dc + B_0c)                     features' contributions kappa h_d B_dc, and the bias
    f_R,i  = logsumexp over c in C_i of s_c,  share exp(s_c - f_R,i)    which class carried the expert
    soft_i = softmax(f_R / tau)_i,            gate g_i                  before and after the top-k mask

Exact, not an approximation of the router: contributions add up to the score, shares to 1, and logits and gates are
those that are used, to the bit, in the floating type of the features.

Legend: B batch, D feature, C class, E expert, K top-k.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from experts.errors import SettingOutOfRange
from experts.router.gating import expert_logits, gate_logits
from experts.router.ridge import RidgeRouter

__all__ = [
    "ClassScore",
    "ExpertGate",
    "RowExplanation",
    "ScoreParts",
    "explain_logits",
    "explain_ridge",
    "explain_scores",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class in one row."""

    name: str
    score: float
    """s_c, to be compared within the row only."""
    share: float
    """Within an expert: its part of exp(f_R,i), in [0, 1]; all of an expert's known classes sum to 1. Among the row's
    top classes: softmax over all classes the router scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertGate:
    """One expert in one row."""

    uid: str
    logit: float | None
    """f_R,i, nats; None if the router does not know the expert."""
    soft_gate: float
    """Before the mask, in [0, 1]; sums to 1 over experts unless the router knows none."""
    gate: float
    """After it: as before, or 0."""
    carried_by: tuple[ClassScore, ...]
    """The classes that made the logit, by share, largest first; empty for a router without class scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreParts:
    """What the score of one class is made of, in float64: ``bias`` + all ``features`` + ``rest`` = ``score``."""

    name: str
    score: float
    bias: float
    features: tuple[tuple[int, float], ...]
    """Feature number and contribution, by size, largest first."""
    rest: float
    """Sum of the contributions not listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowExplanation:
    """Everything that led to the gates of one row."""

    row: int
    """Its number in the batch, from 0."""
    top_classes: tuple[ClassScore, ...]
    """The best of all classes, whether or not an expert covers them; empty for a router without class scores."""
    experts: tuple[ExpertGate, ...]
    """All experts, by logit, largest first; equal ones in uid order, as the mask takes them."""
    margin: float | None
    """First logit minus second, nats, at least 0; None where the router knows fewer than two experts."""
    parts: tuple[ScoreParts, ...]
    """What the top classes' scores are made of; only of a ridge router on its features."""

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """For people to read."""
        lines = [f"row {self.row}"]
        if self.top_classes:
            lines.append("  classes: " + ", ".join(f"{one.name} {one.score:.2f}" for one in self.top_classes))
        for expert in self.experts:
            logit = "unknown to the router" if expert.logit is None else f"logit {expert.logit:.2f}"
            taken = f"gate {expert.gate:.3f}" if expert.gate > 0 else "not asked"
            carried = ", ".join(f"{one.name} {100 * one.share:.0f}%" for one in expert.carried_by)
            lines.append(
                f"  expert {expert.uid}: {logit}, soft gate {expert.soft_gate:.3f}, {taken}"
                + (f"; carried by {carried}" if carried else "")
            )
        if self.margin is not None:
            lines.append(f"  margin to the next expert: {self.margin:.2f} nats")
        for part in self.parts:
            features = ", ".join(f"feature {number} {value:+.2f}" for number, value in part.features)
            listed = f"{features}, " if features else ""
            lines.append(f"  {part.name} {part.score:.2f} = bias {part.bias:+.2f}, {listed}the rest {part.rest:+.2f}")
        return tuple(lines)


def explain_ridge(
    router: RidgeRouter,
    h_BD: Tensor,
    experts: Mapping[str, Sequence[str]],
    *,
    tau: float = 1.0,
    top_k: int = 1,
    most: int = 3,
) -> tuple[RowExplanation, ...]:
    """Explain the gates of a ridge router down to its features.

    Args:
        router: As solved.
        h_BD: Trunk features.
        experts: The classes of each expert, by uid.
        tau: As for `gate`.
        top_k: As for `gate`.
        most: Top classes told of each row, and features told of each of these, at least 1.

    Raises:
        ShapeMismatch: If the features are not ``(B, D)``.
        SettingOutOfRange: If ``tau``, ``top_k`` or ``most`` is.
    """
    explained = explain_scores(router.scores(h_BD), router.classes, experts, tau=tau, top_k=top_k, most=most)
    return tuple(
        RowExplanation(
            row=one.row,
            top_classes=one.top_classes,
            experts=one.experts,
            margin=one.margin,
            parts=tuple(_score_parts(router, h_BD[one.row].double(), top.name, most) for top in one.top_classes),
        )
        for one in explained
    )


def explain_scores(
    scores_BC: Tensor,
    classes: Sequence[str],
    experts: Mapping[str, Sequence[str]],
    *,
    tau: float = 1.0,
    top_k: int = 1,
    most: int = 3,
) -> tuple[RowExplanation, ...]:
    """Explain gates that come from class scores, whichever router made those; arguments and errors as above."""
    if most < 1:
        raise SettingOutOfRange("most", most, allowed="at least 1")
    uids = tuple(sorted(experts))
    explained = explain_logits(
        expert_logits(scores_BC, classes, [experts[uid] for uid in uids]), uids, tau=tau, top_k=top_k
    )
    softmax_BC = torch.softmax(scores_BC.double(), dim=1)
    rows = []
    for one in explained:
        scores = dict(zip(classes, scores_BC[one.row].tolist(), strict=True))
        shares = dict(zip(classes, softmax_BC[one.row].tolist(), strict=True))
        ranked = sorted(scores, key=lambda name: (-scores[name], name))[:most]
        rows.append(
            RowExplanation(
                row=one.row,
                top_classes=tuple(ClassScore(name=name, score=scores[name], share=shares[name]) for name in ranked),
                experts=tuple(_with_classes(expert, scores, experts[expert.uid]) for expert in one.experts),
                margin=one.margin,
                parts=(),
            )
        )
    return tuple(rows)


def explain_logits(
    logits_BE: Tensor, uids: Sequence[str], *, tau: float = 1.0, top_k: int = 1
) -> tuple[RowExplanation, ...]:
    """Explain gates that come from logits of experts alone, as the small-net router's do.

    Args:
        logits_BE: f_R ``(B, E)``.
        uids: As for `gate_logits`.
        tau: As for `gate_logits`.
        top_k: As for `gate_logits`.

    Raises:
        ShapeMismatch: If the logits are not ``(B, E)``.
        SettingOutOfRange: If ``tau``, ``top_k`` or the uids are.
    """
    logits_BE = logits_BE.detach()
    gates = gate_logits(logits_BE, uids, tau=tau, top_k=top_k).weights_BE
    soft = gate_logits(logits_BE, uids, tau=tau, top_k=max(1, len(uids))).weights_BE
    rows = []
    for row, logits in enumerate(logits_BE.tolist()):
        order = sorted(range(len(uids)), key=lambda column: (-logits[column], uids[column]))
        known = [logits[column] for column in order if logits[column] > -math.inf]
        rows.append(
            RowExplanation(
                row=row,
                top_classes=(),
                experts=tuple(
                    ExpertGate(
                        uid=uids[column],
                        logit=logits[column] if logits[column] > -math.inf else None,
                        soft_gate=float(soft[row, column]),
                        gate=float(gates[row, column]),
                        carried_by=(),
                    )
                    for column in order
                ),
                margin=known[0] - known[1] if len(known) > 1 else None,
                parts=(),
            )
        )
    return tuple(rows)


def _with_classes(expert: ExpertGate, scores: Mapping[str, float], classes: Sequence[str]) -> ExpertGate:
    """The same expert with the classes that made its logit."""
    known = [name for name in sorted(set(classes)) if name in scores]
    if expert.logit is None:
        return expert
    shares = {name: math.exp(scores[name] - expert.logit) for name in known}
    carried_by = tuple(
        ClassScore(name=name, score=scores[name], share=shares[name])
        for name in sorted(known, key=lambda name: (-shares[name], name))
    )
    return ExpertGate(
        uid=expert.uid, logit=expert.logit, soft_gate=expert.soft_gate, gate=expert.gate, carried_by=carried_by
    )


def _score_parts(router: RidgeRouter, h_D: Tensor, name: str, most: int) -> ScoreParts:
    weights_M = router.kappa * router.weights[:, router.classes.index(name)]
    contributions_D = h_D * weights_M[:-1]
    order = torch.sort(contributions_D.abs(), descending=True, stable=True).indices
    return ScoreParts(
        name=name,
        score=float(weights_M[-1] + contributions_D.sum()),
        bias=float(weights_M[-1]),
        features=tuple((number, float(contributions_D[number])) for number in order[:most].tolist()),
        rest=float(contributions_D[order[most:]].sum()),
    )
