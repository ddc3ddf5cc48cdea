"""The mesh a node belongs to: its spec and trunk, pulled once by digest from any peer that has them.

A spec is made once, by `meshnode init --mesh`, and never changes; its digest is the mesh's id. A node without one asks
whoever it meets which mesh they are in.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from experts.architectures.mlp import MlpArchitecture
from experts.errors import ExpertsError
from experts.trunk.base import Trunk
from experts.trunk.codec import trunk_from_bytes
from meshnode.blobs import fetch_blob
from meshnode.logs import get_logger
from meshnode.state.state import State
from meshnode.transport.interface import Transport
from protocol.errors import MalformedMessage, MalformedSpec, MeshMismatch, ModuleMeshError, RefusedInput
from protocol.framing import Frame
from protocol.identifiers import Digest, ExpertUid, MeshId, PeerId, expert_uid
from protocol.messages import Hello, HelloReply
from protocol.records import ExpertAdvert
from protocol.spec import MeshSpec, decode_spec

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

    def architecture(self, hidden: int, num_classes: int) -> MlpArchitecture:
        """The architecture of this mesh's experts with so many hidden units and classes.

        Raises:
            SettingOutOfRange: There is none such.
        """
        return MlpArchitecture(feature_dim=self.spec.feature_dim, hidden=hidden, num_classes=num_classes)

    def uid_of(self, classes: tuple[str, ...], *, hidden: int) -> ExpertUid:
        """The uid that an expert for these classes has by definition."""
        return expert_uid(self.mesh_id, Digest(self.architecture(hidden, len(classes)).digest()), classes)

    def describes(self, advert: ExpertAdvert) -> bool:
        """Whether an advert's uid is that of the expert it describes: nobody can advertise one as another."""
        try:
            return self.uid_of(advert.classes, hidden=advert.hidden) == advert.uid
        except (ExpertsError, RefusedInput):
            return False


def load_mesh(state: State) -> Mesh | None:
    """The mesh this home belongs to, from its own blobs; None before it belongs to any."""
    mesh_id = state.get_setting(MESH_SETTING)
    if mesh_id is None:
        return None
    spec = decode_spec(state.blobs.get(Digest(mesh_id)))
    return Mesh(mesh_id=MeshId(mesh_id), spec=spec, trunk=trunk_from_bytes(state.blobs.get(spec.trunk)))


async def pull_mesh(
    state: State, transport: Transport, *, wanted: MeshId | None, timeout_s: float
) -> tuple[Mesh, PeerId]:
    """Ask connected peers for their mesh, for as long as it takes, and pull spec and trunk from one of them.

    Args:
        wanted: The only mesh to take; None takes the first one met.
        timeout_s: Deadline of each call.

    Returns:
        The mesh, kept in `state` from now on, and the peer it came from.
    """
    refused: set[PeerId] = set()
    while True:
        for peer_id in _new(await transport.connected_peers(), refused):
            try:
                mesh_id = await _mesh_of(transport, peer_id, wanted=wanted, timeout_s=timeout_s)
                if mesh_id is not None:
                    return await _pull(state, transport, peer_id, mesh_id, timeout_s=timeout_s), peer_id
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


async def _pull(state: State, transport: Transport, peer_id: PeerId, mesh_id: MeshId, *, timeout_s: float) -> Mesh:
    """Both blobs are kept before the setting is, so a kill in between only means pulling again."""
    spec_data = await fetch_blob(transport, peer_id, Digest(mesh_id), timeout_s=timeout_s)
    spec = decode_spec(spec_data)
    trunk_data = await fetch_blob(transport, peer_id, spec.trunk, timeout_s=timeout_s)
    trunk = await asyncio.to_thread(trunk_from_bytes, trunk_data)
    if trunk.feature_dim != spec.feature_dim:
        raise MalformedSpec(f"it says {spec.feature_dim} features, its trunk gives {trunk.feature_dim}")
    for data in (spec_data, trunk_data):
        await asyncio.to_thread(state.blobs.put, data)
    state.set_setting(MESH_SETTING, mesh_id)
    return Mesh(mesh_id=mesh_id, spec=spec, trunk=trunk)
