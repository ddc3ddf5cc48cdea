"""The affine map that comes nearest to given targets: a ridge regression whose bias is not held back.

Legend: N items, I inputs, U targets of an item.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Affine", "affine_fit"]


class Affine(NamedTuple):
    """W x + b."""

    weight_UI: Tensor
    """float64."""
    bias_U: Tensor
    """float64."""


def affine_fit(inputs_NI: Tensor, targets_NU: Tensor, *, ridge: float) -> Affine:
    """argmin sum_n |W x_n + b - t_n|^2 + lambda tr(X^T X)/I |W|^2, X centred.

    Args:
        inputs_NI: Of any float type; one row at least.
        targets_NU: Likewise.
        ridge: lambda, above 0.
    """
    inputs, targets = inputs_NI.double(), targets_NU.double()
    mean_I, mean_U = inputs.mean(dim=0), targets.mean(dim=0)
    centred_NI = inputs - mean_I
    gram_II = centred_NI.T @ centred_NI
    # Inputs that are all the same say nothing, and then W is 0.
    gram_II.diagonal().add_(ridge * gram_II.trace() / len(gram_II) + 1e-12)
    weight_UI = torch.linalg.solve(gram_II, centred_NI.T @ (targets - mean_U)).T
    return Affine(weight_UI, mean_U - weight_UI @ mean_I)
