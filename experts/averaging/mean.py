"""The mean of an expert's replicas: theta_new = (1/M) sum_j theta_j (proposal, section 2.2).

Replicas share an initialisation, so their parameters mean the same and can be averaged entry by entry. The
average is applied as a delta, so that steps taken while a round was under way are kept.
"""

from collections.abc import Sequence

import torch
from torch import nn

from experts.checkpoint import flat_parameters, load_flat
from experts.errors import NothingToLearnFrom, ShapeMismatch

__all__ = ["add_delta", "mean_of"]


def mean_of(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of the replicas' flat parameters, summed in float64 and rounded once.

    This is what an exchange between peers must come to; it does not depend on their order beyond float64.

    Args:
        vectors: At least one vector ``(num_parameters,)``, all of one length.
    Returns: float32 ``(num_parameters,)``.
    Raises: NothingToLearnFrom: If there is no vector. ShapeMismatch: If their shapes differ.
    """
    if not vectors:
        raise NothingToLearnFrom("an average of no replicas")
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for index, vector in enumerate(vectors):
        if vector.shape != total.shape:
            raise ShapeMismatch(f"replica {index}", expected=total.shape, got=vector.shape)
        total += vector
    return (total / len(vectors)).float()


def add_delta(module: nn.Module, delta: torch.Tensor) -> None:
    """Adds ``delta``, average minus what this replica sent, to the module's parameters in place.

    Adding the difference instead of writing the average keeps the steps taken since the replica was sent.

    Args:
        delta: float32 ``(num_parameters,)`` in the order of `flat_parameters`.
    Raises: ShapeMismatch: If the delta is not as long as the module has parameters.
    """
    flat = flat_parameters(module)
    if delta.shape != flat.shape:
        raise ShapeMismatch("delta", expected=flat.shape, got=delta.shape)
    load_flat(module, flat + delta)
