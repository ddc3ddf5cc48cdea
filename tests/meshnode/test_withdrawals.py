"""What is taken back: the router is, bit by bit, one that never had it, and no old copy brings it back."""

from pathlib import Path

import pytest
import torch
from mesh_in_memory import (
    MESH,
    MemoryNode,
    announce_all,
    key_of,
    memory_network,
    memory_node,
    memory_nodes,
    statistics_of,
)

from experts.router.ridge import RidgeRouter
from experts.router.statistics import ClassStatistics
from protocol.identifiers import Digest, digest_of
from protocol.records import Withdrawal, seal_withdrawal


async def pull(node: MemoryNode) -> None:
    await node.contributions.pull(node.puller, node.directory)
    await node.contributions.solve()


async def talk(*nodes: MemoryNode) -> None:
    """These look at one another's records, and at those of nobody else."""
    await announce_all(nodes)
    for node in nodes:
        await pull(node)


async def withdraw(node: MemoryNode, task: str) -> None:
    await node.contributions.withdraw(node.key, task, issued_at=node.network.now_s)
    await node.contributions.solve()


def router_of(node: MemoryNode) -> RidgeRouter:
    assert node.contributions.view is not None
    return node.contributions.view.router


def same(first: MemoryNode, second: MemoryNode) -> bool:
    one, other = router_of(first), router_of(second)
    return one.classes == other.classes and torch.equal(one.weights, other.weights)


async def test_a_withdrawal_that_travels_by_a_third_peer_leaves_a_router_that_never_had_it(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, ["a", "b", "c", "never"], tmp_path) as (a, b, c, never):
        await c.contribute("t", statistics_of("1", "2"))
        await a.contribute("kept", statistics_of("0", "1"))
        await talk(a, b, c, never)
        await a.contribute("gone", statistics_of("2", "3"))
        await talk(a, b, c)
        assert router_of(c).classes == ("0", "1", "2", "3")
        await withdraw(a, "gone")
        await talk(a, b)  # and then a is away
        await a.announce(leaving=True)
        await talk(b, c)
        assert c.contributions.version_of(a.peer_id, "gone") == 2
        for node in (a, b, c):
            assert same(node, never)
            assert node.contributions.index == never.contributions.index
            assert len(node.contributions.withdrawn()) == 1


async def test_an_old_copy_from_a_peer_that_was_away_does_not_bring_it_back(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "ac", tmp_path) as (a, c):
        async with memory_node(network, "b", tmp_path) as b:
            await a.contribute("kept", statistics_of("0", "1"))
            await a.contribute("gone", statistics_of("2", "3"))
            await talk(a, b)
        await talk(a, c)
        await withdraw(a, "gone")
        await talk(a, c)
        async with memory_node(network, "b", tmp_path) as b:
            assert b.contributions.version_of(a.peer_id, "gone") == 1
            await b.announce()
            for node in (a, c):
                await node.directory.refresh()
                await pull(node)
                assert router_of(node).classes == ("0", "1")
            await talk(b, c)  # it is c that tells b
            assert router_of(b).classes == ("0", "1")


async def test_a_task_that_is_learned_again_after_its_withdrawal_counts_everywhere(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "abc", tmp_path) as (a, b, c):
        await a.contribute("t", statistics_of("0", "1"))
        await talk(a, b, c)
        await withdraw(a, "t")
        await talk(a, b)
        assert b.contributions.view is None
        await a.contribute("t", statistics_of("0", "1"))
        await talk(b, c)
        await talk(a, b, c)
        for node in (a, b, c):
            assert node.contributions.version_of(a.peer_id, "t") == 3
            assert node.contributions.withdrawn() == ()
            assert same(node, a)


