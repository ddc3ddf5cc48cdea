"""The mesh a node belongs to: its spec and trunk, pulled once by digest from any peer that has them.

A spec is made once, by `meshnode init --mesh`, and never changes; its digest is the mesh's id. A node without one asks
whoever it meets which mesh they are in.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UnsetType

from experts.architectures.base import Architecture
from experts.continual.sizing import choose_architecture
from experts.errors import ExpertsError
from experts.router.fingerprint import statistics_fingerprint
from experts.trunk.base import Trunk
from experts.trunk.codec import trunk_from_bytes
from meshnode.blobs import BlobPuller
from meshnode.errors import MeshUnreadable
from meshnode.forms import architecture_of, form_of
from meshnode.logs import get_logger
from meshnode.state.state import State
from meshnode.transport.interface import Transport
from protocol.errors import (
    BlobCorrupt,
    MalformedMessage,
    MalformedSpec,
    MeshMismatch,
    ModuleMeshError,
    RefusedInput,
    UnknownBlob,
)
from protocol.framing import Frame
from protocol.identifiers import Digest, ExpertUid, MeshId, PeerId, expert_uid
from protocol.limits import MAX_SPEC_BYTES
from protocol.messages import Hello, HelloReply
from protocol.records import ExpertAdvert
from protocol.spec import ExpertForm, MeshSpec, decode_spec

__all__ = ["MESH_SETTING", "Mesh", "load_mesh", "pull_mesh"]

MESH_SETTING = "mesh_id"
"""The ledger's setting that says which mesh this home belongs to."""

LOOK_AGAIN_S = 0.5

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """What every node of a mesh shares."""

    mesh_id: MeshId
    spec: MeshSpec
    trunk: Trunk

    @property
    def fingerprint(self) -> str:
        """Of statistics over this mesh's features, which are those of its trunk."""
        return statistics_fingerprint(self.spec.trunk, b"")

    def form_for(self, num_classes: int) -> ExpertForm:
        """The form of an expert that is spawned for so many classes, the same on every node.

        Raises:
            SettingOutOfRange: Not even a linear expert for them is within the mesh's budget.
        """
        budget = self.spec.expert_budget
        if isinstance(budget, UnsetType):
            return self.spec.expert
        return form_of(choose_architecture(self.spec.feature_dim, num_classes, max_parameters=budget))

    def architecture(self, form: ExpertForm, num_classes: int) -> Architecture:
        """The architecture of this form for so many classes, reading this mesh's features.

        Raises:
            UnknownArchitecture: There is none such on this machine.
        """
        return architecture_of(form, num_classes=num_classes, feature_dim=self.spec.feature_dim)

    def uid_of(self, classes: tuple[str, ...], form: ExpertForm, ancestors: tuple[ExpertUid, ...] = ()) -> ExpertUid:
        """The uid that an expert of this form for these classes has by definition.

        Args:
            ancestors: The experts that it succeeds, the oldest first: those of its parent, and the parent.

        Raises:
            UnknownArchitecture: As `architecture`.
            RefusedInput: No expert can have these classes, or so many ancestors.
        """
        return expert_uid(self.mesh_id, Digest(self.architecture(form, len(classes)).digest()), classes, ancestors)

    def uid_of_begun(self, classes: tuple[str, ...], form: ExpertForm) -> ExpertUid:
        """The uid of the expert that is spawned in this form for these classes, but begins as an expert of others.

        It has the plain one's place, and its own first weights: `protocol.lineage.Source`. Whichever expert it begins
        as, the uid is the same: of all beginnings of one expert, one is to be left.

        Raises: As `uid_of`.
        """
        return self.uid_of(classes, form, (self.uid_of(classes, form),))

    def objection_to(self, advert: ExpertAdvert) -> str | None:
        """Why an advertised expert does not count here; None if its uid is that of the expert it describes.

        Nobody can so advertise one expert as another, nor one that this machine could not build.
        """
        try:
            if self.uid_of(advert.classes, advert.form, advert.ancestors) == advert.uid:
                return None
        except (ExpertsError, RefusedInput) as refusal:
            return str(refusal)
        return "its uid is not that of its form, classes, ancestors and mesh"


