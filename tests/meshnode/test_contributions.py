"""The router of many: peers that hold the same signed contributions hold the same router, to the bit."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mesh_in_memory import (
    MESH,
    ROUTER,
    MemoryNode,
    announce_all,
    digits,
    key_of,
    memory_network,
    memory_node,
    memory_nodes,
    statistics_of,
    tiny_trunk,
)

from experts.router.fingerprint import statistics_fingerprint
from experts.router.ridge import RidgeRouter, solve_ridge
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.handlers import Handlers
from meshnode.state.blobs import BlobStore
from protocol.codec import encode
from protocol.identifiers import Digest, MeshId, digest_of
from protocol.records import (
    PeerRecord,
    RouterContribution,
    encode_contribution_index,
    record_key,
    seal_contribution,
    seal_record,
)
from protocol.signing import SigningKey, seal


async def pull(node: MemoryNode) -> None:
    await node.contributions.pull(node.puller, node.directory)
    await node.contributions.solve()


def router_of(node: MemoryNode) -> RidgeRouter:
    assert node.contributions.view is not None
    return node.contributions.view.router


def contribution_of(
    key: SigningKey, statistics: bytes, *, mesh_id: MeshId = MESH.mesh_id, issued_at: float = 1_000_000.0
) -> RouterContribution:
    return RouterContribution(
        mesh_id=mesh_id,
        peer_id=key.peer_id,
        task="t",
        version=1,
        statistics=digest_of(statistics),
        samples=dict(ClassStatistics.from_bytes(statistics).counts),
        issued_at=issued_at,
    )


async def relayed(node: MemoryNode, folder: Path, sealed: Sequence[bytes], statistics: Sequence[bytes]) -> None:
    """A peer of the mesh offers `node` these contributions, whatever they are."""
    key = key_of("relay")
    folder = folder / "relay"
    folder.mkdir(exist_ok=True)
    store = BlobStore(folder)
    for data in statistics:
        store.put(data)
    index = store.put(encode_contribution_index(list(sealed)))
    node.network.join(key.peer_id).serve(Handlers(store, key.peer_id, "relay", lambda: 0.0))
    node.network.now_s += 0.01
    now_s = node.network.now_s
    record = PeerRecord(MESH.mesh_id, key.peer_id, "relay", now_s, now_s + 60, False, (), index)
    node.directory.take(seal_record(record, key), key.peer_id)
    await pull(node)


async def test_the_router_merged_from_shards_is_the_one_of_all_data(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "abc", tmp_path) as nodes:
        shards = digits("0", "1", "2", "3").shard(3, seed=1)
        for node, shard in zip(nodes, shards, strict=True):
            features = features_of(tiny_trunk(), shard.images)
            statistics = ClassStatistics.from_features(features, shard.labels, fingerprint=MESH.fingerprint)
            await node.contribute("shard", statistics.to_bytes())
        await announce_all(nodes)
        for node in nodes:
            await pull(node)
        everything = digits("0", "1", "2", "3")
        central = solve_ridge(
            ClassStatistics.from_features(features_of(tiny_trunk(), everything.images), everything.labels), ROUTER
        )
        test = features_of(tiny_trunk(), digits("0", "1", "2", "3", test=True).images)
        for node in nodes:
            view = node.contributions.view
            assert view is not None
            assert view.contributions == 3
            assert dict(view.samples) == everything.class_counts
            assert torch.allclose(view.router.scores(test), central.scores(test), atol=1e-3)
            assert view.router.class_argmax(test) == central.class_argmax(test)
            assert torch.equal(view.router.weights, router_of(nodes[0]).weights)


async def test_the_order_in_which_peers_are_heard_changes_no_bit(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, ["a", "b", "c", "early", "late"], tmp_path) as nodes:
        *sources, early, late = nodes
        # Three that overlap: of two, the sum would be the same in either order.
        for source, classes in zip(sources, (("0", "1"), ("1", "2"), ("0", "1", "2")), strict=True):
            await source.contribute("t", statistics_of(*classes))
        for reader, order in ((early, sources), (late, sources[::-1])):
            for source in order:
                await source.announce()
                found = await reader.transport.lookup(record_key(MESH.mesh_id))
                reader.directory.take(found[source.peer_id], source.peer_id)
                await pull(reader)
        assert router_of(early).classes == ("0", "1", "2")
        assert torch.equal(router_of(early).weights, router_of(late).weights)
        assert early.contributions.index == late.contributions.index


async def test_a_contribution_counts_once_however_often_it_arrives(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "abc", tmp_path) as nodes:
        a, b, c = nodes
        await a.contribute("t", statistics_of("0", "1"))
        for _ in range(3):
            await announce_all(nodes)
            for node in nodes:
                await pull(node)
        assert c.contributions.view is not None
        assert dict(c.contributions.view.samples) == dict(ClassStatistics.from_bytes(statistics_of("0", "1")).counts)
        assert torch.equal(router_of(b).weights, router_of(a).weights)


async def test_contributions_that_come_at_once_are_all_in_the_index(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        put, writing = a.state.blobs.put, threading.Event()

        def put_the_first_last(data: bytes) -> Digest:
            if data[:1] == b"\x91":  # the index of one entry
                writing.set()
                time.sleep(0.3)
            return put(data)

        a.state.blobs.put = put_the_first_last  # type: ignore[method-assign]
        first = asyncio.create_task(a.contribute("t", statistics_of("0", "1")))
        await asyncio.to_thread(writing.wait)
        await a.contribute("u", statistics_of("2", "3"))
        await first
        await announce_all((a, b))
        await pull(b)
        assert {b.contributions.version_of(a.peer_id, task) for task in ("t", "u")} == {1}


async def test_a_third_party_passes_on_what_the_contributor_signed(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "bc", tmp_path) as (b, c):
        async with memory_node(network, "a", tmp_path) as a:
            await a.contribute("t", statistics_of("0", "1"))
            await announce_all((a, b))
            await pull(b)
            await a.announce(leaving=True)
        await announce_all((b, c))
        await pull(c)
        assert torch.equal(router_of(c).weights, router_of(b).weights)
        assert c.contributions.version_of(key_of("a").peer_id, "t") == 1


async def test_a_later_version_replaces_the_earlier_one_everywhere(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        await a.contribute("t", statistics_of("0", "1"))
        await announce_all((a, b))
        await pull(b)
        await a.contribute("t", statistics_of("0", "1", num_images=200))
        await announce_all((a, b))
        await pull(b)
        assert b.contributions.version_of(a.peer_id, "t") == 2
        assert b.contributions.view is not None
        assert sum(b.contributions.view.samples.values()) == 200
        assert torch.equal(router_of(a).weights, router_of(b).weights)


async def test_a_version_once_held_is_not_replaced_by_another_of_the_same_number(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        await relayed(a, tmp_path, [seal_contribution(GOOD, SOMEBODY)], [STATISTICS])
        before = router_of(a).weights
        twin = statistics_of("2", "3")
        await relayed(a, tmp_path, [seal_contribution(contribution_of(SOMEBODY, twin), SOMEBODY)], [twin])
        assert torch.equal(router_of(a).weights, before)


async def test_learning_the_same_data_again_is_no_new_version(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        await a.contribute("t", statistics_of("0", "1"))
        index = a.contributions.index
        await a.contribute("t", statistics_of("0", "1"))
        assert a.contributions.version_of(a.peer_id, "t") == 1
        assert a.contributions.index == index


async def test_a_restart_restores_own_and_foreign_contributions(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        await a.contribute("t", statistics_of("0", "1"))
        async with memory_node(network, "b", tmp_path) as b:
            await b.contribute("t", statistics_of("2", "3"))
            await announce_all((a, b))
            await pull(b)
            before, index = router_of(b), b.contributions.index
    async with memory_node(network, "b", tmp_path) as b:
        assert b.contributions.view is not None
        assert b.contributions.view.contributions == 2
        assert torch.equal(router_of(b).weights, before.weights)
        assert b.contributions.index == index


async def test_a_node_starts_although_its_clock_was_set_back_since(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        await a.contribute("t", statistics_of("0", "1"))
    network.now_s -= 3600
    async with memory_node(network, "a", tmp_path) as a:
        assert a.contributions.view is None
    network.now_s += 3600
    async with memory_node(network, "a", tmp_path) as a:
        assert a.contributions.view is not None


FOREIGN = MeshId(digest_of(b"another mesh"))
STATISTICS = statistics_of("0", "1")
WIDE = ClassStatistics.from_features(torch.randn(8, 5), ["0", "1"] * 4, fingerprint=MESH.fingerprint).to_bytes()
OF_ANOTHER_TRUNK = dataclasses.replace(
    ClassStatistics.from_bytes(STATISTICS), fingerprint=statistics_fingerprint(digest_of(b"another trunk"), b"")
).to_bytes()
UNNAMED = dataclasses.replace(ClassStatistics.from_bytes(STATISTICS), fingerprint=None).to_bytes()
SOMEBODY = key_of("somebody")
GOOD = contribution_of(SOMEBODY, STATISTICS)

BAD = {
    "garbage": b"garbage",
    "not signed by its owner": seal(key_of("mallory"), "contribution", encode(GOOD), max_bytes=10_000),
    "signed as something else": seal(SOMEBODY, "record", encode(GOOD), max_bytes=10_000),
    "changed after it was signed": seal_contribution(GOOD, SOMEBODY).replace(
        SOMEBODY.peer_id[:9].encode(), b"QmMallory"
    ),
    "of another mesh": seal_contribution(contribution_of(SOMEBODY, STATISTICS, mesh_id=FOREIGN), SOMEBODY),
    "from the future": seal_contribution(contribution_of(SOMEBODY, STATISTICS, issued_at=1_001_000.0), SOMEBODY),
    "of another dimension": seal_contribution(contribution_of(SOMEBODY, WIDE), SOMEBODY),
    "of another trunk's features": seal_contribution(contribution_of(SOMEBODY, OF_ANOTHER_TRUNK), SOMEBODY),
    "of features nobody names": seal_contribution(contribution_of(SOMEBODY, UNNAMED), SOMEBODY),
    "about statistics that are none": seal_contribution(
        RouterContribution(MESH.mesh_id, SOMEBODY.peer_id, "t", 1, digest_of(b"none"), {"0": 1}, 1_000_000.0),
        SOMEBODY,
    ),
    "about other samples than its statistics": seal_contribution(
        RouterContribution(MESH.mesh_id, SOMEBODY.peer_id, "t", 1, digest_of(STATISTICS), {"0": 99_999}, 1_000_000.0),
        SOMEBODY,
    ),
}


@pytest.mark.parametrize("sealed", BAD.values(), ids=BAD.keys())
async def test_what_does_not_prove_itself_is_left_out_and_the_router_goes_on(tmp_path: Path, sealed: bytes) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        await a.contribute("t", statistics_of("4", "5"))
        before = router_of(a).weights
        await relayed(a, tmp_path, [sealed], [STATISTICS, WIDE, OF_ANOTHER_TRUNK, UNNAMED, b"none"])
        assert a.contributions.version_of(SOMEBODY.peer_id, "t") == 0
        assert torch.equal(router_of(a).weights, before)
        # The same peer's good ones are still welcome.
        await relayed(a, tmp_path, [seal_contribution(GOOD, SOMEBODY)], [STATISTICS])
        assert a.contributions.version_of(SOMEBODY.peer_id, "t") == 1
        assert router_of(a).classes == ("0", "1", "4", "5")