async def test_a_restart_keeps_what_is_withdrawn_and_its_statistics_are_gone_from_the_disk(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        await a.contribute("kept", statistics_of("0", "1"))
        await a.contribute("gone", statistics_of("2", "3"))
        listed, statistics = a.contributions.index, digest_of(statistics_of("2", "3"))
        await withdraw(a, "gone")
        a.state.collect_garbage()
        assert {statistics, listed}.isdisjoint(a.state.blobs.digests())
        before = router_of(a).weights
    async with memory_node(network, "a", tmp_path) as a:
        assert a.contributions.version_of(a.peer_id, "gone") == 2
        assert torch.equal(router_of(a).weights, before)
        assert [said.task for said in a.contributions.withdrawn()] == ["gone"]


async def test_an_index_that_is_the_one_of_before_again_is_still_there(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        await a.contribute("kept", statistics_of("0", "1"))
        before = a.contributions.index
        await a.contribute("gone", statistics_of("2", "3"))
        await withdraw(a, "gone")
        assert a.contributions.index == before
        a.state.collect_garbage()
        assert before in a.state.blobs.digests()


async def test_what_nobody_holds_is_withdrawn_all_the_same(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        await a.contribute("t", statistics_of("0", "1"))
        await withdraw(a, "t")
        await withdraw(a, "t")
        await talk(a, b)
        assert [said.version for said in b.contributions.withdrawn()] == [2]


async def test_a_withdrawal_of_the_same_version_takes_a_contribution_out_and_nobody_elses_does(tmp_path: Path) -> None:
    """A node that lost its state may sign a version twice: what was taken back must not depend on the order."""
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        await a.contribute("t", statistics_of("0", "1"))
        forged = Withdrawal(MESH.mesh_id, a.peer_id, "t", 9, network.now_s)
        with pytest.raises(Exception, match="signed by"):
            seal_withdrawal(forged, b.key)
        equal = Withdrawal(MESH.mesh_id, a.peer_id, "t", 1, network.now_s)
        b.state.add_withdrawal(equal, seal_withdrawal(equal, key_of("a")))
        await b.contributions.load(now_s=network.now_s)
        await talk(a, b)
        assert a.contributions.view is None
        assert b.contributions.view is None


async def test_a_refused_peer_is_dropped_here_alone_and_stays_away_until_it_is_readmitted(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, ["a", "b", "c", "never"], tmp_path) as (a, b, c, never):
        await a.contribute("t", statistics_of("0", "1"))
        await talk(a, b, c, never)
        await c.contribute("t", statistics_of("2", "3"))
        await c.contribute("u", statistics_of("4", "5"))
        await talk(a, b, c)
        dropped = await b.contributions.refuse(c.peer_id)
        await b.contributions.solve()
        assert [of.task for of in dropped] == ["t", "u"]
        assert same(b, never)
        await c.contribute("v", statistics_of("6", "7"))
        await talk(a, b, c)
        assert same(b, never)
        assert router_of(a).classes == tuple("01234567")
    async with memory_nodes(network, "abc", tmp_path) as (a, b, c):
        assert router_of(b).classes == ("0", "1")
        await talk(a, b, c)
        assert router_of(b).classes == ("0", "1")
        await b.contributions.readmit(c.peer_id)
        await pull(b)
        assert same(b, a)


async def test_what_is_learned_of_a_forgotten_task_is_not_contributed(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        a.state.ledger.forget("task", "t")
        await a.contribute("t", statistics_of("0", "1"))
        assert a.contributions.view is None
        a.state.collect_garbage()
        assert digest_of(statistics_of("0", "1")) not in a.state.blobs.digests()


async def test_a_peer_that_knows_of_no_withdrawals_still_reads_the_contributions(tmp_path: Path) -> None:
    """What an earlier version of the program sees: the same index, in which there is none of what was withdrawn."""
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        await a.contribute("kept", statistics_of("0", "1"))
        await a.contribute("gone", statistics_of("2", "3"))
        await withdraw(a, "gone")
        await announce_all((a, b))
        (record,) = [record for record in b.directory.records() if record.peer_id == a.peer_id]
        assert record.withdrawals is not None
        listed = await b.puller.pull(Digest(str(record.contributions)), [a.peer_id])
        assert listed.count(b"statistics") == 1
        assert dict(ClassStatistics.from_bytes(statistics_of("0", "1")).counts).keys() == {"0", "1"}
