"""A replica's file whose units stand in another replica's order: what began differently can then be averaged."""

from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import nn

from experts.checkpoint import load_weights, weights_to_bytes
from experts.generators import torch_generator
from experts.preservation.alignment import align
from experts.trunk.base import features_of
from meshnode.dismantling import images_in
from meshnode.errors import Refused
from meshnode.expert_files import FileExpert, expert_to_file, read_expert_file
from meshnode.mesh import Mesh
from protocol.identifiers import ExpertUid, digest_of

__all__ = ["AlignedFile", "aligned_file"]

_IMAGES = 2_000
"""Units are told apart by what they answer on so many."""


class AlignedFile(NamedTuple):
    """What came of it."""

    uid: ExpertUid
    data: bytes
    """The replica's file, with the reference's origin."""
    correlations: dict[str, float]
    """Of each hidden layer, how alike its units answer to those whose places they have now, in [-1, 1]."""
    moved: dict[str, int]
    """Of each hidden layer, units that have another place."""
    num_images: int


def aligned_file(mesh: Mesh, data: bytes, reference: bytes, folder: Path) -> AlignedFile:
    """Bring a replica into another's order of units.

    Args:
        mesh: Of both.
        data: The replica's file.
        reference: The other one's.
        folder: Task files with images of the expert's classes.

    Raises:
        ExpertFileRefused: One is no expert's file of this mesh.
        Refused: They are of different experts.
        NothingToLearnFrom: There is no image of the classes.
        NothingCorresponds: The kind does not say what its layers are for.
    """
    replica, fixed = read_expert_file(data, mesh), read_expert_file(reference, mesh)
    uid = replica.advert.uid
    if uid != fixed.advert.uid:
        raise Refused(f"the files are of two experts, {uid} and {fixed.advert.uid}")
    images = images_in(folder, replica.advert.classes)
    step = max(1, len(images) // _IMAGES)
    features_ND = features_of(mesh.trunk, images.images[::step]).cpu()
    result = align(
        replica.architecture,
        _module(replica),
        _module(fixed),
        features_ND,
        generator=torch_generator(0, f"align/{uid}"),
    )
    weights = weights_to_bytes(result.module)
    # To the mesh it is a generation of the reference's line from now on.
    advert = msgspec.structs.replace(fixed.advert, weights=digest_of(weights))
    written = expert_to_file(advert, mesh.mesh_id, fixed.origin, weights, fixed.lineage)
    return AlignedFile(uid, written, result.correlations, result.moved, len(features_ND))


def _module(expert: FileExpert) -> nn.Module:
    module = expert.architecture.build(expert.advert.uid)
    load_weights(module, expert.weights)
    return module
