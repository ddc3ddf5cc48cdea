"""Nodes keep a mesh's experts alive among themselves: one adopts, not all; what is too much goes again."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import MemoryNode, announce_all, form, memory_network, memory_node, memory_nodes
from successions import migrate

from meshnode.errors import Refused
from meshnode.hosted import PLACED
from meshnode.placement import PlacementConfig
from meshnode.runtime import weight_of
from meshnode.settings.config import NodeConfig
from meshnode.transport.memory import MemoryNetwork
from protocol.errors import UnknownExpert
from protocol.identifiers import ExpertUid
from protocol.placement import KeptExpert, surplus_turn

PLACE = PlacementConfig(slot_s=3.0, surplus_s=30.0)
CLASSES = ("0", "1")
SIZE = 4 * (32 * 4 + 4 + 4 * 2 + 2)
"""Bytes of the smallest expert: 32 features, 4 hidden units, 2 classes."""


def mesh(
    network: MemoryNetwork, names: str, folder: Path, place: PlacementConfig = PLACE
) -> AbstractAsyncContextManager[tuple[MemoryNode, ...]]:
    return memory_nodes(network, names, folder, place=place)


async def refresh(nodes: Sequence[MemoryNode], *, times: int = 1) -> None:
    """A second each: everybody renews its record and reads the others', and does what it is time for."""
    for _ in range(times):
        nodes[0].network.now_s += 1
        await announce_all(nodes)
        for node in nodes:
            await node.placement.step()


def holders(nodes: Sequence[MemoryNode], uid: ExpertUid) -> set[str]:
    return {node.name for node in nodes if uid in node.host.experts}


async def test_of_three_holders_one_dies_and_exactly_one_other_adopts(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "abcdef", tmp_path, replace(PLACE, replicas=3)) as nodes:
        for node in nodes[:3]:
            uid = (await node.spawn(*CLASSES)).uid
        learned = await nodes[0].learn(uid, seed=1)
        await refresh(nodes, times=3)
        assert holders(nodes, uid) == {"a", "b", "c"}
        living = nodes[:2] + nodes[3:]
        await nodes[2].transport.aclose()
        network.now_s += 60  # its lease
        await refresh(living, times=20)
        (adopted,) = holders(living, uid) - {"a", "b"}
        chosen = next(node for node in living if node.name == adopted)
        expert = chosen.host.get(uid)
        assert expert.placed
        assert chosen.state.ledger.generations(uid)[0].cause == PLACED
        assert np.array_equal(chosen.host.snapshot(uid), learned)


async def test_the_next_one_adopts_where_the_first_does_not(tmp_path: Path) -> None:
    async with mesh(memory_network(), "abc", tmp_path) as (a, b, c):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b, c))
        by_turn = sorted((b, c), key=lambda node: a.placement.shortages()[0].reason != f"{node.name} is to adopt it")
        idle, next_one = by_turn
        for _ in range(12):
            a.network.now_s += 1
            await announce_all((a, b, c))
            await next_one.placement.step()
        assert holders((a, b, c), uid) == {"a", next_one.name}
        assert uid not in idle.host.experts


async def test_a_partition_heals_without_everyone_keeping_copies(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "abcdef", tmp_path) as nodes:
        uid = (await nodes[0].spawn(*CLASSES)).uid
        await refresh(nodes, times=8)
        before = holders(nodes, uid)
        one = [nodes[0], *[node for node in nodes[1:] if node.name not in before][:2]]
        other = [node for node in nodes if node not in one]
        network.partition(*(frozenset(node.peer_id for node in side) for side in (one, other)))
        network.now_s += 60  # what each side knew of the other
        await refresh(nodes, times=20)
        assert [len(holders(side, uid)) for side in (one, other)] == [2, 2]
        network.partition()
        await refresh(nodes, times=20)
        assert len(holders(nodes, uid)) == 4, "too soon: the line may break again in a moment"
        await refresh(nodes, times=30)
        assert len(kept := holders(nodes, uid)) == 2
        assert "a" in kept & before, "what a node has learned itself it keeps"


async def test_nothing_is_given_back_to_the_dead(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "abc", tmp_path) as (a, b, c):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b, c))
        for node in (b, c):
            await node.replicas.pull(uid, placed=True)
        await refresh((a, b, c))
        await c.transport.aclose()
        await refresh((a, b), times=50)
        assert c.peer_id in {record.peer_id for record in a.directory.records()}, "its lease holds"
        assert holders((a, b), uid) == {"a", "b"}


async def test_of_what_is_not_placed_nothing_is_given_back(tmp_path: Path) -> None:
    async with mesh(memory_network(), "abcd", tmp_path) as nodes:
        a, b, c, d = nodes
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all(nodes)
        await b.replicas.pull(uid)
        await c.replicas.pull(uid, placed=True)
        await c.replicas.pull(uid)  # now its user has asked for it
        await d.replicas.pull(uid, placed=True)
        await d.host.begin_training(uid)  # and this one learns it
        d.host.end_training(uid)
        await refresh(nodes, times=60)
        assert holders(nodes, uid) == {"a", "b", "c", "d"}


