"""Who works for which class: how specialized each expert is, measured from the gate mass that classes send it.

    m_ci     = sum over rows x of class c of g_i(x)                          gate mass
    p(c|E_i) = m_ci / sum_c m_ci
    S(E_i)   = -sum_c p(c|E_i) log p(c|E_i)                                  (proposal, section 2.3)
    pi_i     = sum_c m_ci / M,  M = sum_ci m_ci                              usage
    I(E;C)   = sum_ci m_ci/M log( (m_ci/M) / (pi_i sum_i m_ci/M) )

all in nats. The gates are taken as they are used: after the top-k mask, not renormalised. What the mask cut
off went to nobody, so it counts for no expert; `Specialization.routed_ratio` says how much is left. For the
soft gates that the router is trained on, ask `gate` for as many experts as there are.

Mass adds. Measures of parts merge to those of the whole, which means of the parts' entropies would not.

Legend: B batch, C class, E expert.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.data.dataset import class_columns
from experts.errors import ShapeMismatch, UnsafeStatistics
from experts.router.gating import Gates

__all__ = ["Specialization", "measure_specialization", "merge_specializations"]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Specialization:
    """Gate mass by class and expert, and what follows from it.

    Raises:
        ShapeMismatch: If mass or counts do not fit the names.
        UnsafeStatistics: If a mass is negative or not finite.
    """

    classes: tuple[str, ...]
    """C class names, sorted: the rows of the mass. A class may have no sample, or no expert that knows it."""

    uids: tuple[str, ...]
    """E expert uids, sorted: the columns of the mass. An expert may have no mass."""

    mass_CE: Tensor
    """m, float64 ``(C, E)``, at least 0."""

    num_samples_C: Tensor
    """Rows of each class, int64 ``(C,)``; what they sent to experts is at most as much."""

    def __post_init__(self) -> None:
        expected = (len(self.classes), len(self.uids))
        if tuple(self.mass_CE.shape) != expected:
            raise ShapeMismatch("gate mass", expected=expected, got=tuple(self.mass_CE.shape))
        if tuple(self.num_samples_C.shape) != expected[:1]:
            raise ShapeMismatch("sample counts", expected=expected[:1], got=tuple(self.num_samples_C.shape))
        if not (torch.isfinite(self.mass_CE) & (self.mass_CE >= 0)).all():
            raise UnsafeStatistics("a gate mass is negative or not finite")

    @property
    def usage(self) -> Tensor:
        """pi, the share of all gate mass that each expert got, ``(E,)``; sums to 1, or is all 0 without mass."""
        mass_E = self.mass_CE.sum(dim=0)
        return mass_E / mass_E.sum() if mass_E.any() else mass_E

    @property
    def max_usage(self) -> float:
        """Usage of the busiest expert, in [1/E, 1] where there is mass; 1/E is perfect balance."""
        return max(self.usage.tolist(), default=0.0)

    @property
    def class_distributions(self) -> Tensor:
        """p(c|E_i), ``(C, E)``: each column sums to 1, or is all NaN for an expert without mass."""
        return self.mass_CE / self.mass_CE.sum(dim=0)

    @property
    def entropies(self) -> Tensor:
        """S, ``(E,)``, in [0, log C] nats; 0 for an expert of one class, NaN for one without mass.

        NaN, because either number would be a claim: 0 that it is the most specialized of all, log C that it
        is the least. I(E;C) and usage have a value all the same: an expert that nobody uses adds nothing.
        """
        entropy_E: Tensor = torch.special.entr(self.class_distributions).sum(dim=0)
        return entropy_E

    @property
    def mutual_information(self) -> float:
        """I(E;C), in [0, log min(C, E)] nats: what the choice of an expert tells about the class.

        0 where every expert sees the same mix of classes, and without any mass.
        """
        total = self.mass_CE.sum()
        if total == 0:
            return 0.0
        q_CE = self.mass_CE / total
        # Logarithms apart: the product of two small shares could underflow where their joint share does not.
        own = torch.xlogy(q_CE, q_CE).sum()
        apart = torch.xlogy(q_CE, q_CE.sum(dim=0)).sum() + torch.xlogy(q_CE, q_CE.sum(dim=1, keepdim=True)).sum()
        # Never below 0 but for rounding.
        return max(0.0, float(own - apart))

    @property
    def information_shares(self) -> Tensor:
        """pi_i KL(p(c|E_i) || p(c)), what each expert adds to I(E;C), ``(E,)`` nats, at least 0; they sum to it.

        Equal to pi_i (sum_c p(c|E_i) log 1/p(c) - S(E_i)): much for who works much, for few classes, or for rare ones.
        """
        total = self.mass_CE.sum()
        if total == 0:
            return self.mass_CE.sum(dim=0)
        joint_CE = self.mass_CE / total
        of_class_C, of_expert_E = joint_CE.sum(dim=1), joint_CE.sum(dim=0)
        logs_CE = torch.xlogy(joint_CE, joint_CE) - torch.xlogy(joint_CE, of_class_C[:, None])
        # Never below 0 but for rounding.
        return (logs_CE.sum(dim=0) - torch.xlogy(of_expert_E, of_expert_E)).clamp_min(0.0)

    @property
    def top_shares(self) -> Tensor:
        """Share of a class's gate mass that its main expert got, ``(C,)``, in [1/E, 1]; NaN without mass."""
        if not self.uids:
            return self.mass_CE.new_full((len(self.classes),), torch.nan)
        return self.mass_CE.amax(dim=1) / self.mass_CE.sum(dim=1)

    @property
    def routed_ratio(self) -> float:
        """Gate mass per sample, in [0, 1]: 1 with soft gates, less by what the mask cut off; 0 without samples."""
        return float(self.mass_CE.sum()) / max(1, int(self.num_samples_C.sum()))

    def to_dict(self) -> dict[str, object]:
        """Mass, counts and measures, ready for JSON; None stands for NaN."""
        return {
            "classes": list(self.classes),
            "experts": list(self.uids),
            "mass": self.mass_CE.tolist(),
            "num_samples": self.num_samples_C.tolist(),
            "entropy_nats": _none_for_nan(self.entropies),
            "usage_ratio": self.usage.tolist(),
            "max_usage_ratio": self.max_usage,
            "top_share_ratio": _none_for_nan(self.top_shares),
            "mutual_information_nats": self.mutual_information,
            "routed_ratio": self.routed_ratio,
        }


