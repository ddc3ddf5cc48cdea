"""Experts that have learned real digits, for tests that carry them over into other forms."""

from collections.abc import Sequence
from functools import cache

from mesh_in_memory import MESH, digits, form, tiny_trunk

from experts.checkpoint import weights_to_bytes
from experts.data.dataset import class_columns
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.generators import torch_generator
from experts.trunk.base import features_of
from meshnode.trainer.messages import ExpertWeights
from protocol.spec import ExpertForm

__all__ = ["CLASSES", "SEEN", "WIDER", "learned_weights", "weights_of"]

CLASSES = ("0", "1")
SEEN = digits(*CLASSES).select(range(200))
"""What the experts have learned from."""

WIDER = form("mlp", hidden=6)
"""A form that an expert of the mesh's own form fits into."""


@cache
def learned_weights(*, hidden: int = 4, seed: str = "learned", steps: int = 400) -> bytes:
    """Weights of an expert that has learned the digits 0 and 1; those of the mesh have 4 hidden units."""
    module = MESH.architecture(form("mlp", hidden=hidden), len(CLASSES)).build(seed)
    data = DistillationData(
        features_ND=features_of(tiny_trunk(), SEEN.images), labels_N=class_columns(SEEN.labels, CLASSES)
    )
    run = DistillationRun(module, data, DistillationConfig(steps=steps, alpha=1.0), torch_generator(0, seed))
    while not run.done:
        run.step()
    return weights_to_bytes(module)


def weights_of(kind: ExpertForm, weights: bytes, classes: Sequence[str] = CLASSES) -> ExpertWeights:
    """As the trainer is told of them."""
    return ExpertWeights(architecture=dict(MESH.architecture(kind, len(classes)).to_config()), weights=weights)
