"""Peers that hold replicas of an expert that another one succeeds: who averages with whom, follows or pulls."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest
from mesh_in_memory import (
    MESH,
    MemoryNode,
    announce_all,
    form,
    memory_network,
    memory_node,
    memory_nodes,
)
from succession_mesh import FIRST, SECOND, average, expert_of, mesh
from successions import WIDER, lineage_of_successor, migrate, other_weights, widened

from experts.averaging import Averaged
from meshnode.averaging.catchup import catch_up
from meshnode.documents import expert_documents
from meshnode.errors import NoAncestorHere, Refused
from meshnode.hosted import FOLLOWED, HostedExpert
from meshnode.runtime import MeshRuntime
from protocol.errors import MalformedLineage
from protocol.identifiers import ExpertUid, digest_of


async def test_those_who_keep_the_old_one_go_on_averaging_it(tmp_path: Path) -> None:
    async with mesh(tmp_path, "abc") as (client, a, b, c):
        old = expert_of(a)
        await migrate(a, old)
        learned = [await node.learn(old.uid, seed=seed) for seed, node in enumerate((b, c))]
        await announce_all([client, a, b, c])
        await average([a, b, c])
        for node in (b, c):
            assert np.allclose(node.host.snapshot(old.uid), np.mean(learned, axis=0), atol=1e-6)
            assert dict(node.averager.results) == {"committed": 1}
        assert not a.averager.results
        assert a.state.ledger.generations(old.uid)[0].cause != "averaged"


async def test_a_round_that_ends_after_the_succession_changes_only_the_retired_one(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (_, a, b):
        old = expert_of(a)
        learned = [await node.learn(old.uid, seed=seed) for seed, node in enumerate((a, b))]
        exchange, new = a.averager._exchanges.run, list[HostedExpert]()

        async def succeed_meanwhile(*args: object, **kwargs: object) -> object:
            exchanged = await exchange(*args, **kwargs)  # type: ignore[arg-type]
            new.append(await migrate(a, old))
            return exchanged

        a.averager._exchanges.run = succeed_meanwhile  # type: ignore[method-assign, assignment]
        await average([a, b])
        mean = np.mean(learned, axis=0)
        assert np.allclose(a.host.snapshot(old.uid), mean, atol=1e-6)
        assert np.allclose(b.host.snapshot(old.uid), mean, atol=1e-6)
        assert len(a.state.ledger.generations(new[0].uid)) == 1


async def test_a_peer_that_follows_serves_the_successor_and_is_averaged_with_it(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (_, a, b):
        old = expert_of(a)
        new = await migrate(a, old)
        await announce_all([a, b])
        heard = list[tuple[str, object]]()
        b.replicas.telemetry.events.listen(lambda event: heard.append((event.kind, event.facts.get("succeeds"))))
        followed = await b.replicas.pull(new.uid)
        assert heard == [("expert_succeeded", old.uid), ("expert_hosted", None)]
        assert (list(b.host.experts), list(b.host.retired)) == ([new.uid], [old.uid])
        assert followed.advert() == msgspec.structs.replace(new.advert(), since=followed.since)
        assert followed.origin == new.origin == new.weights
        assert b.state.ledger.generations(new.uid)[0].cause == FOLLOWED
        learned = [await node.learn(new.uid, seed=seed) for seed, node in enumerate((a, b))]
        await announce_all([a, b])
        await average([a, b])
        for node in (a, b):
            assert np.allclose(node.host.snapshot(new.uid), np.mean(learned, axis=0), atol=1e-6)
            assert dict(node.averager.results) == {"committed": 1}
        with pytest.raises(Refused, match="was succeeded here"):
            await b.replicas.pull(old.uid)


async def test_a_peer_without_the_old_one_pulls_the_successor_with_its_lineage(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_nodes(network, "ab", tmp_path) as (a, b):
        new = await migrate(a, await a.spawn(*FIRST))
        await a.learn(new.uid, seed=1)
        await announce_all([a, b])
        pulled = await b.replicas.pull(new.uid)
        assert (pulled.weights, pulled.origin, pulled.lineage) == (new.weights, new.origin, new.lineage)
        with pytest.raises(NoAncestorHere):
            await b.host.roll_back(new.uid)
        uid, advert = new.uid, pulled.advert()
    async with memory_node(network, "b", tmp_path) as b:
        assert b.host.get(uid).advert() == advert
        assert b.host.get(uid).origin == new.origin


async def test_two_that_carried_one_over_apart_are_not_averaged(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (_, a, b):
        ours = await migrate(a, expert_of(a))
        theirs = await migrate(b, expert_of(b), weights=other_weights(WIDER, 2))
        assert ours.uid == theirs.uid
        learned = [await node.learn(ours.uid, seed=seed) for seed, node in enumerate((a, b))]
        await announce_all([a, b])
        await average([a, b])
        for node, vector in zip((a, b), learned, strict=True):
            assert node.averager.results["differing_origins"] == 1
            assert np.array_equal(node.host.snapshot(ours.uid), vector)


async def test_one_that_was_carried_over_apart_does_not_catch_up_with_the_other(tmp_path: Path) -> None:
    async with mesh(tmp_path, "abc") as (_, a, b, c):
        ours = await migrate(a, expert_of(a))
        theirs = await migrate(b, expert_of(b), weights=other_weights(WIDER, 2))
        await announce_all([a, b, c])
        await c.replicas.pull(ours.uid, source=a.peer_id)
        theirs.round = 9
        await announce_all([b, c])
        before = c.host.snapshot(ours.uid)
        assert not await catch_up(ours.uid, c.directory, c.host, c.puller, apply=never)
        ours.round = 5
        await announce_all([a, c])
        applied = list[int]()

        async def apply(uid: ExpertUid, averaged: Averaged, number: int) -> None:
            applied.append(number)

        assert await catch_up(ours.uid, c.directory, c.host, c.puller, apply=apply)
        assert applied == [5]
        assert np.array_equal(c.host.snapshot(ours.uid), before)


async def never(uid: ExpertUid, averaged: Averaged, number: int) -> None:
    raise AssertionError("there is nothing to catch up with")


async def test_documents_say_what_is_current_what_has_superseded_it_and_how_it_is_kept(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (client, a, b):
        old, second = expert_of(b), expert_of(a, SECOND)
        new = await migrate(b, old)
        newest = await migrate(b, new, form("linear"), weights=other_weights(form("linear"), 2))
        await announce_all([a, b, client])

        def told(node: MemoryNode, *, local: bool) -> dict[ExpertUid, tuple[object, ...]]:
            runtime = cast("MeshRuntime", SimpleNamespace(host=node.host, directory=node.directory, mesh=MESH))
            fields = ("local", "standing", "superseded_by")
            return {one["uid"]: tuple(map(one.get, fields)) for one in expert_documents(runtime, local=local)}

        await b.directory.refresh()
        assert told(b, local=True) == {
            old.uid: (False, "retired", newest.uid),
            new.uid: (False, "retired", newest.uid),  # which nobody advertises
            newest.uid: (True, "current", None),
        }
        assert told(a, local=True) == {
            old.uid: (True, "current", newest.uid),
            second.uid: (True, "current", None),
        }
        assert told(client, local=False) == {
            old.uid: (False, None, newest.uid),
            newest.uid: (False, None, None),
            second.uid: (False, None, None),
        }


async def test_a_lineage_of_another_expert_is_not_pulled(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (_, a, b):
        old = expert_of(a)
        new = await migrate(a, old)
        other = lineage_of_successor(a, expert_of(a, SECOND), WIDER, widened(expert_of(a, SECOND)))
        new.lineage = a.state.blobs.put(other)
        await announce_all([a, b])
        with pytest.raises(MalformedLineage):
            await b.replicas.pull(new.uid)
        assert list(b.host.experts) == [old.uid]
        assert b.host.retired == {}
        assert digest_of(other) == new.lineage
