"""Class statistics in eight bits a number: whitened, as correlations, clipped.

    Z = L^-1 S L^-T,    v_i = sqrt(Z_ii),    R_ij = Z_ij / (v_i v_j),    a = min(8 sd(R_ij, i < j), 1)
    q_ij = round(127 clip(R_ij, +-a) / a),    R'_ij = s q_ij for i < j, R'_ii = 1

with L of the shared `WhiteningReference`. q travels as int8, v as float32, means as float16, counts as they are:
about D (D + 1)/2 + 2 C D bytes. The step s is a/127, or less where rounding and clipping cost R' its positive
semi-definiteness: R' is then shrunk towards I until it has it. So a receiver can insist on it, and every sum of
what it takes can be solved. After merging, `raise_eigenvalues` lifts the eigenvalues of the merged R to at least .05:
what eight bits leave of smaller ones is rounding noise, which a ridge solution would divide by.

Plain int8 or bfloat16 of S or of its correlations does not do: S has directions far below the rounding of others.

Legend: C class, D feature, X the D (D - 1)/2 pairs of features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from experts.errors import FingerprintMismatch, UnsafeStatistics
from experts.router.exact import LARGEST
from experts.router.packing import pack, unpack
from experts.router.statistics import ClassStatistics, checked_counts, checked_fingerprint
from experts.router.symmetric import factorise, mirror, require_positive
from experts.router.whitening import WhiteningReference

__all__ = ["decode8", "encode8", "raise_eigenvalues"]

_CLIP_DEVIATIONS = 8.0
_LEVELS = 127

_FLOOR = 0.05
"""Least eigenvalue of the merged correlations."""

_DEAD = 1e-6
"""A feature whose deviation is below this share of the largest counts as one without variance: its correlations
would be those of rounding errors."""

_SLACK = 1e-6
"""By how much an eigenvalue of R' may be below 0: what float64 makes of a matrix that is exactly singular."""

_TYPES: Mapping[str, torch.dtype] = {
    "correlations": torch.int8,
    "deviations": torch.float32,
    "means": torch.float16,
    "step": torch.float32,
}


def encode8(stats: ClassStatistics, reference: WhiteningReference) -> bytes:
    """The 8-bit wire form; equal statistics give equal bytes.

    Raises:
        FingerprintMismatch: If the reference is for other features.
        UnsafeStatistics: If it is of another dimension, or a mean does not fit float16.
    """
    _require_reference(stats.fingerprint, stats.feature_dim, reference)
    correlations, deviations_D = _correlations(reference.whiten(stats.scatter))
    correlations.fill_diagonal_(0.0)
    num_live = int((deviations_D > 0).sum())
    deviation = (correlations.square().sum() / max(num_live * (num_live - 1), 1)).sqrt().item()
    limit = min(_CLIP_DEVIATIONS * deviation, 1.0)
    steps = torch.zeros_like(correlations)
    if limit > 0:
        steps = (correlations.clamp_(-limit, limit) * (_LEVELS / limit)).round_()
    tensors = {
        "correlations": _strict_triangle(steps),
        "deviations": deviations_D.float(),
        "means": stats.stacked_means().half(),
        "step": _safe_step(steps, limit / _LEVELS),
    }
    config = {"counts": dict(stats.counts), "fingerprint": stats.fingerprint, "reference": reference.digest}
    return pack(tensors, config)


