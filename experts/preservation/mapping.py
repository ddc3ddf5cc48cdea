"""Which unit of the old layer which unit of the new one goes on from (proposal, section 2.4, step 2).

    M(u, v) = sim(u, v) I(u)        the assignment with the largest sum

Where the new layer is narrower, the units with the highest scores are kept; what each of the others did is taken over
by the kept one that answers like it, or by its mean alone. Where it is wider, important units are doubled and their
outgoing weights split (Chen et al. 2016, "Net2Net", arXiv:1511.05641, sec. 2.1), in unequal parts, so that the copies
learn different things.

Legend: N items, U units of the old stage, V units of the new one.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["Similarity", "UnitMap", "assign", "correlation", "identity_map", "map_units", "similarity_of"]

Similarity = Literal["role", "statistics", "correlation"]
"""`role`: all units of a layer are alike, and scores alone decide. `statistics`: how alike mean, deviation and share of
positive answers are. `correlation`: how alike the answers themselves are, item by item."""

_MERGES_FROM = 0.9
"""Correlation from which on one unit can speak for another."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnitMap:
    """How the units of a new stage go on from those of the old one: old ~ A new + o."""

    source_V: Tensor
    """int64: the old unit that each new one goes on from; -1 for none."""
    reconstruction_UV: Tensor
    """A: what of each old unit's answer the new units together give."""
    offset_U: Tensor
    """o: the rest, a constant."""
    merged: int
    """Old units that others speak for."""
    importance_kept: float
    """Share of the scores that units have which are mapped, in [0, 1]."""

    @property
    def mapped(self) -> int:
        """Old units that have a place in the new stage."""
        return len(set(self.source_V.tolist()) - {-1})

    @property
    def duplicated(self) -> int:
        """New units beyond the first that go on from the same old one."""
        return int((self.source_V >= 0).sum()) - self.mapped

    @property
    def dropped(self) -> int:
        """Old units that have no place, and nobody speaks for."""
        return len(self.offset_U) - self.mapped - self.merged


def similarity_of(kind: Similarity, old_NU: Tensor, new_NV: Tensor) -> Tensor:
    """sim in [0, 1], float64 ``(U, V)``, of what old and new units answer on the same items."""
    assert kind in get_args(Similarity)
    if kind == "role":
        return torch.ones(old_NU.shape[1], new_NV.shape[1], dtype=torch.float64)
    if kind == "correlation":
        return (1 + correlation(old_NU, new_NV)) / 2
    both = torch.cat([_statistics(old_NU), _statistics(new_NV)])
    both = (both - both.mean(dim=0)) / both.std(dim=0).clamp_min(1e-12)
    distances = torch.cdist(both[: old_NU.shape[1]], both[old_NU.shape[1] :])
    return torch.exp(-distances)


def correlation(old_NU: Tensor, new_NV: Tensor) -> Tensor:
    """Pearson's, float64 ``(U, V)``; 0 for a unit that always answers the same."""
    old, new = _standardised(old_NU), _standardised(new_NV)
    return (old.T @ new / len(old)).clamp(-1, 1)


def assign(similarity_UV: Tensor, importance_U: Tensor) -> list[tuple[int, int]]:
    """Pairs of old and new units with the largest sum of sim I, each unit in one pair at most; sorted by new unit.

    The assignment problem, solved by scipy (Crouse 2016, doi:10.1109/TAES.2016.140952).
    """
    scores_UV = similarity_UV * importance_U[:, None]
    old, new = linear_sum_assignment(scores_UV.numpy(), maximize=True)
    return sorted(zip(old.tolist(), new.tolist(), strict=True), key=lambda pair: pair[1])


def identity_map(units: int) -> UnitMap:
    """Each unit goes on from itself."""
    return UnitMap(
        source_V=torch.arange(units),
        reconstruction_UV=torch.eye(units),
        offset_U=torch.zeros(units),
        merged=0,
        importance_kept=1.0,
    )


def map_units(
    pairs: list[tuple[int, int]], importance_U: Tensor, old_NU: Tensor, generator: torch.Generator, *, num_new: int
) -> UnitMap:
    """The map that an assignment comes to, with doubles for new units that it leaves free.

    Args:
        pairs: As from `assign`.
        importance_U: Scores of the old units.
        old_NU: What they answer on some items: who can speak for whom.
        generator: Draws how the outgoing weights of doubled units are split.
        num_new: V.
    """
    num_old = len(importance_U)
    source_V = torch.full((num_new,), -1)
    for old, new in pairs:
        source_V[new] = old
    copies_U = torch.bincount(source_V[source_V >= 0], minlength=num_old).double()
    for new in (source_V < 0).nonzero().flatten().tolist():
        # Half the score of a unit that has a double is what either stands for.
        doubled = int((importance_U / copies_U.clamp_min(1)).where(copies_U > 0, -1.0).argmax())
        source_V[new] = doubled
        copies_U[doubled] += 1
    share_V = torch.rand(num_new, generator=generator) + 0.5
    total_U = torch.zeros(num_old).index_add(0, source_V, share_V)
    share_V /= total_U[source_V]
    share_V[copies_U[source_V] == 1] = 1.0
    kept = torch.zeros(num_old, num_new)
    kept[source_V, torch.arange(num_new)] = share_V
    reconstruction_UV, offset_U, merged = _stand_ins(kept, old_NU)
    total = float(importance_U.sum())
    mapped = float(importance_U[copies_U > 0].sum())
    return UnitMap(
        source_V=source_V,
        reconstruction_UV=reconstruction_UV,
        offset_U=offset_U,
        merged=merged,
        # Sums of other lengths are rounded apart, and a share above 1 would be refused wherever it is told.
        importance_kept=min(1.0, mapped / total) if total > 0 else float(int((copies_U > 0).sum()) / num_old),
    )


def _stand_ins(kept_UV: Tensor, old_NU: Tensor) -> tuple[Tensor, Tensor, int]:
    """For units without a place: the kept one that answers most alike, by a straight line, or the mean."""
    reconstruction_UV, offset_U, merged = kept_UV.clone(), torch.zeros(len(kept_UV)), 0
    has_place = kept_UV.sum(dim=1) > 0
    placed = has_place.nonzero().flatten()
    mean_U, deviation_U = old_NU.mean(dim=0), old_NU.std(dim=0, unbiased=False)
    alike = correlation(old_NU, old_NU[:, placed])
    for unit in (~has_place).nonzero().flatten().tolist():
        offset_U[unit] = mean_U[unit]
        nearest = int(alike[unit].argmax())
        stand_in = int(placed[nearest])
        if alike[unit, nearest] >= _MERGES_FROM:
            slope = float(alike[unit, nearest] * deviation_U[unit] / deviation_U[stand_in])
            reconstruction_UV[unit] = slope * kept_UV[stand_in]
            offset_U[unit] -= slope * mean_U[stand_in]
            merged += 1
    return reconstruction_UV, offset_U, merged


def _standardised(values_NU: Tensor) -> Tensor:
    values = values_NU.double()
    values = values - values.mean(dim=0)
    deviation = values.std(dim=0, unbiased=False)
    return torch.where(deviation > 1e-9, values / deviation.clamp_min(1e-9), 0.0)


def _statistics(values_NU: Tensor) -> Tensor:
    values = values_NU.double()
    return torch.stack(
        [values.mean(dim=0), values.std(dim=0, unbiased=False), (values > 0).double().mean(dim=0)], dim=1
    )
