"""An expert as a file that people carry from one machine to another: its weights, and what they are, in safetensors.

The metadata is what a peer's advert says of a replica, its lineage if it has ancestors, and the mesh. A file may come
from anyone: it is believed as far as an advert is, and its weights as far as the digest beside them.
"""

from typing import Final, Literal, NamedTuple

import msgspec

from experts.architectures.base import Architecture
from experts.checkpoint import load_tensors, tensors_from_bytes, tensors_to_bytes, weights_to_bytes
from experts.errors import ExpertsError
from meshnode.errors import ExpertFileRefused, Refused
from meshnode.mesh import Mesh
from protocol.errors import RefusedInput
from protocol.identifiers import Digest, ExpertUid, MeshId, digest_of
from protocol.lineage import Lineage, decode_lineage, encode_lineage, lineage_of
from protocol.records import ExpertAdvert
from protocol.wiretypes import DigestField, MeshIdField

__all__ = [
    "FileExpert",
    "already_hosted",
    "expert_to_file",
    "other_origin",
    "read_expert_file",
]


_SCHEMA: Final = "modulemesh.expert/1"


class _Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    schema: Literal["modulemesh.expert/1"]
    mesh: MeshIdField
    expert: ExpertAdvert
    origin: DigestField
    lineage: Lineage | None = None


class FileExpert(NamedTuple):
    """What a file holds, checked."""

    advert: ExpertAdvert
    architecture: Architecture
    weights: bytes
    """As they are kept and served; of the digest that the advert names."""
    origin: Digest
    """Of the weights that these descend from, as the file says."""
    lineage: bytes | None
    """The document that the advert names; None without ancestors."""


def expert_to_file(
    advert: ExpertAdvert, mesh_id: MeshId, origin: Digest, weights: bytes, lineage: bytes | None = None
) -> bytes:
    """The file of a replica whose advert, origin, weights and, if it has ancestors, lineage are given.

    Raises:
        CorruptWeights: The weights are none.
        MalformedLineage: The lineage is none.
    """
    tensors, _ = tensors_from_bytes(weights)
    metadata = _Metadata(
        schema=_SCHEMA,
        mesh=mesh_id,
        expert=msgspec.structs.replace(advert, since=0.0),  # since when a file is hosted nobody asks
        origin=origin,
        lineage=None if lineage is None else decode_lineage(lineage),
    )
    return tensors_to_bytes(tensors, msgspec.to_builtins(metadata))


def read_expert_file(data: bytes, mesh: Mesh) -> FileExpert:
    """What a file holds; safe on bytes from anyone.

    Raises:
        ExpertFileRefused: It is not safetensors of finite float32 with the metadata of an expert, or of another mesh;
            the uid is not that of form, classes and ancestors; the lineage is not the expert's; the tensors are not
            those of the form, or have another digest.
    """
    try:
        tensors, config = tensors_from_bytes(data)
        metadata = msgspec.convert(config, type=_Metadata, strict=True)
        advert = metadata.expert
        if metadata.mesh != mesh.mesh_id:
            raise ExpertFileRefused(f"it is of the mesh {metadata.mesh}, this is {mesh.mesh_id}")
        if (objection := mesh.objection_to(advert)) is not None:
            raise ExpertFileRefused(objection)
        lineage = None if metadata.lineage is None else encode_lineage(metadata.lineage)
        if lineage is not None:
            if lineage_of(advert, lineage).last.weights != metadata.origin:
                raise ExpertFileRefused("its origin is not the weights that its lineage begins with")
        elif advert.ancestors:
            raise ExpertFileRefused("it has ancestors, and does not say how it was made of them")
        architecture = mesh.architecture(advert.form, len(advert.classes))
        module = architecture.build(advert.uid)
        load_tensors(module, tensors)
        weights = weights_to_bytes(module)
    except (ExpertsError, RefusedInput, msgspec.ValidationError) as refusal:
        raise ExpertFileRefused(str(refusal)) from refusal
    if digest_of(weights) != advert.weights:
        raise ExpertFileRefused("its weights have another digest than it says")
    return FileExpert(advert, architecture, weights, metadata.origin, lineage)


def already_hosted(uid: ExpertUid) -> Refused:
    """The refusal to put a file's weights over those of a replica without being told to."""
    return Refused(f"the expert {uid} is hosted here already", hint="--replace puts the file's weights in its place.")


def other_origin(uid: ExpertUid) -> Refused:
    """The refusal to put weights in the place of others that they have no mean with."""
    return Refused(
        f"the file's weights do not descend from those that the expert {uid} began with here",
        hint="`meshnode experts align` brings its units into the order of those here; then the two can be averaged.",
    )
