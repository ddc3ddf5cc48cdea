"""The node's own record: renewed in time, at once when something changed, and never a reason to die."""

import asyncio
import logging

import pytest
from mesh_in_memory import MESH, key_of, memory_network

from meshnode.advertiser import Advertiser
from meshnode.directory import Directory
from meshnode.transport.memory import MemoryNetwork, MemoryTransport
from protocol.identifiers import PeerId
from protocol.records import PeerRecord, open_record, record_key

KEY = key_of("a")


class Node:
    """A node that counts how often it was asked what it is."""

    def __init__(self, network: MemoryNetwork, *, ttl_s: float) -> None:
        self.network = network
        self.name = "first"
        self.transport: MemoryTransport = network.join(KEY.peer_id)
        self.directory = Directory(self.transport, MESH.mesh_id, refresh_s=60, objection=lambda advert: None)
        self.asked = 0
        self.published = asyncio.Event()
        self.advertiser = Advertiser(self.transport, KEY, self.describe, ttl_s=ttl_s, published=self.take)

    def describe(self, issued_at: float, expires_at: float, leaving: bool) -> PeerRecord:
        self.asked += 1
        return PeerRecord(
            mesh_id=MESH.mesh_id,
            peer_id=KEY.peer_id,
            peer_name=self.name,
            issued_at=issued_at,
            expires_at=expires_at,
            leaving=leaving,
            experts=(),
            contributions=None,
        )

    def take(self, record: bytes, peer_id: PeerId) -> None:
        self.directory.take(record, peer_id)
        self.published.set()

    async def next_publication(self) -> None:
        self.published.clear()
        async with asyncio.timeout(5):
            await self.published.wait()


async def test_the_lease_is_in_the_dht_and_in_the_nodes_own_directory() -> None:
    network = memory_network()
    node = Node(network, ttl_s=30)
    assert await node.advertiser.publish()
    found = await network.join(key_of("b").peer_id).lookup(record_key(MESH.mesh_id))
    record = open_record(found[KEY.peer_id], mesh_id=MESH.mesh_id, subkey=KEY.peer_id, now_s=network.now_s)
    assert (record.issued_at, record.expires_at, record.leaving) == (network.now_s, network.now_s + 30, False)
    assert node.directory.records() == (record,)


async def test_a_change_is_published_at_once_with_the_present_content() -> None:
    node = Node(memory_network(), ttl_s=300)
    service = asyncio.create_task(node.advertiser.run())
    await node.next_publication()
    node.network.now_s += 1
    node.name = "second"
    node.advertiser.changed()
    await node.next_publication()
    assert node.directory.records()[0].peer_name == "second"
    service.cancel()


async def test_the_lease_is_renewed_before_it_ends() -> None:
    network = memory_network()
    node = Node(network, ttl_s=0.09)
    service = asyncio.create_task(node.advertiser.run())
    await node.next_publication()
    began_s = asyncio.get_running_loop().time()
    network.now_s += 0.03
    await node.next_publication()
    assert asyncio.get_running_loop().time() - began_s > 0.02
    assert node.asked == 2
    service.cancel()


async def test_a_leaving_node_is_no_longer_listed() -> None:
    network = memory_network()
    node = Node(network, ttl_s=30)
    await node.advertiser.publish()
    network.now_s += 1
    await node.advertiser.publish(leaving=True)
    assert node.directory.records() == ()


async def test_a_clock_that_was_set_back_is_a_warning_and_no_end(caplog: pytest.LogCaptureFixture) -> None:
    network = memory_network()
    node = Node(network, ttl_s=30)
    await node.advertiser.publish()
    network.now_s -= 10
    with caplog.at_level(logging.WARNING):
        assert not await node.advertiser.publish()
    assert "clock" in caplog.text
    network.now_s += 11
    assert await node.advertiser.publish()


async def test_a_lease_that_no_node_took_is_offered_again_long_before_its_renewal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.advertiser.RETRY_S", 0.01)
    node = Node(memory_network(), ttl_s=300)
    offers: list[bool] = []
    taken = asyncio.Event()

    async def take_the_third(key: str, subkey: str, value: bytes, *, expires_at: float) -> bool:
        node.network.now_s += 0.01
        offers.append(len(offers) == 2)
        if offers[-1]:
            taken.set()
        return offers[-1]

    monkeypatch.setattr(node.transport, "publish", take_the_third)
    with caplog.at_level(logging.WARNING):
        service = asyncio.create_task(node.advertiser.run())
        async with asyncio.timeout(10):
            await taken.wait()
        service.cancel()
    assert offers == [False, False, True]
    assert len(caplog.records) == 1, "one failure is a busy moment, the second is said, once"
