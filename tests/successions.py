"""Successions as a migration makes them, without distillation: the same function in another form, or any weights."""

from typing import cast

import torch
from mesh_in_memory import MESH, MemoryNode, form
from torch import nn

from experts.checkpoint import weights_to_bytes
from meshnode.forms import form_of
from meshnode.hosted import MIGRATED, HostedExpert
from protocol.identifiers import digest_of
from protocol.lineage import (
    Accuracy,
    LayerTransfer,
    Lineage,
    Succession,
    TransferMethod,
    decode_lineage,
    encode_lineage,
)
from protocol.spec import ExpertForm

__all__ = ["LAYER", "METHOD", "WIDER", "lineage_of_successor", "migrate", "other_weights", "widened"]

WIDER = form("mlp", hidden=8)
METHOD = TransferMethod(similarity="role", score="empirical", beta=1.0, refit=False, distillation_steps=10)
ACCURACY = Accuracy(old=0.9, new=0.9, samples=100)
LAYER = LayerTransfer(
    name="hidden",
    source="hidden",
    old_units=4,
    new_units=8,
    mapped=4,
    duplicated=0,
    merged=0,
    dropped=0,
    importance_kept=1.0,
)


def widened(old: HostedExpert) -> bytes:
    """An expert with one hidden layer as a wider one that computes the same: its further units go out with weight 0."""
    module = MESH.architecture(WIDER, len(old.classes)).build("any")
    narrow, wide = cast("nn.Module", old.module).state_dict(), module.state_dict()
    units = len(narrow["hidden.weight"])
    with torch.no_grad():
        for name in ("hidden.weight", "hidden.bias"):
            wide[name][:units] = narrow[name]
        wide["output.weight"].zero_()
        wide["output.weight"][:, :units] = narrow["output.weight"]
        wide["output.bias"].copy_(narrow["output.bias"])
    return weights_to_bytes(module)


def other_weights(form: ExpertForm, num_classes: int, seed: str = "any") -> bytes:
    """Weights of the form that compute something else."""
    return weights_to_bytes(MESH.architecture(form, num_classes).build(seed))


def lineage_of_successor(
    node: MemoryNode,
    old: HostedExpert,
    form: ExpertForm,
    weights: bytes,
    *,
    accuracy: Accuracy | None = ACCURACY,
) -> bytes:
    """The document of a succession that `node` makes."""
    step = Succession(
        parent=old.uid,
        parent_form=form_of(old.architecture),
        parent_weights=old.weights,
        uid=MESH.uid_of(old.classes, form, old.line),
        form=form,
        classes=old.classes,
        weights=digest_of(weights),
        method=METHOD,
        layers=(LAYER,),
        accuracy=accuracy,
        made_at=1_700_000_000.0,
        peer_id=node.peer_id,
    )
    if old.lineage is None:
        return encode_lineage(Lineage((step,)))
    return encode_lineage(decode_lineage(node.state.blobs.get(old.lineage)).then(step))


async def migrate(
    node: MemoryNode,
    old: HostedExpert,
    form: ExpertForm = WIDER,
    *,
    weights: bytes | None = None,
    accuracy: Accuracy | None = ACCURACY,
) -> HostedExpert:
    """Have a node put an expert of another form in the place of one; without weights, one that computes the same."""
    weights = widened(old) if weights is None else weights
    return await node.host.succeed(
        old.uid,
        architecture=MESH.architecture(form, len(old.classes)),
        weights=weights,
        lineage=lineage_of_successor(node, old, form, weights, accuracy=accuracy),
        cause=MIGRATED,
    )
