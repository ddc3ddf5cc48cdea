"""What a stranger can pull from a mesh over the network, and the mesh's computation done with it in one process."""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from experts.architectures.base import probabilities
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import flat_parameters, load_weights
from experts.combine import Combined, ExpertResponse, combine
from experts.router.gating import gate
from experts.router.ridge import RidgeRouter, solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.trunk.base import Trunk, features_of
from experts.trunk.codec import trunk_from_bytes
from meshnode.blobs import BlobPuller
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.runtime import router_config
from meshnode.state.blobs import BlobStore
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
from protocol.framing import Frame
from protocol.identifiers import Digest, ExpertUid, MeshId, PeerId
from protocol.messages import Hello, HelloReply
from protocol.records import ExpertAdvert, decode_contribution_index, open_contribution, open_record, record_key
from protocol.spec import MeshSpec, decode_spec

__all__ = ["Pulled", "pull", "transport_in"]

TIMEOUT_S = 5.0


@asynccontextmanager
async def transport_in(folder: Path, *, client_only: bool = False) -> AsyncIterator[HivemindTransport]:
    """A transport with an identity of its own, kept in `folder`."""
    home = Home(folder)
    home.create()
    load_or_create_identity(home)
    transport = await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key, client_only=client_only))
    try:
        yield transport
    finally:
        await transport.aclose()


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A mesh's public parts as one peer gave them."""

    mesh_id: MeshId
    spec: MeshSpec
    trunk: Trunk
    statistics: Mapping[tuple[str, str], ClassStatistics]
    """Router statistics by contributor and task, as they came over the wire."""
    replicas: Mapping[tuple[ExpertUid, PeerId], tuple[ExpertAdvert, nn.Module]]

    def router(self) -> RidgeRouter:
        return solve_ridge(sum_contributions(self.statistics), router_config(self.spec.router))

    def classes_of(self, uid: ExpertUid) -> tuple[str, ...]:
        return next(advert.classes for (known, _), (advert, _) in self.replicas.items() if known == uid)

    def replica_vectors(self, uid: ExpertUid) -> list[np.ndarray]:
        """Flat parameters of each replica of an expert, float32 ``(P,)``."""
        return [flat_parameters(module).numpy() for (known, _), (_, module) in self.replicas.items() if known == uid]

    def answer(self, images: np.ndarray, asked: Mapping[ExpertUid, PeerId], *, top_k: int) -> Combined:
        """y = sum_i g_i(x) E_i(x), all of it here; `asked` says whose replica of each expert to take."""
        router, settings = self.router(), self.spec.router
        features_BD = features_of(self.trunk, images)
        uids = sorted({uid for uid, _ in self.replicas})
        classes = {str(uid): self.classes_of(uid) for uid in uids}
        gates = gate(router.scores(features_BD), router.classes, classes, tau=settings.tau, top_k=top_k)
        responses = {}
        for uid, peer_id in asked.items():
            rows = gates.rows_of(uid)
            _, module = self.replicas[uid, peer_id]
            responses[str(uid)] = ExpertResponse(classes[uid], rows, probabilities(module, features_BD[rows]))
        return combine(gates, responses, sorted({name for names in classes.values() for name in names}))


async def pull(transport: HivemindTransport, peer_id: PeerId) -> Pulled:
    """Take spec, trunk and router statistics from one peer, and every replica's weights from the peer that has it."""
    with tempfile.TemporaryDirectory() as folder:
        return await _pull(BlobPuller(transport, BlobStore(Path(folder)), timeout_s=TIMEOUT_S), transport, peer_id)


async def _pull(puller: BlobPuller, transport: HivemindTransport, peer_id: PeerId) -> Pulled:
    async def blob(digest: Digest, of: PeerId = peer_id) -> bytes:
        return await puller.pull(digest, [of])

    greeting = await transport.call(peer_id, Frame(Hello(mesh_id=None)), timeout_s=TIMEOUT_S)
    assert isinstance(greeting.message, HelloReply)
    mesh_id = greeting.message.mesh_id
    assert mesh_id is not None
    spec = decode_spec(await blob(Digest(mesh_id)))
    now_s = transport.now_s()
    found = await transport.lookup(record_key(mesh_id))
    records = [open_record(data, mesh_id=mesh_id, subkey=PeerId(subkey), now_s=now_s) for subkey, data in found.items()]
    replicas: dict[tuple[ExpertUid, PeerId], tuple[ExpertAdvert, nn.Module]] = {}
    for record in records:
        for advert in () if record.leaving else record.experts:
            architecture = architecture_from_config(
                {**advert.form.config, "kind": advert.form.kind, "num_classes": len(advert.classes)}
            )
            module = architecture.build(advert.uid)
            load_weights(module, await blob(advert.weights, record.peer_id))
            replicas[advert.uid, record.peer_id] = (advert, module)
    index = next(record.contributions for record in records if record.peer_id == peer_id)
    assert index is not None
    statistics = {}
    for sealed in decode_contribution_index(await blob(index)):
        contribution = open_contribution(sealed, mesh_id=mesh_id, now_s=now_s)
        statistics[str(contribution.peer_id), contribution.task] = ClassStatistics.from_bytes(
            await blob(contribution.statistics)
        )
    return Pulled(
        mesh_id=mesh_id,
        spec=spec,
        trunk=trunk_from_bytes(await blob(spec.trunk)),
        statistics=statistics,
        replicas=replicas,
    )
