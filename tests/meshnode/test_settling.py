"""Of several beginnings of one expert the records say which is left, and only who can have that gives up its own."""

import asyncio
import dataclasses
import random
from contextlib import suppress
from pathlib import Path

import pytest
from mesh_in_memory import MESH, MemoryNode, announce_all, memory_network, memory_nodes
from successions import METHOD, migrate, other_weights

from meshnode.following import Following
from meshnode.hosted import BEGUN, Descent
from meshnode.settling import RETRY_S, Settling
from meshnode.state.rows import TaskRow
from protocol.errors import UnknownBlob, UnknownExpert
from protocol.identifiers import ExpertUid, digest_of
from protocol.lineage import Accuracy, Lineage, Source, Succession, encode_lineage

CLASSES, FORM = ("2", "3"), MESH.form_for(2)
PLAIN, BEGUN_UID = MESH.uid_of(CLASSES, FORM), MESH.uid_of_begun(CLASSES, FORM)
ANOTHER = MESH.uid_of(("0", "1"), FORM)


async def begin(node: MemoryNode, seed: str) -> ExpertUid:
    """Host the expert as if it had begun as another one here."""
    weights = other_weights(FORM, 2, seed)
    step = Succession(
        parent=PLAIN,
        parent_form=FORM,
        parent_weights=digest_of(b"initial"),
        uid=BEGUN_UID,
        form=FORM,
        classes=CLASSES,
        weights=digest_of(weights),
        method=METHOD,
        layers=(),
        accuracy=Accuracy(old=0.5, new=0.9, samples=80),
        made_at=5.0,
        peer_id=node.peer_id,
        source=Source(uid=ANOTHER, form=FORM, classes=("0", "1"), weights=digest_of(b"another")),
    )
    descent = Descent(cause=BEGUN, lineage=encode_lineage(Lineage((step,))), tasks=("task",))
    architecture = MESH.architecture(FORM, 2)
    return (await node.host.adopt(BEGUN_UID, CLASSES, architecture, weights, descent)).uid


def settling(node: MemoryNode) -> Settling:
    return Settling(
        mesh=MESH,
        state=node.state,
        host=node.host,
        directory=node.directory,
        replicas=node.replicas,
        trainer=None,
        let_go=node.averager.let_go,
    )


async def settle(*nodes: MemoryNode) -> None:
    await announce_all(nodes)
    for node in nodes:
        await settle_all(node)


async def settle_all(node: MemoryNode) -> None:
    for uid in tuple(node.host.experts):
        # What has gone meanwhile is asked for in vain, and the next records tell of it.
        with suppress(UnknownBlob, UnknownExpert):
            await settling(node).settle(uid)