async def test_it_is_remembered_over_a_restart_why_a_replica_is_hosted(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "a", tmp_path) as (a,):
        uid = (await a.spawn(*CLASSES)).uid
        async with memory_node(network, "b", tmp_path, place=PLACE) as b:
            await refresh((a, b), times=3)
            assert b.host.get(uid).placed
        async with memory_node(network, "b", tmp_path, place=PLACE) as b:
            assert b.host.get(uid).placed
            assert b.placement.room_bytes == PLACE.room_bytes - SIZE
            await b.host.keep(uid)
        async with memory_node(network, "b", tmp_path, place=PLACE) as b:
            assert not b.host.get(uid).placed


@pytest.mark.parametrize("place", [replace(PLACE, room=2), replace(PLACE, room_bytes=2 * SIZE)])
async def test_room_is_bounded_in_experts_and_in_bytes(tmp_path: Path, place: PlacementConfig) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uids = [(await a.spawn(*classes)).uid for classes in (("0", "1"), ("2", "3"), ("4", "5"))]
        async with memory_node(a.network, "b", tmp_path, place=place) as b:
            await refresh((a, b), times=10)
            assert len(b.host.experts) == 2
            assert b.placement.room_bytes < SIZE
            (short,) = b.placement.shortages()
            assert (short.num_holders, short.reason) == (1, "no peer has room")
            assert short.uid in uids


async def test_room_that_is_needed_is_made_of_what_the_mesh_has_too_much_of(tmp_path: Path) -> None:
    network = memory_network()
    full = replace(PLACE, room=1)
    async with memory_nodes(network, "acd", tmp_path) as nodes, memory_node(network, "b", tmp_path, place=full) as b:
        a = nodes[0]
        common = next(
            uid for uid in [await everywhere(nodes, str(one)) for one in range(8)] if first_to_go(b, nodes, uid)
        )
        await announce_all((*nodes, b))
        await b.replicas.pull(common, placed=True)
        rare = (await a.spawn("8", "9")).uid
        await refresh((*nodes, b), times=3)
        assert holders((*nodes, b), rare) == {"a", "b"}
        assert holders((*nodes, b), common) == {"a", "c", "d"}


async def test_of_equally_rare_ones_the_room_goes_to_what_tells_most_about_classes(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "a", tmp_path) as (a,), memory_node(network, "b", tmp_path, place=PLACE) as b:
        uids = [(await a.spawn(str(number), str(number + 1))).uid for number in range(4)]
        b.placement.config = replace(PLACE, room=1)
        for worthiest in uids:
            b.placement.worth = lambda chosen=worthiest: {uid: 0.1 + (uid == chosen) for uid in uids}
            await refresh((a, b), times=3)
            assert b.host.experts.keys() == {worthiest}
            await b.dropping.drop(worthiest, least_others=1, asked=False)


async def everywhere(nodes: Sequence[MemoryNode], *classes: str) -> ExpertUid:
    for node in nodes:
        expert = await node.spawn(*classes)
    return expert.uid


def first_to_go(node: MemoryNode, others: Sequence[MemoryNode], uid: ExpertUid) -> bool:
    family = KeptExpert(uid=uid, num_bytes=1, holders=frozenset(one.peer_id for one in (node, *others)))
    return surplus_turn(node.peer_id, family, replicas=2) == 0


async def test_families_count_as_one(tmp_path: Path) -> None:
    async with mesh(memory_network(), "abc", tmp_path) as nodes:
        a, b, c = nodes
        old = await a.spawn(*CLASSES)
        await b.spawn(*CLASSES)
        new = await migrate(a, old)
        await refresh(nodes, times=10)
        assert not c.host.experts, "b holds the old form, a the new one: two of the family"
        assert [kept.holders for kept in map(c.placement.kept, c.directory.current().values())] == [
            {a.peer_id, b.peer_id}
        ]
        assert new.uid in c.directory.current()


