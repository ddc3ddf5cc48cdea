"""Replicas that come from peers and from files: hosted with exactly the weights that were sent, or not at all."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from mesh_in_memory import MESH, MemoryNode, announce_all, form, memory_network, memory_node, memory_nodes
from successions import migrate

from experts.checkpoint import read_safetensors, tensors_to_bytes, write_safetensors
from meshnode.errors import ExpertFileRefused, NoSuchPeerOrExpert, Refused
from meshnode.home import Home
from meshnode.kept_experts import export_kept, import_kept
from meshnode.replica_pulls import ReplicaPull, ReplicaPulls
from meshnode.state.state import State
from protocol.errors import UnknownBlob, UnknownExpert
from protocol.identifiers import ExpertUid, digest_of

CLASSES = ("0", "1")


async def over(pulls: ReplicaPulls, pull: ReplicaPull) -> ReplicaPull:
    running = asyncio.create_task(pulls.run())
    async with asyncio.timeout(10):
        while not pull.is_over:
            await asyncio.sleep(0.005)
    running.cancel()
    return pull


async def test_a_replica_is_pulled_at_its_newest_generation_and_hosted(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, c):
        uid = (await a.spawn(*CLASSES)).uid
        await b.spawn(*CLASSES)
        learned = await b.learn(uid, seed=1)
        await announce_all((a, b, c))
        expert = await c.replicas.pull(uid)
        assert np.array_equal(c.host.snapshot(uid), learned)
        assert (expert.classes, expert.drift) == (CLASSES, 0)
        assert await c.replicas.pull(uid) is expert  # nothing more to do
        assert expert.generation == 1


async def test_a_replica_is_taken_from_the_one_peer_that_is_named(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, c):
        uid = (await a.spawn(*CLASSES)).uid
        await b.spawn(*CLASSES)
        await b.learn(uid, seed=1)
        await announce_all((a, b, c))
        await c.replicas.pull(uid, source=a.peer_id)
        assert np.array_equal(c.host.snapshot(uid), a.host.snapshot(uid))
        with pytest.raises(UnknownExpert):
            await b.replicas.pull(ExpertUid(digest_of(b"nobody's")))


async def test_where_the_newest_weights_are_gone_older_ones_are_taken(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, c):
        uid = (await a.spawn(*CLASSES)).uid
        await b.spawn(*CLASSES)
        await b.learn(uid, seed=1)
        await announce_all((a, b, c))
        b.state.blobs.delete(b.host.get(uid).weights)
        await c.replicas.pull(uid)
        assert np.array_equal(c.host.snapshot(uid), a.host.snapshot(uid))


async def test_orders_are_carried_out_and_say_why_they_failed(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b))
        pulls = ReplicaPulls(b.replicas)
        assert pulls.newest(uid) is None
        a.network.partition(frozenset({a.peer_id}))
        failed = pulls.order(uid, None)
        assert pulls.order(uid, None) is failed  # it is on its way already
        await over(pulls, failed)
        assert failed.state == "failed"
        assert failed.error is not None
        assert failed.error["code"] == "peer_unreachable"
        a.network.partition()
        hosted = await over(pulls, pulls.order(uid, a.peer_id))
        assert (hosted.state, hosted.error) == ("hosted", None)
        assert pulls.newest(uid) is hosted
        assert uid in b.host.experts


async def test_an_expert_that_is_pulled_twice_at_once_is_hosted_once(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b))
        one, two = await asyncio.gather(b.replicas.pull(uid), b.replicas.pull(uid))
        assert one is two
        assert len(b.state.ledger.generations(uid)) == 1


async def exported(node: MemoryNode) -> tuple[ExpertUid, bytes]:
    uid = (await node.spawn(*CLASSES)).uid
    await node.learn(uid, seed=3)
    return uid, await node.replicas.export(uid)


async def test_an_exported_expert_is_the_same_one_on_another_node(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        uid, file = await exported(a)
        expert = await b.replicas.take(file, replace=False)
        assert (expert.uid, expert.classes) == (uid, CLASSES)
        assert expert.weights == a.host.get(uid).weights
        assert b.averager.waiting() == (uid,), "the group does not have it yet"
        assert expert.origin == a.host.get(uid).origin
        images = np.zeros((3, MESH.spec.feature_dim), np.float32)
        assert np.array_equal(
            (await a.host.answer(uid, images)).probabilities, (await b.host.answer(uid, images)).probabilities
        )
    async with memory_node(memory_network(), "b", tmp_path) as b:
        assert b.host.get(uid).weights == digest_of(b.state.blobs.get(b.host.get(uid).weights))
        assert b.averager.waiting() == (uid,)


async def test_a_file_of_weights_of_another_origin_takes_nobodys_place(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        _, file = await exported(a)
        elsewhere = digest_of(b"initial weights of another kind")
        tensors, config = read_safetensors(file)
        foreign = write_safetensors(tensors, {**config, "origin": elsewhere})
        with pytest.raises(Refused, match="do not descend"):
            await a.replicas.take(foreign, replace=True)
        assert (await b.replicas.take(foreign, replace=False)).origin == elsewhere
        with pytest.raises(Refused, match="do not descend"):
            await b.replicas.take(file, replace=True)
    with pytest.raises(Refused, match="do not descend"):
        import_kept(Home(tmp_path / "b"), file, replace=True)


async def test_a_hosted_replica_gives_way_only_to_who_says_so_and_not_while_it_learns(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        uid, file = await exported(a)
        await b.spawn(*CLASSES)
        before = b.host.get(uid).weights
        with pytest.raises(Refused, match="hosted here already"):
            await b.replicas.take(file, replace=False)
        await b.host.begin_training(uid)
        with pytest.raises(Refused, match="in training"):
            await b.replicas.take(file, replace=True)
        assert b.host.get(uid).weights == before
        b.host.end_training(uid)
        expert = await b.replicas.take(file, replace=True)
        assert (expert.weights, expert.generation) == (a.host.get(uid).weights, 2)
        assert b.averager.waiting() == (uid,)


async def test_an_exported_successor_takes_the_old_ones_place_where_it_is_hosted(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, c):
        old = await a.spawn(*CLASSES)
        await b.spawn(*CLASSES)
        new = await migrate(a, old)
        learned = await a.learn(new.uid, seed=3)
        file = await a.replicas.export(new.uid)
        for node in (b, c):
            expert = await node.replicas.take(file, replace=False)
            assert (expert.uid, expert.origin, expert.ancestors) == (new.uid, new.origin, (old.uid,))
            assert np.array_equal(node.host.snapshot(new.uid), learned)
            assert node.averager.waiting() == (new.uid,), "the group does not have it yet"
            assert await node.replicas.export(new.uid) == file.replace(b'generation\\":2', b'generation\\":1')
        assert (list(b.host.experts), list(b.host.retired)) == ([new.uid], [old.uid])
        assert (list(c.host.experts), list(c.host.retired)) == ([new.uid], [])
        with pytest.raises(Refused, match="was succeeded here"):
            await c.replicas.take(await b.replicas.export(old.uid), replace=False)


async def test_a_successor_is_exported_and_imported_without_a_daemon(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, _):
        old = await a.spawn(*CLASSES)
        await b.spawn(*CLASSES)
        old_file = await a.replicas.export(old.uid)
        new = await migrate(a, old)
        file = await a.replicas.export(new.uid)
    assert export_kept(Home(tmp_path / "a"), new.uid) == file
    for name, retired in (("b", [old.uid]), ("c", [])):
        home = Home(tmp_path / name)
        assert import_kept(home, file, replace=False).uid == new.uid
        with pytest.raises(Refused, match="succeeded"):
            import_kept(home, old_file, replace=True)
        async with memory_node(memory_network(), name, tmp_path) as node:
            assert (list(node.host.experts), list(node.host.retired)) == ([new.uid], retired)
            assert (node.host.get(new.uid).origin, node.host.get(new.uid).lineage) == (new.origin, new.lineage)
            assert node.averager.waiting() == (new.uid,)


LINEAGE_FORGERIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no lineage": lambda config: {name: value for name, value in config.items() if name != "lineage"},
    "no ancestors": lambda config: {
        **config,
        "expert": {name: value for name, value in config["expert"].items() if name not in ANCESTRY},
    },
    "other ancestors": lambda config: {**config, "expert": {**config["expert"], "ancestors": [digest_of(b"another")]}},
    "another step": lambda config: {
        **config,
        "lineage": {**config["lineage"], "steps": [{**config["lineage"]["steps"][0], "made_at": 1.0}]},
    },
    "no step": lambda config: {**config, "lineage": {**config["lineage"], "steps": []}},
    "another origin": lambda config: {**config, "origin": digest_of(b"another")},
}
ANCESTRY = ("ancestors", "lineage")


@pytest.mark.parametrize("forge", LINEAGE_FORGERIES.values(), ids=LINEAGE_FORGERIES.keys())
async def test_a_file_whose_lineage_is_not_the_experts_is_refused_whole(
    tmp_path: Path, forge: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        new = await migrate(a, await a.spawn(*CLASSES))
        old = await b.spawn(*CLASSES)
        tensors, config = read_safetensors(await a.replicas.export(new.uid))
        with pytest.raises(ExpertFileRefused):
            await b.replicas.take(write_safetensors(tensors, forge(config)), replace=True)
        assert (list(b.host.experts), list(b.host.retired)) == ([old.uid], [])


Forge = Callable[[dict[str, Any], dict[str, Any]], bytes]


def rewritten(tensors: dict[str, Any], config: dict[str, Any], **expert: object) -> bytes:
    return write_safetensors(tensors, {**config, "expert": {**config["expert"], **expert}})


def bias_of(tensors: dict[str, Any]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("bias"))


FORGERIES: dict[str, Forge] = {
    "no metadata": lambda tensors, config: tensors_to_bytes(tensors),
    "another schema": lambda tensors, config: write_safetensors(tensors, {**config, "schema": "modulemesh.expert/2"}),
    "another mesh": lambda tensors, config: write_safetensors(tensors, {**config, "mesh": digest_of(b"another")}),
    "another uid": lambda tensors, config: rewritten(tensors, config, uid=digest_of(b"another")),
    "other classes": lambda tensors, config: rewritten(tensors, config, classes=["0", "2"]),
    "another form": lambda tensors, config: rewritten(tensors, config, form=msgspec.to_builtins(form("mlp", hidden=6))),
    "an unknown form": lambda tensors, config: rewritten(tensors, config, form={"kind": "none", "config": {}}),
    "another digest": lambda tensors, config: rewritten(tensors, config, weights=digest_of(b"another")),
    "a tensor less": lambda tensors, config: write_safetensors(
        {name: tensor for name, tensor in tensors.items() if name != bias_of(tensors)}, config
    ),
    "another shape": lambda tensors, config: write_safetensors(
        {**tensors, bias_of(tensors): tensors[bias_of(tensors)][:-1]}, config
    ),
    "another type": lambda tensors, config: write_safetensors(
        {name: tensor.double() for name, tensor in tensors.items()}, config
    ),
    "no number": lambda tensors, config: write_safetensors(
        {name: tensor * float("nan") for name, tensor in tensors.items()}, config
    ),
    "other weights": lambda tensors, config: write_safetensors(
        {name: tensor + 1 for name, tensor in tensors.items()}, config
    ),
    "cut off": lambda tensors, config: write_safetensors(tensors, config)[:-4],
    "a pickle": lambda tensors, config: b"\x80\x04K\x01.",
    "nothing": lambda tensors, config: b"",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_file_that_is_no_expert_of_this_mesh_is_refused_whole(tmp_path: Path, forge: Forge) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        _, file = await exported(a)
        with pytest.raises(ExpertFileRefused):
            await b.replicas.take(forge(*read_safetensors(file)), replace=True)
        assert (b.host.experts, b.state.hosted_experts()) == ({}, ())


async def test_what_a_home_keeps_is_exported_and_imported_without_a_daemon(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, _):
        uid, file = await exported(a)
        weights = a.host.get(uid).weights
    ann, ben = Home(tmp_path / "a"), Home(tmp_path / "b")
    assert export_kept(ann, uid[:6]) == file
    assert import_kept(ben, file, replace=False).uid == uid
    with pytest.raises(Refused, match="already"):
        import_kept(ben, file, replace=False)
    assert import_kept(ben, file, replace=True).generation == 2
    async with memory_node(memory_network(), "b", tmp_path) as b:
        assert b.host.get(uid).weights == weights
        assert b.averager.waiting() == (uid,)


def test_a_home_without_the_expert_or_without_a_mesh_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="belongs to no mesh"):
        export_kept(Home(tmp_path / "new"), "ab")
    with pytest.raises(Refused, match="belongs to no mesh"):
        import_kept(Home(tmp_path / "new"), b"", replace=False)


async def test_an_expert_is_exported_by_a_beginning_of_its_uid_that_no_other_has(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        await a.spawn(*CLASSES)
    for uid in ("", "no uid begins so"):
        with pytest.raises(NoSuchPeerOrExpert):
            export_kept(Home(tmp_path / "a"), uid)
    with State(Home(tmp_path / "a")) as state:
        assert len(state.hosted_experts()) == 1


async def test_what_is_pulled_and_not_delivered_names_the_cause(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        uid = (await a.spawn(*CLASSES)).uid
        await announce_all((a, b))
        a.state.blobs.delete(a.host.get(uid).weights)
        with pytest.raises(UnknownBlob):
            await b.replicas.pull(uid)
        assert uid not in b.host.experts


async def test_what_its_user_imports_into_a_home_is_no_longer_there_by_placement_only(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        uid = (await a.spawn(*CLASSES)).uid
        file = await a.replicas.export(uid)
        async with memory_node(network, "b", tmp_path) as b:
            await announce_all((a, b))
            await b.replicas.pull(uid, placed=True)
        import_kept(Home(tmp_path / "b"), file, replace=True)
        async with memory_node(network, "b", tmp_path) as b:
            assert not b.host.get(uid).placed
