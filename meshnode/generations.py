"""What a new generation of a replica consists of, made beside the loop: its module, its bytes, and how far it drifted.

Legend: P parameters.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from experts.architectures.base import Architecture
from experts.averaging import Averaged
from experts.checkpoint import flat_parameters, load_weights, weights_to_array, with_parameters
from meshnode.hosted import HostedExpert
from protocol.identifiers import Digest, ExpertUid, digest_of

__all__ = ["Built", "build_first", "build_next", "digest_of_vector", "drift_of"]

_ROUNDING = 1e-6
"""Relative: a sum of float32 that is so near the mean is the mean. Replicas that learned nothing meanwhile then hold
the same bits, and find after a restart that they are one."""


class Built(NamedTuple):
    """A generation that is not committed yet."""

    module: nn.Module
    data: memoryview
    """The weights as safetensors."""
    reference: np.ndarray | None
    """As `HostedExpert.reference`, and its digest and the drift from it."""
    digest: Digest | None
    drift: float


def build_first(uid: ExpertUid, architecture: Architecture, weights: bytes, *, device: str, is_shared: bool) -> Built:
    """The first generation of an expert that comes with weights.

    Args:
        uid: The expert.
        architecture: Its form.
        weights: As safetensors, from anyone.
        device: Where the module is to live.
        is_shared: Whether other replicas have these weights, or start from them.

    Raises:
        CorruptWeights: They are not those of the form.
    """
    module = architecture.build(uid)
    load_weights(module, weights)
    vector = flat_parameters(module).numpy()
    reference = vector if is_shared else None
    data = weights_to_array(module).data
    return Built(module.to(device), data, reference, digest_of_vector(reference), drift_of(vector, reference))


def build_next(expert: HostedExpert, change: np.ndarray | Averaged, *, device: str) -> Built:
    """What becomes of an expert with new parameters, or with what a round adds to the present ones.

    Args:
        expert: As it serves.
        change: The parameters, float32 ``(P,)``, or what a round came to.
        device: Where the module is to live.
    """
    reference, digest = expert.reference, expert.reference_digest
    if isinstance(change, Averaged):
        vector = flat_parameters(expert.module).numpy()
        vector += change.delta
        reference, digest = change.mean, digest_of_vector(change.mean)
        if drift_of(vector, reference) <= _ROUNDING:
            np.copyto(vector, reference)
    else:
        vector = change
    module = with_parameters(expert.module, torch.from_numpy(vector)).cpu()
    data = weights_to_array(module).data
    return Built(module.to(device), data, reference, digest, drift_of(vector, reference))


def digest_of_vector(vector: np.ndarray | None) -> Digest | None:
    """By which the members of a round tell whether they hold the same reference."""
    return None if vector is None else digest_of(vector.data)


def drift_of(vector: np.ndarray, reference: np.ndarray | None) -> float:
    """Distance of the parameters from the reference, relative to its norm; infinite without one."""
    if reference is None:
        return math.inf
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(vector - reference)) / norm if norm else math.inf