async def test_what_cannot_be_pulled_is_tried_again_later_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = memory_network()
    async with mesh(network, "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b))
        network.partition(frozenset({a.peer_id}))
        await refresh((a, b), times=8)
        assert uid not in b.host.experts
        assert "could not be pulled" in b.placement.shortages()[0].reason
        assert caplog.text.count("cannot be adopted yet") == 1
        network.partition()
        await refresh((a, b), times=8)
        assert uid in b.host.experts
        assert b.placement.shortages() == ()


async def test_a_lonely_node_says_so_and_a_larger_form_needs_more_room(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        await a.spawn(*CLASSES, form=form("mlp", hidden=8))
        await announce_all((a,))
        assert [short.reason for short in a.placement.shortages()] == ["there is no other peer in the mesh"]
        async with memory_node(network, "b", tmp_path, place=replace(PLACE, room_bytes=SIZE)) as b:
            await refresh((a, b), times=8)
            assert not b.host.experts


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
async def test_what_has_learned_nothing_hardly_counts_in_a_mean(tmp_path: Path, weighting: str) -> None:
    config = NodeConfig.model_validate({"average": {"weighting": weighting}})
    coded = NodeConfig.model_validate({"average": {"weighting": weighting, "compression": "int8"}})
    async with mesh(memory_network(), "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b))
        placed = await b.replicas.pull(uid, placed=True)
        assert weight_of(placed, config, 0) < 0.001 * weight_of(a.host.get(uid), config, 1)
        assert weight_of(placed, coded, 0) == weight_of(a.host.get(uid), coded, 1)
        await b.host.keep(uid)
        assert weight_of(placed, config, 1) == 1


# --- dropping ---


async def test_the_last_replica_is_dropped_only_by_force_and_leaves_garbage_alone(tmp_path: Path) -> None:
    async with mesh(memory_network(), "ab", tmp_path) as (a, b):
        expert = await a.spawn(*CLASSES)
        await announce_all((a, b))
        with pytest.raises(Refused, match="no other peer"):
            await a.dropping.drop(expert.uid, least_others=1, asked=True)
        await b.replicas.pull(expert.uid)
        await announce_all((a, b))
        b.go_silent()
        a.dropping = replace(a.dropping, timeout_s=0.05)
        with pytest.raises(Refused):
            await a.dropping.drop(expert.uid, least_others=1, asked=True)
        assert expert.uid in a.host.experts, "a record is not a replica"
        await a.dropping.drop(expert.uid, least_others=0, asked=True)
        assert not a.host.experts
        assert a.state.hosted_experts() == ()
        assert a.state.ledger.generations(expert.uid) == ()
        assert expert.weights in a.state.collect_garbage()
        with pytest.raises(UnknownExpert):
            await a.dropping.drop(expert.uid, least_others=0, asked=True)


async def test_one_of_several_replicas_is_dropped_with_what_it_has_succeeded(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "b", tmp_path) as (b,):
        async with memory_node(network, "a", tmp_path) as a:
            old = await a.spawn(*CLASSES)
            new = await migrate(a, old)
            await announce_all((a, b))
            await b.replicas.pull(new.uid)
            await announce_all((a, b))
            await a.dropping.drop(new.uid, least_others=1, asked=True)
            assert (dict(a.host.experts), dict(a.host.retired)) == ({}, {})
        async with memory_node(network, "a", tmp_path) as a:
            assert not a.host.experts
            await announce_all((a, b))
            assert (await a.replicas.pull(new.uid)).uid == new.uid


async def test_what_is_in_training_is_not_dropped(tmp_path: Path) -> None:
    async with mesh(memory_network(), "a", tmp_path) as (a,):
        uid = (await a.spawn(*CLASSES)).uid
        await a.host.begin_training(uid)
        with pytest.raises(Refused, match="in training"):
            await a.dropping.drop(uid, least_others=0, asked=True)
        a.host.end_training(uid)
        await a.dropping.drop(uid, least_others=0, asked=True)


async def test_a_dropped_one_is_not_adopted_again_for_some_hours(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await refresh((a, b), times=3)
        await b.dropping.drop(uid, least_others=1, asked=True)
        await refresh((a, b), times=20)
        assert uid not in b.host.experts
        assert a.placement.shortages()[0].reason == "b is to adopt it"
        assert b.placement.shortages()[0].reason == "this node's user does not want it"
        network.now_s += PLACE.unwanted_s
        await refresh((a, b), times=3)
        assert uid in b.host.experts


async def test_an_erased_one_is_never_adopted_again_by_itself(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await refresh((a, b), times=3)
        assert b.host.get(uid).placed
        await b.host.erase(uid)
        network.now_s += 1000 * PLACE.unwanted_s
        await refresh((a, b), times=20)
        assert uid not in b.host.experts
        assert b.placement.shortages()[0].reason == "this node's user does not want it"


async def test_a_round_under_way_is_waited_for(tmp_path: Path) -> None:
    network = memory_network()
    async with mesh(network, "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await b.spawn(*CLASSES)
        await a.learn(uid, seed=1)
        network.now_s += 30
        await announce_all((a, b))
        number = int(network.now_s // 10) + 2
        rounds = asyncio.gather(a.averager.run_round(number), b.averager.run_round(number))
        await asyncio.sleep(0)
        await a.dropping.drop(uid, least_others=1, asked=True)
        assert uid not in a.averager.waiting()
        await rounds
        assert b.averager.results["committed"] == 1
