"""What the router remembers of data: a count and a mean per class and one within-class scatter.

These are sufficient for ridge regression, so statistics merged from any parts in any order are those of the
whole: the router forgets nothing, and peers that sum theirs hold the central router. Merging is the pairwise
update of Chan, Golub and LeVeque (1979, "Updating formulae and a pairwise algorithm for computing sample
variances", Stanford STAN-CS-79-773), per class:

    n = n_a + n_b,   mu = (n_a mu_a + n_b mu_b) / n,   S = S_a + S_b + sum_c (n_a n_b / n)_c d_c d_c^T

with d_c the difference of the means. Contributions are kept apart by key and summed anew in sorted key order;
dropping one is then exact, which subtracting it is not.

As bytes, means and the packed upper triangle of S travel in float32: half the size, and what arrives is
symmetric by construction.

Legend: B batch, D feature, C class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from experts.checkpoint import tensors_from_bytes, tensors_to_bytes
from experts.errors import CorruptWeights, ShapeMismatch, UnsafeStatistics

__all__ = ["ClassStatistics", "merge", "sum_contributions"]

MAX_COUNT = 2**40
"""Samples of one class in one contribution; sums of thousands of these are still exact in float64."""


class _Sortable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


Key = TypeVar("Key", bound=_Sortable)


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Statistics of labelled features, at least one sample of at least one class.

    Treated as immutable: nothing here writes to a tensor of an instance once it is made.
    """

    counts: Mapping[str, int]
    """Samples per class name, each at least 1."""

    means: Mapping[str, Tensor]
    """Mean feature per class name, float64 ``(D,)``; the same names as ``counts``."""

    scatter: Tensor
    """S = sum_samples (h - mu_y)(h - mu_y)^T, float64 ``(D, D)``, bit-symmetric."""

    @classmethod
    def from_features(cls, h_BD: Tensor, labels: Sequence[str]) -> "ClassStatistics":
        """Statistics of one batch, accumulated in float64.

        Args:
            h_BD: Features ``(B, D)`` of any floating type, B and D at least 1.
            labels: B class names.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)`` with one label a row.
            UnsafeStatistics: If a feature is not finite.
        """
        if h_BD.ndim != 2 or h_BD.shape[0] != len(labels) or h_BD.numel() == 0:
            raise ShapeMismatch("features", expected=(len(labels) or "B", "D"), got=tuple(h_BD.shape))
        if not torch.isfinite(h_BD).all():
            raise UnsafeStatistics("a feature is not finite")
        rows_of: dict[str, list[int]] = {}
        for row, label in enumerate(labels):
            rows_of.setdefault(label, []).append(row)

        num_features = h_BD.shape[1]
        counts: dict[str, int] = {}
        means: dict[str, Tensor] = {}
        scatter = torch.zeros(num_features, num_features, dtype=torch.float64)
        for label in sorted(rows_of):
            h_class = h_BD[rows_of[label]].double().cpu()
            counts[label] = len(h_class)
            means[label] = h_class.mean(dim=0)
            centred = h_class - means[label]
            scatter.addmm_(centred.T, centred)
        return cls(counts, means, _mirrored(scatter))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in sorted order."""
        return tuple(sorted(self.counts))

    @property
    def feature_dim(self) -> int:
        """D."""
        return self.scatter.shape[0]

    @property
    def num_samples(self) -> int:
        """N, the sum of all counts."""
        return sum(self.counts.values())

    def stacked_means(self) -> Tensor:
        """Class means in sorted class order, float64 ``(C, D)``."""
        return torch.stack([self.means[name] for name in self.classes])

    def to_bytes(self) -> bytes:
        """The wire form; equal statistics give equal bytes.

        Raises:
            UnsafeStatistics: If a value does not fit float32.
        """
        rows, columns = torch.triu_indices(self.feature_dim, self.feature_dim)
        tensors = {"means": self.stacked_means().float(), "triangle": self.scatter[rows, columns].float()}
        try:
            return tensors_to_bytes(tensors, {"counts": self.counts})
        except CorruptWeights as exc:
            raise UnsafeStatistics(exc.reason) from exc

    @classmethod
    def from_bytes(cls, data: bytes) -> "ClassStatistics":
        """Statistics from a peer's bytes; that they could be of some samples is checked, not that they are.

        Raises:
            UnsafeStatistics: If the bytes are malformed, shapes or the number of classes disagree, a class
                has no name, a count is outside 1 to 2^40, a value is not finite, or the scatter is not
                positive semi-definite up to the rounding of float32.
        """
        try:
            tensors, config = tensors_from_bytes(data)
        except CorruptWeights as exc:
            raise UnsafeStatistics(exc.reason) from exc
        if tensors.keys() != {"means", "triangle"} or config.keys() != {"counts"}:
            raise UnsafeStatistics(f"tensors {sorted(tensors)} and fields {sorted(config)}")
        counts = _checked_counts(config["counts"])
        means_CD, triangle = tensors["means"].double(), tensors["triangle"].double()
        if means_CD.ndim != 2 or means_CD.shape[0] != len(counts) or means_CD.shape[1] == 0:
            raise UnsafeStatistics(f"means of shape {tuple(means_CD.shape)} for {len(counts)} classes")
        num_features = means_CD.shape[1]
        if triangle.shape != (num_features * (num_features + 1) // 2,):
            raise UnsafeStatistics(f"triangle of shape {tuple(triangle.shape)} for {num_features} features")

        rows, columns = torch.triu_indices(num_features, num_features)
        upper = torch.zeros(num_features, num_features, dtype=torch.float64)
        upper[rows, columns] = triangle
        scatter = _mirrored(upper)
        _require_positive(scatter)
        return cls(counts, dict(zip(sorted(counts), means_CD, strict=True)), scatter)


def merge(first: ClassStatistics, second: ClassStatistics) -> ClassStatistics:
    """Statistics of two disjoint sets of samples together; classes may be shared or not.

    Raises:
        UnsafeStatistics: If the two differ in feature dimension.
    """
    return _fold([first, second])


def sum_contributions(contributions: Mapping[Key, ClassStatistics]) -> ClassStatistics:
    """All contributions merged in sorted key order.

    The result is a function of the set of (key, statistics) pairs alone, to the last bit: neither insertion
    order nor a contribution that was held once and dropped since leaves a trace.

    Raises:
        UnsafeStatistics: If there is no contribution, or two differ in feature dimension.
    """
    if not contributions:
        raise UnsafeStatistics("no contribution to sum")
    return _fold([contributions[key] for key in sorted(contributions)])


def _fold(parts: Sequence[ClassStatistics]) -> ClassStatistics:
    counts = dict(parts[0].counts)
    means = dict(parts[0].means)
    scatter = parts[0].scatter.clone()
    for part in parts[1:]:
        if part.feature_dim != scatter.shape[0]:
            raise UnsafeStatistics(f"{part.feature_dim} features among statistics of {scatter.shape[0]}")
        # Sorted, so that neither sum nor product depends on the order in which a mapping was filled.
        shared = sorted(counts.keys() & part.counts.keys())
        scatter += part.scatter
        if shared:
            weighted_CD = torch.stack(
                [
                    (means[name] - part.means[name])
                    * (counts[name] * part.counts[name] / (counts[name] + part.counts[name])) ** 0.5
                    for name in shared
                ]
            )
            scatter.addmm_(weighted_CD.T, weighted_CD)
        for name in shared:
            total = counts[name] + part.counts[name]
            means[name] = (counts[name] * means[name] + part.counts[name] * part.means[name]) / total
            counts[name] = total
        for name in part.counts.keys() - counts.keys():
            counts[name], means[name] = part.counts[name], part.means[name]
    return ClassStatistics(counts, means, _mirrored(scatter))


def _mirrored(scatter: Tensor) -> Tensor:
    """The upper triangle on both sides: a matrix product is symmetric only up to rounding."""
    return torch.triu(scatter) + torch.triu(scatter, diagonal=1).T


def _checked_counts(counts: object) -> dict[str, int]:
    if not isinstance(counts, dict) or not counts or "" in counts:
        raise UnsafeStatistics("counts are not an object of named classes")
    for name, count in counts.items():
        # The exact type: True is an int to isinstance.
        if type(count) is not int or not 1 <= count <= MAX_COUNT:
            raise UnsafeStatistics(f"class {name!r} counts {count!r} samples")
    return counts


def _require_positive(scatter: Tensor) -> None:
    # Rounding each entry to float32 moves no eigenvalue by more than 2^-24 |S|_F <= 2^-24 tr(S), so honest
    # statistics always pass; the tiny constant lets S = 0 (one sample a class) pass as well.
    slack = 2.0**-23 * scatter.trace() + torch.finfo(torch.float64).tiny
    shifted = scatter + slack * torch.eye(len(scatter), dtype=torch.float64)
    if torch.linalg.cholesky_ex(shifted).info != 0:
        raise UnsafeStatistics("the scatter is not positive semi-definite")
