"""The shared scale in which a scatter survives eight bits: whitened by the calibration set's within scatter.

    L L^T = S_ref + 3e-3 tr(S_ref)/D I,    Z = L^-1 S L^-T,    S = L Z L^T

with S_ref per sample. Features of a trunk are strongly correlated, and the small eigenvalues that a ridge solution
lives on drown in the rounding of the large ones. In Z the directions of S have comparable variance, so an error of a
given size does the same harm in all of them.

L is agreed on once by its digest, as float32: whoever makes it and whoever reads it whiten with the same bits. It is
shared state of a mesh, and counts as bytes wherever bytes are counted.

Legend: D feature, T packed triangle of D x D.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor

from experts.errors import UnsafeStatistics
from experts.router.packing import pack, unpack
from experts.router.statistics import ClassStatistics, checked_fingerprint
from experts.router.symmetric import factorise, mirror, packed_triangle, unpacked_triangle

__all__ = ["WhiteningReference"]

_RIDGE = 3e-3
"""Share of the mean variance added to all: a direction without variance in the calibration set has some elsewhere."""

_WORST_CONDITION = 1e6
"""Of L's diagonal. The ridge keeps an honest one below sqrt(D / 3e-3), 1,200 at D = 4096."""


@dataclass(frozen=True, eq=False)
class WhiteningReference:
    """L, and what may be whitened with it. Treated as immutable."""

    factor: Tensor
    """L^T, float64 ``(D, D)``, upper triangular with a positive diagonal, its values those of float32."""

    fingerprint: str | None
    """Of the statistics that it is for."""

    @classmethod
    def from_statistics(cls, stats: ClassStatistics) -> "WhiteningReference":
        """The reference of a calibration set's statistics, of which it reveals the scatter.

        Raises:
            UnsafeStatistics: If no feature varies within a class, or the scatter is not positive semi-definite.
        """
        matrix = stats.scatter / stats.num_samples
        variance = matrix.trace() / stats.feature_dim
        if not variance > 0:
            raise UnsafeStatistics("no feature of the calibration set varies within a class")
        matrix.diagonal().add_(_RIDGE * variance)
        if not factorise(matrix):
            raise UnsafeStatistics("the calibration set's scatter is not positive semi-definite")
        return cls(torch.triu(matrix.float().double()), stats.fingerprint)

    @property
    def feature_dim(self) -> int:
        """D."""
        return len(self.factor)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `to_bytes`."""
        return sha256(self.to_bytes()).hexdigest()

    def whiten(self, scatter: Tensor) -> Tensor:
        """Z of S, float64 ``(D, D)``, bit-symmetric."""
        half = torch.linalg.solve_triangular(self.factor.T, scatter, upper=False)
        return mirror(torch.linalg.solve_triangular(self.factor, half, upper=True, left=False).contiguous())

    def restore(self, whitened: Tensor) -> Tensor:
        """S of Z, float64 ``(D, D)``, bit-symmetric."""
        return mirror(self.factor.T @ (whitened @ self.factor))

    def to_bytes(self) -> bytes:
        """Packed float32, 2 D (D + 1) bytes; equal references give equal bytes."""
        return pack({"factor": packed_triangle(self.factor, torch.float32)}, {"fingerprint": self.fingerprint})

    @classmethod
    def from_bytes(cls, data: bytes) -> "WhiteningReference":
        """A reference from bytes, known by their digest or not.

        Raises:
            UnsafeStatistics: If the bytes are malformed, are no triangle, or L is not finite with a diagonal above 0
                whose entries are within a factor of 1e6.
        """
        tensors, config = unpack(data, {"factor": torch.float32})
        if config.keys() != {"fingerprint"}:
            raise UnsafeStatistics(f"fields {sorted(config)}")
        fingerprint = None if config["fingerprint"] is None else checked_fingerprint(config["fingerprint"])
        triangle_T = tensors["factor"]
        num_features = int((2 * triangle_T.numel()) ** 0.5)
        if triangle_T.shape != (num_features * (num_features + 1) // 2,) or num_features == 0:
            raise UnsafeStatistics(f"a factor of shape {tuple(triangle_T.shape)} is no triangle")
        factor = torch.triu(unpacked_triangle(triangle_T, num_features))
        least, most = factor.diagonal().min(), factor.diagonal().max()
        if not 0 < least <= most <= _WORST_CONDITION * least:
            raise UnsafeStatistics("the factor is close to singular")
        return cls(factor, fingerprint)
