"""What the router remembers of data: a count and a mean per class and one within-class scatter.

These are sufficient for ridge regression, so statistics merged from any parts in any order are those of the
whole: the router forgets nothing, and peers that sum theirs hold the central router. Merging is the pairwise
update of Chan, Golub and LeVeque (1979, "Updating formulae and a pairwise algorithm for computing sample
variances", Stanford STAN-CS-79-773), per class:

    n = n_a + n_b,   mu = (n_a mu_a + n_b mu_b) / n,   S = S_a + S_b + sum_c (n_a n_b / n)_c d_c d_c^T

with d_c the difference of the means. New rows are an update by their own statistics: neither rows seen before
nor their number matter to its cost. Statistics of differing fingerprints (`experts.router.fingerprint`) are
sums over different features and are never merged.

As bytes, means and the packed upper triangle of S travel in float32: half the size, and what arrives is
symmetric by construction. At D = 4096 one D x D matrix of float64 is 134 MB, so S is filled, mirrored and
checked in place wherever that is possible.

Legend: B batch, D feature, C class, R rows of several classes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from experts.errors import FingerprintMismatch, ShapeMismatch, UnsafeStatistics
from experts.router.packing import pack, unpack
from experts.router.symmetric import mirror, packed_triangle, require_positive, unpacked_triangle

__all__ = [
    "ClassStatistics",
    "checked_counts",
    "checked_fingerprint",
    "checked_name",
    "merge",
    "sum_contributions",
]

MAX_COUNT = 2**40
"""Samples of one class in one contribution; sums of thousands of these are still exact in float64."""

_ROWS = 1024
"""Rows, of however many classes, whose products are added to the scatter at once: adding those of each of 1,000
classes by themselves costs more than the products."""


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

    fingerprint: str | None = None
    """What made the features, as `statistics_fingerprint` names it; None where something else vouches that all
    statistics are over the same features, as the id of a mesh does."""

    @classmethod
    def from_features(cls, h_BD: Tensor, labels: Sequence[str], *, fingerprint: str | None = None) -> "ClassStatistics":
        """Statistics of one batch, accumulated in float64.

        Args:
            h_BD: Features ``(B, D)`` of any floating type, B and D at least 1.
            labels: B class names.
            fingerprint: Of what made the features.

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
        centred: list[Tensor] = []
        last = max(rows_of)
        for label in sorted(rows_of):
            h_class = h_BD[rows_of[label]].double().cpu()
            counts[label] = len(h_class)
            means[label] = h_class.mean(dim=0)
            centred.append(h_class - means[label])
            if sum(map(len, centred)) >= _ROWS or label == last:
                centred_RD = torch.cat(centred)
                scatter.addmm_(centred_RD.T, centred_RD)
                centred.clear()
        return cls(counts, means, mirror(scatter), fingerprint)

    def updated(self, h_BD: Tensor, labels: Sequence[str]) -> "ClassStatistics":
        """These statistics and B rows more, in O(B D^2) however many rows there were before.

        Args:
            h_BD: New features ``(B, D)``, of the same fingerprint, which is for the caller to know.
            labels: B class names, known before or not.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)`` with one label a row.
            UnsafeStatistics: If a feature is not finite.
        """
        if h_BD.ndim != 2 or h_BD.shape[1] != self.feature_dim:
            raise ShapeMismatch("features", expected=("B", self.feature_dim), got=tuple(h_BD.shape))
        return merge(self, ClassStatistics.from_features(h_BD, labels, fingerprint=self.fingerprint))

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
        tensors = {"means": self.stacked_means().float(), "triangle": packed_triangle(self.scatter, torch.float32)}
        config: dict[str, object] = {"counts": dict(self.counts)}
        if self.fingerprint is not None:
            config["fingerprint"] = self.fingerprint
        return pack(tensors, config)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ClassStatistics":
        """Statistics from a peer's bytes; that they could be of some samples is checked, not that they are.

        Raises:
            UnsafeStatistics: If the bytes are malformed, shapes or the number of classes disagree, a class
                has no name, a count is outside 1 to 2^40, a fingerprint is not a digest, a value is not
                finite, or the scatter is not positive semi-definite up to the rounding of float32.
        """
        tensors, config = unpack(data, {"means": torch.float32, "triangle": torch.float32})
        if config.keys() - {"fingerprint"} != {"counts"}:
            raise UnsafeStatistics(f"fields {sorted(config)}")
        counts = checked_counts(config["counts"])
        fingerprint = checked_fingerprint(config["fingerprint"]) if "fingerprint" in config else None
        means_CD, triangle = tensors["means"].double(), tensors["triangle"]
        if means_CD.ndim != 2 or means_CD.shape[0] != len(counts) or means_CD.shape[1] == 0:
            raise UnsafeStatistics(f"means of shape {tuple(means_CD.shape)} for {len(counts)} classes")
        num_features = means_CD.shape[1]
        if triangle.shape != (num_features * (num_features + 1) // 2,):
            raise UnsafeStatistics(f"triangle of shape {tuple(triangle.shape)} for {num_features} features")
        scatter = unpacked_triangle(triangle, num_features)
        # Rounding each entry to float32 moves no eigenvalue by more than 2^-24 |S|_F <= 2^-24 tr(S), so honest
        # statistics always pass.
        require_positive(scatter, slack=2.0**-23 * scatter.trace().item())
        return cls(counts, dict(zip(sorted(counts), means_CD, strict=True)), scatter, fingerprint)


def merge(first: ClassStatistics, second: ClassStatistics) -> ClassStatistics:
    """Statistics of two disjoint sets of samples together; classes may be shared or not.

    Raises:
        FingerprintMismatch: If the two are over different features.
        UnsafeStatistics: If the two differ in feature dimension.
    """
    return _fold([first, second])


def sum_contributions(contributions: Mapping[Key, ClassStatistics]) -> ClassStatistics:
    """All contributions merged in sorted key order.

    The result is a function of the set of (key, statistics) pairs alone, to the last bit: neither insertion
    order nor a contribution that was held once and dropped since leaves a trace.

    Raises:
        FingerprintMismatch: If two are over different features.
        UnsafeStatistics: If there is no contribution, or two differ in feature dimension.
    """
    if not contributions:
        raise UnsafeStatistics("no contribution to sum")
    return _fold([contributions[key] for key in sorted(contributions)])


def checked_counts(counts: object) -> dict[str, int]:
    """Samples by class name as a peer sent them.

    Raises:
        UnsafeStatistics: If they are no object, a class has no name, or a count is outside 1 to 2^40.
    """
    if not isinstance(counts, dict) or not counts:
        raise UnsafeStatistics("counts are not an object of named classes")
    for name, count in counts.items():
        checked_name(name)
        # The exact type: True is an int to isinstance.
        if type(count) is not int or not 1 <= count <= MAX_COUNT:
            raise UnsafeStatistics(f"class {name!r} counts {count!r} samples")
    return counts


def checked_name(name: object) -> str:
    """A name as a peer sent it.

    Raises:
        UnsafeStatistics: If it is no text, or empty.
    """
    if not isinstance(name, str) or not name:
        raise UnsafeStatistics(f"{name!r} is not a name")
    return name


def _fold(parts: Sequence[ClassStatistics]) -> ClassStatistics:
    counts = dict(parts[0].counts)
    means = dict(parts[0].means)
    scatter = parts[0].scatter.clone()
    for part in parts[1:]:
        if part.fingerprint != parts[0].fingerprint:
            raise FingerprintMismatch(expected=parts[0].fingerprint, got=part.fingerprint)
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
    return ClassStatistics(counts, means, mirror(scatter), parts[0].fingerprint)


def checked_fingerprint(fingerprint: object) -> str:
    """A fingerprint as a peer sent it.

    Raises:
        UnsafeStatistics: If it is no SHA-256 in lowercase hexadecimal.
    """
    if not isinstance(fingerprint, str) or re.fullmatch("[0-9a-f]{64}", fingerprint) is None:
        raise UnsafeStatistics("the fingerprint is not a digest")
    return fingerprint
