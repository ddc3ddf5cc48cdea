"""Sums of statistics that keep every bit: whatever was added can be taken out again without a trace.

Floating-point sums depend on their order, and subtracting a part leaves its rounding behind. Integers do neither. So
what adds up over contributions k,

    n_c = sum_k n_kc,    s_c = sum_k n_kc mu_kc,    T = sum_k (S_k + sum_c n_kc mu_kc mu_kc^T) = sum h h^T

is computed once per contribution in float64 and written as x = hi 2^-10 + lo 2^-60 with two int64. From then on there
is no rounding: the sum is a function of the set of contributions alone, bit by bit, in whatever order and by whatever
detour (added, folded, taken out, added again) it came about. Reading it as statistics rounds once more,

    mu_c = s_c / n_c,    S = T - sum_c n_c mu_c mu_c^T.

Range and precision: a number of one contribution is at most 2^38 in magnitude, else it is refused. From 2^-8 on it is
held as the float64 it was, below that to within 2^-61. So of K contributions the sum is read to within 2^-52 |x| +
K 2^-60, and S to within some 2^-50 of the greatest entry of T: like float64 itself where features are centred and
scaled, as a trunk's are, and worse by the square of mean over deviation where they are not.

This is the long accumulator of Kulisch and Miranker (1986, "The arithmetic of the digital computer: a new approach",
SIAM Review 28(1)), cut to two words, which suffice since features are clipped and counts bounded. The two products
above go through BLAS, whose last bit may differ between machines and numbers of threads: what is bit-equal is so on
one machine with one setting.

Legend: C class, D feature, L the two limbs (hi, lo), T packed upper triangle of D x D.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from experts.errors import FingerprintMismatch, UnsafeStatistics
from experts.router.statistics import ClassStatistics
from experts.router.symmetric import mirror, packed_triangle, unpacked_triangle

__all__ = ["LARGEST", "MAX_PARTS", "ExactSum"]

MAX_PARTS = 2**14 - 1
"""Contributions in one sum. A limb of one is at most 2^49, so sums of them stay below 2^63 with no carry."""

LARGEST = 2.0**38
"""Magnitude of one number of a contribution: 4e9 samples of features at 8. Its hi limb is 2^48."""

_HI, _LO = 2.0**10, 2.0**60


class ExactSum:
    """The exact sum of any number of class statistics over the same features.

    Args:
        feature_dim: D, at least 1.
        fingerprint: Of the statistics that may be added.
    """

    def __init__(self, feature_dim: int, *, fingerprint: str | None) -> None:
        self.feature_dim = feature_dim
        self.fingerprint = fingerprint
        self.num_parts = 0
        """Contributions in the sum."""
        self.counts: dict[str, int] = {}
        """n_c, each at least 1."""
        self.weighted_LD: dict[str, Tensor] = {}
        """s_c by class, int64 ``(2, D)``; the names of ``counts``."""
        self.moment_LT = torch.zeros(2, feature_dim * (feature_dim + 1) // 2, dtype=torch.int64)
        """T, int64 ``(2, D (D + 1) / 2)``."""

    @property
    def num_bytes(self) -> int:
        """Memory of the numbers held: 8 D (D + 1) + 16 C D."""
        return self.moment_LT.nbytes + sum(limbs.nbytes for limbs in self.weighted_LD.values())

    def add(self, stats: ClassStatistics) -> None:
        """Adds one contribution; on an error the sum is as before.

        Raises:
            FingerprintMismatch: If it is over other features.
            UnsafeStatistics: If it differs in feature dimension, a number exceeds `LARGEST` or is not finite, or
                the sum has `MAX_PARTS` already.
        """
        if self.num_parts == MAX_PARTS:
            raise UnsafeStatistics(f"a sum takes {MAX_PARTS} contributions")
        self._apply(stats, 1)

    def subtract(self, stats: ClassStatistics) -> None:
        """Takes out a contribution that was added: the sum is then, bit by bit, one that never had it.

        Raises:
            FingerprintMismatch: If it is over other features.
            UnsafeStatistics: If the sum cannot contain it, as far as dimension and counts show.
        """
        if any(self.counts.get(name, 0) < count for name, count in stats.counts.items()):
            raise UnsafeStatistics("the sum counts fewer samples than what is to be taken out of it")
        self._apply(stats, -1)

    def replace(self, old: ClassStatistics, new: ClassStatistics) -> None:
        """Takes out a contribution that was added and adds another, also where the sum has `MAX_PARTS`.

        Raises: As `add` of the new one; the sum is then as before.
        """
        # The new one first: only it can be refused. Should it be one too many for a moment, int64 wraps and comes back.
        self._apply(new, 1)
        self._apply(old, -1)

    def add_sum(self, other: "ExactSum") -> None:
        """Adds all that another sum holds, which must have no contribution in common with this one.

        Raises:
            FingerprintMismatch: If it is over other features.
            UnsafeStatistics: If it differs in feature dimension, or there are more than `MAX_PARTS` together.
        """
        self.require_fit(other)
        if self.num_parts + other.num_parts > MAX_PARTS:
            raise UnsafeStatistics(f"a sum takes {MAX_PARTS} contributions")
        self._shift(other.counts, other.weighted_LD, other.moment_LT, 1)
        self.num_parts += other.num_parts

    def require_fit(self, other: "ClassStatistics | ExactSum") -> None:
        """Checks that it is over the same features.

        Raises:
            FingerprintMismatch: If the fingerprints differ.
            UnsafeStatistics: If the feature dimensions do.
        """
        if other.fingerprint != self.fingerprint:
            raise FingerprintMismatch(expected=self.fingerprint, got=other.fingerprint)
        if other.feature_dim != self.feature_dim:
            raise UnsafeStatistics(f"{other.feature_dim} features among statistics of {self.feature_dim}")

    def copy(self) -> "ExactSum":
        """The same sum, sharing no memory."""
        twin = ExactSum(self.feature_dim, fingerprint=self.fingerprint)
        twin.add_sum(self)
        return twin

    def statistics(self) -> ClassStatistics:
        """n_c, mu_c and S of all samples together, in float64.

        Raises:
            UnsafeStatistics: If the sum is empty.
        """
        if not self.counts:
            raise UnsafeStatistics("no contribution to sum")
        names = sorted(self.counts)
        counts_C = torch.tensor([self.counts[name] for name in names], dtype=torch.float64)
        means_CD = torch.stack([_value(self.weighted_LD[name]) for name in names]) / counts_C[:, None]
        scatter = unpacked_triangle(_value(self.moment_LT), self.feature_dim)
        rooted_CD = means_CD * counts_C.sqrt()[:, None]
        scatter.addmm_(rooted_CD.T, rooted_CD, alpha=-1)
        return ClassStatistics(
            {name: self.counts[name] for name in names},
            dict(zip(names, means_CD, strict=True)),
            mirror(scatter),
            self.fingerprint,
        )

    def _apply(self, stats: ClassStatistics, sign: int) -> None:
        self.require_fit(stats)
        names = stats.classes
        counts_C = torch.tensor([stats.counts[name] for name in names], dtype=torch.float64)
        means_CD = stats.stacked_means()
        weighted_CD = means_CD * counts_C[:, None]
        moment_LT = _limbs(packed_triangle(torch.addmm(stats.scatter, weighted_CD.T, means_CD), torch.float64))
        weighted_LD = {name: _limbs(row_D) for name, row_D in zip(names, weighted_CD, strict=True)}
        self._shift(stats.counts, weighted_LD, moment_LT, sign)
        self.num_parts += sign

    def _shift(
        self, counts: Mapping[str, int], weighted_LD: Mapping[str, Tensor], moment_LT: Tensor, sign: int
    ) -> None:
        self.moment_LT.add_(moment_LT, alpha=sign)
        for name, count in counts.items():
            total = self.counts.get(name, 0) + sign * count
            if total:
                zero = torch.zeros(2, self.feature_dim, dtype=torch.int64)
                self.weighted_LD[name] = self.weighted_LD.get(name, zero) + sign * weighted_LD[name]
                self.counts[name] = total
            else:
                del self.counts[name], self.weighted_LD[name]


def _limbs(values: Tensor) -> Tensor:
    """The two limbs of float64 ``(X,)``, int64 ``(2, X)``; what is below 2^-61 is rounded off."""
    if not (values.max() <= LARGEST and values.min() >= -LARGEST):  # not true of NaN either
        raise UnsafeStatistics(f"a number exceeds {LARGEST:g}, or is not finite")
    limbs = torch.empty(2, len(values), dtype=torch.int64)
    # In place: at D = 4096 each copy of a triangle is 67 MB.
    work = (values * _HI).round_()
    limbs[0] = work
    limbs[1] = work.div_(-_HI).add_(values).mul_(_LO).round_()
    return limbs


def _value(limbs: Tensor) -> Tensor:
    """The float64 number of each pair of limbs."""
    return limbs[0].double().div_(_HI).add_(limbs[1].double().div_(_LO))
