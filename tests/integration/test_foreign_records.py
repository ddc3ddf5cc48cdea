"""What a stranger with a plain hivemind node can put into a mesh's part of the DHT: nothing in anybody else's name."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from integration_nodes import Daemon, Daemons, eventually, found, save_shard, shards
from integration_pulled import transport_in

from meshnode.directory import Directory
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from protocol.errors import RecordRefused
from protocol.identifiers import MeshId, PeerId
from protocol.records import PeerRecord, open_record, record_key, seal_record
from protocol.signing import SigningKey

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Pair:
    first: Daemon
    second: Daemon
    mesh_id: MeshId


@pytest.fixture(scope="module")
def pair(_no_process_is_left_by_a_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("honest")
    save_shard(folder / "data", "task", shards(2)[0], ("0", "1"))
    with Daemons.within(folder) as made:
        renewed_often = {"MESHNODE_NET__RECORD_TTL": "6s"}
        first = made.make("ann", data=folder / "data", env=renewed_often)
        mesh_id = found(first.home, folder / "data" / "task.npz")
        first.launch().wait_ready()
        second = made.make("ben", join=[first.address], options=["--no-train"], env=renewed_often).launch().wait_ready()
        for node in (first, second):
            node.wait_for(lambda node: len(node.get("peers")["peers"]) == 2, "two peers")
            node.wait_for(lambda node: len(node.experts()) == 1, "the expert")
        yield Pair(first, second, MeshId(mesh_id))


@dataclass(frozen=True)
class Stranger:
    """A hivemind node without any guard, connected to the mesh."""

    dht: DHTNode
    key: SigningKey
    mesh_id: MeshId

    async def record_of(self, peer_id: PeerId) -> tuple[bytes, float, PeerRecord]:
        """An honest peer's record as anybody can read it, with its expiry."""
        found = await self.dht.get(record_key(self.mesh_id), latest=True)
        entry = found.value[peer_id]
        return entry.value, entry.expiration_time, _opened(entry.value, self.mesh_id, peer_id)

    async def stored_by_others(self, subkey: object, value: object, *, expires_at: float) -> bool:
        """Whether any honest node took it."""
        return bool(
            await self.dht.store(record_key(self.mesh_id), value, expiration_time=expires_at, subkey=subkey)
        )

    async def held_by(self, peer_id: PeerId) -> dict[str, bytes]:
        """What one node itself has stored under the mesh's key."""
        key_id = DHTID.generate(record_key(self.mesh_id))
        found = await self.dht.protocol.call_find(PeerID.from_base58(peer_id), [key_id])
        held, _ = found[key_id]
        if held is None:
            return {}
        return {
            self.dht.protocol.serializer.loads(subkey) if isinstance(subkey, bytes) else subkey: (
                self.dht.protocol.serializer.loads(entry.value)
            )
            for subkey, entry in held.value.data.items()
        }


def _opened(data: bytes, mesh_id: MeshId, peer_id: PeerId) -> PeerRecord:
    return open_record(data, mesh_id=mesh_id, subkey=peer_id, now_s=msgspec.json.decode(b"0") or 0.0)


@asynccontextmanager
async def _stranger(pair: Pair, folder: Path, *, stores: bool) -> AsyncIterator[Stranger]:
    """Args: stores: Whether it also stores records itself and answers others' look-ups with them."""
    home = Home(folder)
    home.create()
    key = load_or_create_identity(home)
    dht = await DHTNode.create(
        initial_peers=[pair.first.address],
        identity_path=str(home.identity_key),
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        client_mode=not stores,
        use_relay=False,
        auto_nat=False,
        nat_port_map=False,
        check_if_identity_free=False,
    )
    try:
        yield Stranger(dht, key, pair.mesh_id)
    finally:
        await dht.shutdown()
        await dht.p2p.shutdown()