def load_mesh(state: State) -> Mesh | None:
    """The mesh this home belongs to, from its own blobs; None before it belongs to any.

    Raises:
        MeshUnreadable: This version of the program cannot follow its spec or build its trunk.
    """
    mesh_id = state.get_setting(MESH_SETTING)
    if mesh_id is None:
        return None
    try:
        spec = decode_spec(state.blobs.get(Digest(mesh_id)))
        trunk = trunk_from_bytes(state.blobs.get(spec.trunk))
    except (UnknownBlob, BlobCorrupt, MalformedSpec, ExpertsError) as exc:
        raise MeshUnreadable(MeshId(mesh_id), str(exc)) from exc
    return Mesh(mesh_id=MeshId(mesh_id), spec=spec, trunk=trunk)


async def pull_mesh(
    state: State, transport: Transport, *, wanted: MeshId | None, timeout_s: float
) -> tuple[Mesh, PeerId]:
    """Ask connected peers for their mesh, for as long as it takes, and pull spec and trunk from those that have them.

    Args:
        wanted: The only mesh to take; None takes the first one met.
        timeout_s: Deadline of each call.

    Returns:
        The mesh, kept in `state` from now on, and the peer that told of it.
    """
    refused: set[PeerId] = set()
    puller = BlobPuller(transport, state.blobs, timeout_s=timeout_s)
    while True:
        peer_ids = _new(await transport.connected_peers(), refused)
        for peer_id in peer_ids:
            try:
                mesh_id = await _mesh_of(transport, peer_id, wanted=wanted, timeout_s=timeout_s)
                if mesh_id is not None:
                    # The others may have it too, and say so if they have not.
                    return await _pull(state, puller, [peer_id, *peer_ids], mesh_id), peer_id
            except MeshMismatch as mismatch:
                log.warning("a peer belongs to another mesh", peer=peer_id, reason=str(mismatch))
                refused.add(peer_id)
            except (ModuleMeshError, ExpertsError) as failure:
                log.debug("no mesh from this peer yet", peer=peer_id, reason=str(failure))
        await asyncio.sleep(LOOK_AGAIN_S)


def _new(peer_ids: Sequence[PeerId], refused: set[PeerId]) -> list[PeerId]:
    return [peer_id for peer_id in peer_ids if peer_id not in refused]


async def _mesh_of(transport: Transport, peer_id: PeerId, *, wanted: MeshId | None, timeout_s: float) -> MeshId | None:
    reply = await transport.call(peer_id, Frame(message=Hello(mesh_id=wanted)), timeout_s=timeout_s)
    if not isinstance(reply.message, HelloReply):
        raise MalformedMessage("HelloReply", reason="a peer's greeting was not returned")
    if wanted is not None and reply.message.mesh_id not in (wanted, None):
        raise MeshMismatch(wanted, reply.message.mesh_id)
    return reply.message.mesh_id


async def _pull(state: State, puller: BlobPuller, peer_ids: Sequence[PeerId], mesh_id: MeshId) -> Mesh:
    """Both blobs are kept before the setting is, so a kill in between only means pulling again."""
    spec_data = await puller.pull(Digest(mesh_id), peer_ids, limit_bytes=MAX_SPEC_BYTES)
    spec = decode_spec(spec_data)
    trunk_data = await puller.pull(spec.trunk, peer_ids)
    trunk = await asyncio.to_thread(trunk_from_bytes, trunk_data)
    if trunk.feature_dim != spec.feature_dim:
        raise MalformedSpec(f"it says {spec.feature_dim} features, its trunk gives {trunk.feature_dim}")
    for data in (spec_data, trunk_data):
        await asyncio.to_thread(state.blobs.put, data)
    state.set_setting(MESH_SETTING, mesh_id)
    return Mesh(mesh_id=mesh_id, spec=spec, trunk=trunk)