async def test_of_equals_what_began_at_random_is_left(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        await a.spawn(*CLASSES)
        await begin(b, "x")
        await settle(a, b)
        assert a.host.experts.keys() == b.host.experts.keys() == {PLAIN}
        assert b.host.get(PLAIN).origin == a.host.get(PLAIN).origin
        assert b.host.retired == {}


async def test_the_one_with_the_most_replicas_is_left(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, c):
        await a.spawn(*CLASSES)
        await begin(b, "x")
        await announce_all((b, c))
        await c.replicas.pull(BEGUN_UID, placed=True)
        await settle(a, b, c)
        assert all(node.host.experts.keys() == {BEGUN_UID} for node in (a, b, c))
        assert len({node.host.get(BEGUN_UID).origin for node in (a, b, c)}) == 1
        assert [node.host.get(BEGUN_UID).placed for node in (a, b, c)] == [False, False, True]
        assert a.host.retired == {}


async def test_of_two_that_began_as_others_the_lineage_decides_and_what_is_placed_stays_so(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abcd", tmp_path) as (a, b, c, d):
        for node, seed, puller in ((a, "x", c), (b, "y", d)):
            await begin(node, seed)
            await announce_all((node, puller))
            await puller.replicas.pull(BEGUN_UID, source=node.peer_id, placed=True)
        least = min(node.host.get(BEGUN_UID).lineage or "" for node in (a, b))
        await settle(a, b, c, d)
        assert {node.host.get(BEGUN_UID).lineage for node in (a, b, c, d)} == {least}
        assert [node.host.get(BEGUN_UID).placed for node in (a, b, c, d)] == [False, False, True, True]


async def test_nobody_follows_another_beginning_that_knows_nothing_of_what_this_one_learned(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        await a.spawn(*CLASSES)
        begun = await begin(b, "x")
        await announce_all((a, b))
        following = Following(
            mesh=MESH, state=a.state, host=a.host, directory=a.directory, replicas=a.replicas, trainer=None, margin=0.01
        )
        assert a.directory.current().keys() == {begun}, "one expert's gate mass, whichever is left"
        assert following.successor_of(PLAIN) is None
        # What is made of it is a successor as any other.
        further = await migrate(b, b.host.get(begun))
        await announce_all((a, b))
        assert following.successor_of(PLAIN) == further.uid


@pytest.mark.parametrize("declined", [True, False])
async def test_what_cannot_be_had_or_is_not_wanted_takes_nothing_s_place(tmp_path: Path, declined: bool) -> None:
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        await a.spawn(*CLASSES)
        begun = await begin(b, "x")
        b.state.ledger.put_task(TaskRow(name="task", digest=digest_of(b"task"), state="learned", learned_at=1.0))
        await announce_all((a, b))
        if declined:
            b.state.decline(PLAIN)
            await settling(b).settle(begun)
        else:
            network.partition(frozenset({a.peer_id}), frozenset({b.peer_id}))
            with pytest.raises(UnknownBlob):
                await settling(b).settle(begun)
        assert b.host.experts.keys() == {begun}
        assert [row.name for row in b.state.ledger.tasks()] == ["task"]


async def test_nothing_is_given_up_that_peers_have_not_been_told_of(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        await a.spawn(*CLASSES)
        await announce_all((a, b))
        begun = await begin(b, "x")
        await settling(b).settle(begun)
        assert b.host.experts.keys() == {begun}
        await settle(a, b)
        assert b.host.experts.keys() == {PLAIN}


async def test_experts_that_began_elsewhere_are_nothing_to_settle(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        old = await a.spawn(*CLASSES)
        new = await migrate(a, old)
        await b.spawn("0", "1")
        await settle(a, b)
        assert (a.host.experts.keys(), b.host.experts.keys()) == ({new.uid}, {ANOTHER})


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_was_begun_where_and_whoever_has_heard_of_it_one_is_left(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with memory_nodes(memory_network(), "abcde", tmp_path) as nodes:
        for node in nodes:
            seeds = rng.choice(["plain", "x", "y"])
            await (node.spawn(*CLASSES) if seeds == "plain" else begin(node, seeds))
        for _ in range(3):  # some say what they hold, some look, and those act by what they know
            for node in rng.sample(nodes, 3):
                await node.announce()
            for node in rng.sample(nodes, 3):
                await node.directory.refresh()
            await asyncio.gather(*(settle_all(node) for node in rng.sample(nodes, 2)))
        for _ in range(2):
            await announce_all(nodes)
            await asyncio.gather(*(settle_all(node) for node in nodes))
        held = {(expert.uid, expert.lineage) for node in nodes for expert in node.host.experts.values()}
        assert len(held) == 1
        assert len({expert.origin for node in nodes for expert in node.host.experts.values()}) == 1


async def test_what_could_not_be_had_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, clock = memory_network(), [0.0]
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        await a.spawn(*CLASSES)
        begun = await begin(b, "x")
        await announce_all((a, b))
        service = dataclasses.replace(settling(b), now_s=lambda: clock[0])
        tries = []

        async def settle_and_note(self: Settling, uid: ExpertUid) -> None:
            tries.append(uid)
            await of_the_class(self, uid)

        of_the_class = Settling.settle
        monkeypatch.setattr(Settling, "settle", settle_and_note)
        running = asyncio.create_task(service.run())
        network.partition(frozenset({a.peer_id}), frozenset({b.peer_id}))
        for now_s, expected in ((0.0, 1), (RETRY_S - 1, 1), (RETRY_S, 2)):
            clock[0] = now_s
            service.look_again()
            await asyncio.sleep(0.05)
            assert tries == [begun] * expected
        network.partition()
        clock[0] = 2 * RETRY_S
        service.look_again()
        async with asyncio.timeout(10.0):
            while b.host.experts.keys() != {PLAIN}:
                await asyncio.sleep(0.01)
        running.cancel()
