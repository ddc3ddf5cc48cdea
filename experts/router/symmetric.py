"""Symmetric matrices handled in place: at D = 4096 each copy in float64 is 134 MB.

A symmetric matrix is kept whole, both triangles bit-equal, since products and sums are fastest so; it travels and is
summed exactly as its packed upper triangle, row by row: D (D + 1) / 2 numbers.

Legend: D feature.
"""

import torch
from torch import Tensor

from experts.errors import UnsafeStatistics

__all__ = ["factorise", "mirror", "packed_triangle", "require_positive", "unpacked_triangle"]

_BLOCK = 512
"""Rows at a time where a matrix is mirrored: the copy that this takes is small beside the matrix."""


def mirror(scatter: Tensor) -> Tensor:
    """Writes the upper triangle over the lower one, in place: a matrix product is symmetric only up to rounding."""
    size = len(scatter)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        block = scatter[start:end, start:end]
        index = torch.arange(end - start)
        block.copy_(torch.where(index[:, None] <= index, block, block.T))
        scatter[end:, start:end] = scatter[start:end, end:].T
    return scatter


def packed_triangle(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The upper triangle of ``(D, D)`` row by row, ``(D (D + 1) / 2,)`` in ``dtype``."""
    size = len(matrix)
    triangle = torch.empty(size * (size + 1) // 2, dtype=dtype)
    start = 0
    for row in range(size):
        triangle[start : start + size - row] = matrix[row, row:]
        start += size - row
    return triangle


def unpacked_triangle(triangle: Tensor, size: int) -> Tensor:
    """The inverse of `packed_triangle`: float64 ``(D, D)``, bit-symmetric."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    start = 0
    for row in range(size):
        matrix[row, row:] = triangle[start : start + size - row]
        start += size - row
    return mirror(matrix)


def require_positive(matrix: Tensor, *, slack: float) -> None:
    """Checks a symmetric float64 matrix ``(D, D)`` for negative eigenvalues.

    Args:
        matrix: Left as it is.
        slack: By how much an eigenvalue may be below 0.

    Raises:
        UnsafeStatistics: If an eigenvalue is lower.
    """
    shifted = matrix.clone()
    # The tiny constant lets a matrix of zeros (one sample a class) pass as well.
    shifted.diagonal().add_(slack + torch.finfo(torch.float64).tiny)
    if not factorise(shifted):
        raise UnsafeStatistics("the scatter is not positive semi-definite")


def factorise(matrix: Tensor) -> bool:
    """Overwrites a symmetric matrix by L^T, its Cholesky factor in the upper triangle; whether it has one.

    LAPACK works on columns. Handed the transpose of a matrix stored by rows, which for a symmetric one is itself,
    it needs no copy: at D = 4096 one of 134 MB.
    """
    info = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(matrix.T, out=(matrix.T, info))
    return info.item() == 0
