"""What a stranger with a plain hivemind node can put into a mesh's part of the DHT: nothing in anybody else's name."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import get_dht_time
from integration_nodes import Daemon, Daemons, found, save_shard, shards
from integration_pulled import transport_in

from meshnode.directory import Directory
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from protocol.codec import encode
from protocol.errors import RecordRefusal, RecordRefused
from protocol.identifiers import MeshId, PeerId
from protocol.records import PeerRecord, inspect_record, record_key
from protocol.signing import SigningKey, seal

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
    """A plain hivemind node, without any guard, connected to the mesh."""

    dht: DHTNode
    key: SigningKey
    mesh_id: MeshId

    @property
    def key_id(self) -> DHTID:
        return DHTID.generate(record_key(self.mesh_id))

    async def offer(self, peer_id: PeerId, subkey: object, value: object, expires_at: float) -> bool:
        """Ask one node to store this; whether it did."""
        data = self.dht.protocol.serializer.dumps(value)
        taken = await self.dht.protocol.call_store(
            PeerID.from_base58(peer_id), [self.key_id], [data], [expires_at], subkeys=[subkey]
        )
        return taken is not None and all(taken)

    def keep(self, subkey: PeerId, value: bytes, expires_at: float) -> None:
        """Store this itself, where every look-up in so small a mesh asks."""
        data = self.dht.protocol.serializer.dumps(value)
        assert self.dht.protocol.storage.store(self.key_id, data, expires_at, subkey=subkey)

    async def held_by(self, peer_id: PeerId) -> dict[PeerId, tuple[bytes, float]]:
        """What one node has stored under the mesh's key: records with their expiries, by subkey."""
        loads = self.dht.protocol.serializer.loads
        answer = await self.dht.protocol.call_find(PeerID.from_base58(peer_id), [self.key_id])
        entry, _ = answer[self.key_id]
        held = entry.value.data.items() if entry is not None else ()
        return {subkey: (loads(stored.value), stored.expiration_time) for subkey, stored in held}


@asynccontextmanager
async def _stranger(pair: Pair, folder: Path, *, stores: bool) -> AsyncIterator[Stranger]:
    """Args: stores: Whether it keeps records too and answers others' look-ups with them."""
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
    p2p = dht.protocol.p2p
    try:
        yield Stranger(dht, key, pair.mesh_id)
    finally:
        await dht.shutdown()
        await p2p.shutdown()


def _signed_by(key: SigningKey, record: PeerRecord) -> bytes:
    """The record with this key's signature, whoever it names: `seal_record` would refuse to make it."""
    return seal(key, "record", encode(record))


async def test_no_honest_node_stores_a_record_in_anothers_name(pair: Pair, tmp_path: Path) -> None:
    victim = PeerId(pair.first.peer_id)
    async with _stranger(pair, tmp_path / "stranger", stores=False) as stranger:
        honest, expires_at = (await stranger.held_by(victim))[victim]
        record = inspect_record(honest, subkey=victim)
        me = stranger.key.peer_id
        later = get_dht_time() + 60
        forged = msgspec.structs.replace(record, peer_name="mallory", issued_at=later - 60, expires_at=later)
        mine = msgspec.structs.replace(forged, peer_id=me)
        flipped = honest[:-1] + bytes([honest[-1] ^ 1])
        attempts = {
            "the victim's record under a stranger's signature": (victim, _signed_by(stranger.key, forged), later),
            "the stranger's own record under the victim's subkey": (victim, _signed_by(stranger.key, mine), later),
            "the victim's record under the stranger's subkey": (me, honest, expires_at),
            "the victim's record with a broken signature": (victim, flipped, expires_at),
            "the victim's record with a longer life": (victim, honest, later),
            "an empty record": (victim, b"", later),
            "what is no record": (victim, {"experts": []}, later),
            "a subkey that is no peer": ("nobody", _signed_by(stranger.key, mine), later),
            "a subkey of another type": (1, _signed_by(stranger.key, mine), later),
            "a value without a subkey": (None, b"wiped", later),
        }
        for name, (subkey, value, expiry) in attempts.items():
            for holder in (victim, PeerId(pair.second.peer_id)):
                assert not await stranger.offer(holder, subkey, value, expiry), name
        # A stranger's own record in its own name is what an open mesh is open for.
        assert await stranger.offer(victim, me, _signed_by(stranger.key, mine), later)
    for node in (pair.first, pair.second):
        names = {peer["name"] for peer in node.get("peers")["peers"]}
        assert {"ann", "ben"} <= names
        assert [peer["name"] for peer in node.get("peers")["peers"] if peer["peer_id"] == victim] == ["ann"]


async def test_an_old_record_published_again_is_neither_stored_nor_believed(pair: Pair, tmp_path: Path) -> None:
    victim, reader = PeerId(pair.first.peer_id), PeerId(pair.second.peer_id)
    async with _stranger(pair, tmp_path / "stranger", stores=False) as stranger:
        old, old_expiry = (await stranger.held_by(reader))[victim]
        async with asyncio.timeout(10):
            while (newer := (await stranger.held_by(reader))[victim])[1] == old_expiry:
                await asyncio.sleep(0.2)
        assert old_expiry > get_dht_time(), "it is still valid by its own lights"
        for holder in (victim, reader):
            assert not await stranger.offer(holder, victim, old, old_expiry)
            assert (await stranger.held_by(holder))[victim][1] >= newer[1]
    async with transport_in(tmp_path / "reader", client_only=True) as transport:
        await transport.connect(pair.first.address)
        directory = Directory(transport, pair.mesh_id, refresh_s=60.0, objection=lambda advert: None)
        await directory.refresh()
        with pytest.raises(RecordRefused) as refused:
            directory.take(old, victim)
    assert refused.value.reason in {RecordRefusal.REPLAYED, RecordRefusal.EXPIRED}


async def test_a_node_that_answers_look_ups_with_forgeries_is_not_believed(pair: Pair, tmp_path: Path) -> None:
    victim = PeerId(pair.first.peer_id)
    async with _stranger(pair, tmp_path / "stranger", stores=True) as stranger:
        honest, _ = (await stranger.held_by(victim))[victim]
        later = get_dht_time() + 60
        record = inspect_record(honest, subkey=victim)
        forged = _signed_by(
            stranger.key,
            msgspec.structs.replace(record, peer_name="mallory", experts=(), issued_at=later - 60, expires_at=later),
        )
        stranger.keep(victim, forged, later)
        assert (await stranger.dht.get(record_key(pair.mesh_id), latest=True)).value[victim].value == forged
        await asyncio.sleep(2.0)  # four look-ups of each daemon
        for node in (pair.first, pair.second):
            (entry,) = [peer for peer in node.get("peers")["peers"] if peer["peer_id"] == victim]
            assert (entry["name"], entry["experts"]) == ("ann", 1)
        async with transport_in(tmp_path / "reader", client_only=True) as transport:
            await transport.connect(str((await stranger.dht.protocol.p2p.get_visible_maddrs())[0]))
            await transport.connect(pair.second.address)
            directory = Directory(transport, pair.mesh_id, refresh_s=60.0, objection=lambda advert: None)
            await directory.refresh()
            names = {record.peer_id: record.peer_name for record in directory.records()}
            assert names[victim] == "ann"
            with pytest.raises(RecordRefused):
                directory.take(forged, victim)