def measure_specialization(
    gates: Gates, labels: Sequence[str], classes: Collection[str] | None = None
) -> Specialization:
    """The measures of one batch.

    Args:
        gates: Gate weights of the batch, as used; rows without any (of a class that no expert knows) count as
            samples that sent no mass.
        labels: B class names, the truth.
        classes: The classes to list, each label's among them; None for those that have a sample.

    Raises:
        ShapeMismatch: If the gates are not ``(B, E)`` with one label a row and one column a uid.
        UnknownClasses: If a label is of a class not listed.
        UnsafeStatistics: If a gate weight is not finite, or weights add up to a negative mass.
    """
    expected = (len(labels), len(gates.uids))
    if tuple(gates.weights_BE.shape) != expected:
        raise ShapeMismatch("gates", expected=expected, got=tuple(gates.weights_BE.shape))
    names = tuple(sorted(set(labels if classes is None else classes)))
    columns_B = class_columns(labels, names)
    mass_CE = torch.zeros(len(names), len(gates.uids), dtype=torch.float64)
    # In float64, so that thousands of batches add up to the mass of the whole.
    mass_CE.index_add_(0, columns_B, gates.weights_BE.detach().double().cpu())
    return Specialization(
        classes=names,
        uids=gates.uids,
        mass_CE=mass_CE,
        num_samples_C=torch.bincount(columns_B, minlength=len(names)),
    )


def merge_specializations(parts: Sequence[Specialization]) -> Specialization:
    """The measures of all parts together.

    Parts may differ in classes and in experts, as they do when a new task spawns an expert between two
    batches: who is not listed in a part had no mass there. No parts at all give a measure of nothing.
    """
    classes = tuple(sorted({name for part in parts for name in part.classes}))
    uids = tuple(sorted({uid for part in parts for uid in part.uids}))
    mass_CE = torch.zeros(len(classes), len(uids), dtype=torch.float64)
    num_samples_C = torch.zeros(len(classes), dtype=torch.int64)
    for part in parts:
        rows = class_columns(part.classes, classes)
        columns = torch.tensor([uids.index(uid) for uid in part.uids], dtype=torch.int64)
        mass_CE[rows[:, None], columns] += part.mass_CE
        num_samples_C[rows] += part.num_samples_C
    return Specialization(classes=classes, uids=uids, mass_CE=mass_CE, num_samples_C=num_samples_C)


def _none_for_nan(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124 - only NaN differs from itself