def decode8(data: bytes, reference: WhiteningReference) -> ClassStatistics:
    """Statistics from a peer's 8 bits; that they could be of some samples is checked, not that they are.

    Nothing is allocated before the bytes are as many as the reference's dimension asks for.

    Raises:
        FingerprintMismatch: If they are over other features than the reference.
        UnsafeStatistics: If the bytes are malformed or made with another reference, shapes or the number of classes
            disagree, a count is outside 1 to 2^40, a value is not finite or out of range, a feature without
            variance has a correlation, or the correlations are not positive semi-definite.
    """
    tensors, config = unpack(data, _TYPES)
    if config.keys() != {"counts", "fingerprint", "reference"}:
        raise UnsafeStatistics(f"fields {sorted(config)}")
    fingerprint = None if config["fingerprint"] is None else checked_fingerprint(config["fingerprint"])
    counts, num_features = checked_counts(config["counts"]), reference.feature_dim
    shapes = {
        "correlations": (num_features * (num_features - 1) // 2,),
        "deviations": (num_features,),
        "means": (len(counts), num_features),
        "step": (1,),
    }
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UnsafeStatistics(f"{name} of shape {tuple(tensors[name].shape)}, not {shape}")
    _require_reference(fingerprint, num_features, reference)
    if config["reference"] != reference.digest:
        raise UnsafeStatistics("whitened with another reference")
    deviations_D, step = tensors["deviations"].double(), tensors["step"].double().item()
    if bool((deviations_D < 0).any()) or not 0 <= step <= 1 / _LEVELS:
        raise UnsafeStatistics("a deviation is below 0, or the step is not between 0 and 1/127")

    correlations = _from_strict_triangle(tensors["correlations"], num_features).mul_(step)
    if bool((correlations[deviations_D == 0] != 0).any()):
        raise UnsafeStatistics("a feature without variance is correlated")
    correlations.fill_diagonal_(1.0)
    require_positive(correlations, slack=_SLACK)
    scatter = reference.restore(_scaled(correlations, deviations_D))
    if not bool((scatter.abs() <= LARGEST).all()):  # not true of NaN either
        raise UnsafeStatistics(f"a number of the scatter exceeds {LARGEST:g}")
    means_CD = tensors["means"].double()
    return ClassStatistics(counts, dict(zip(sorted(counts), means_CD, strict=True)), scatter, fingerprint)


def raise_eigenvalues(
    stats: ClassStatistics, reference: WhiteningReference, *, floor: float = _FLOOR
) -> ClassStatistics:
    """Merged statistics whose whitened correlations have no eigenvalue below ``floor``; before they are solved.

    Statistics that have none are returned as they are. It is a step of solving, not of merging: what goes on being
    merged, and what is passed on, is what came before it.

    Raises:
        FingerprintMismatch: If the reference is for other features.
        UnsafeStatistics: If it is of another dimension.
    """
    _require_reference(stats.fingerprint, stats.feature_dim, reference)
    correlations, deviations_D = _correlations(reference.whiten(stats.scatter))
    correlations.fill_diagonal_(1.0)
    shifted = correlations.clone()
    shifted.diagonal().sub_(floor)
    # A Cholesky factorisation tells at a thirtieth of the cost of the eigenvalues.
    if factorise(shifted):
        return stats
    values_D, vectors = torch.linalg.eigh(correlations)
    raised = mirror((vectors * values_D.clamp(min=floor)) @ vectors.T)
    scatter = reference.restore(_scaled(raised, deviations_D))
    return ClassStatistics(stats.counts, stats.means, scatter, stats.fingerprint)


def _correlations(whitened: Tensor) -> tuple[Tensor, Tensor]:
    """R ``(D, D)``, 0 for features without variance, and v ``(D,)``, 0 for these; overwrites Z."""
    deviations_D = whitened.diagonal().clamp(min=0).sqrt()
    deviations_D[deviations_D <= _DEAD * deviations_D.max()] = 0.0
    inverse_D = torch.where(deviations_D > 0, 1 / deviations_D, 0.0)
    return _scaled(whitened, inverse_D), deviations_D


def _scaled(matrix: Tensor, factors_D: Tensor) -> Tensor:
    """Row and column i times factor i, in place; symmetric matrices stay so bit by bit."""
    return mirror(matrix.mul_(factors_D).mul_(factors_D[:, None]))


def _safe_step(steps: Tensor, step: float) -> Tensor:
    """The step, made small enough for I + step * steps to be positive semi-definite, float32 ``(1,)``."""
    rounded = torch.tensor([step], dtype=torch.float32)
    matrix = steps * rounded.double()
    matrix.diagonal().add_(1.0)
    if not factorise(matrix):
        least = torch.linalg.eigvalsh(steps)[0].item()
        # A little more than enough: neither eigenvalues nor float32 are exact.
        rounded = torch.tensor([(1 - _SLACK) / -least], dtype=torch.float32)
    return rounded


def _strict_triangle(matrix: Tensor) -> Tensor:
    """What is above the diagonal, row by row, int8 ``(X,)``."""
    size = len(matrix)
    return torch.cat([matrix[row, row + 1 :].to(torch.int8) for row in range(size)])


def _from_strict_triangle(triangle_X: Tensor, size: int) -> Tensor:
    """The inverse of `_strict_triangle` with a diagonal of 0, float64 ``(D, D)``."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    start = 0
    for row in range(size):
        matrix[row, row + 1 :] = triangle_X[start : start + size - row - 1]
        start += size - row - 1
    return mirror(matrix)


def _require_reference(fingerprint: str | None, feature_dim: int, reference: WhiteningReference) -> None:
    if fingerprint != reference.fingerprint:
        raise FingerprintMismatch(expected=reference.fingerprint, got=fingerprint)
    if feature_dim != reference.feature_dim:
        raise UnsafeStatistics(f"{feature_dim} features among statistics of {reference.feature_dim}")
