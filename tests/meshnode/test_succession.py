"""An expert of another form takes an expert's place: nobody who asks notices, and it can be taken back."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from mesh_in_memory import (
    MESH,
    announce_all,
    form,
    memory_network,
    memory_node,
    statistics_of,
)
from succession_mesh import FEATURES, FIRST, IMAGES, SECOND, answered, ask, expert_of, mesh
from successions import WIDER, lineage_of_successor, migrate, other_weights, widened

from experts.errors import CorruptWeights
from meshnode.errors import NoAncestorHere, Refused
from meshnode.hosted import MIGRATED
from meshnode.state.rows import Generation
from protocol.errors import MalformedLineage, UnknownExpert
from protocol.records import PeerRecord, record_key, seal_record

# --- those who ask ---


async def test_answers_are_the_same_before_during_and_after_a_succession(tmp_path: Path) -> None:
    async with mesh(tmp_path, "a") as (client, a):
        before, old = await ask(client), expert_of(a)
        succession = asyncio.create_task(migrate(a, old))
        during = []
        while not succession.done():
            during.append(await ask(client))
            during.append(await a.inference.predict(IMAGES, timeout_s=10, top_k=2) if a.contributions.view else before)
        await announce_all([a, client])
        after = await ask(client)
        assert during
        for prediction in (*during, after):
            assert np.allclose(prediction.outputs_BC, before.outputs_BC, atol=1e-6)
            assert np.allclose(prediction.missing_mass_B, 0.0)
            assert not [call.error for call in prediction.calls if call.error]
        assert old.uid in answered(before)
        assert answered(after) == {succession.result().uid, expert_of(a, SECOND).uid}


async def test_a_client_with_an_old_view_is_answered_by_the_retired_one(tmp_path: Path) -> None:
    async with mesh(tmp_path, "a") as (client, a):
        before, old = await ask(client), expert_of(a)
        await migrate(a, old, weights=other_weights(WIDER, 2))
        stale = await ask(client)
        assert np.array_equal(stale.outputs_BC, before.outputs_BC)
        assert old.uid in answered(stale)


async def test_the_node_itself_is_answered_while_its_own_record_still_lists_the_old_one(tmp_path: Path) -> None:
    async with mesh(tmp_path, "a") as (_, a):
        await a.contribute("t", statistics_of(*FIRST, *SECOND, num_images=400))
        before, old = await ask(a), expert_of(a)
        await migrate(a, old)
        stale = await ask(a)
        assert old.uid in answered(stale)
        assert np.array_equal(stale.outputs_BC, before.outputs_BC)


async def test_where_the_successors_only_holder_is_silent_the_old_one_answers_and_no_mass_is_missing(
    tmp_path: Path,
) -> None:
    async with mesh(tmp_path, "ab") as (client, a, b):
        before, old, second = await ask(client), expert_of(b), expert_of(a, SECOND)
        new = await migrate(b, old)
        await announce_all([b, client])
        assert answered(await ask(client)) == {new.uid, second.uid}
        b.go_silent()
        fallen_back = await ask(client)
        assert np.allclose(fallen_back.outputs_BC, before.outputs_BC, atol=1e-6)
        assert np.allclose(fallen_back.missing_mass_B, 0.0)
        asked = [(call.expert, call.peer_name, call.error is None) for call in fallen_back.calls]
        assert sorted(asked) == sorted([(second.uid, "a", True), (new.uid, "b", False), (old.uid, "a", True)])
        # Its holder is banned by now: the old one is asked at once, for as long as that lasts.
        assert client.inference.standings.banned(b.peer_id)
        assert {call.expert for call in (await ask(client)).calls} == {old.uid, second.uid}


async def test_a_successor_that_was_rolled_back_answers_until_all_have_read_of_it(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (client, _, b):
        old = expert_of(b)
        new = await migrate(b, old, weights=other_weights(WIDER, 2))
        await announce_all([b, client])
        before = await ask(client)
        await b.host.roll_back(new.uid)
        stale = await ask(client)
        assert new.uid in answered(stale)
        assert np.array_equal(stale.outputs_BC, before.outputs_BC)
        await announce_all([b, client])
        assert new.uid not in client.directory.experts()
        assert old.uid in answered(await ask(client))


async def test_old_and_new_side_by_side_halve_no_gate_mass(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (client, a, b):
        before = await client.inference.predict(IMAGES, timeout_s=10, top_k=1)
        new = await migrate(b, expert_of(b))
        await announce_all([b, client])
        assert set(client.directory.experts()) == {expert_of(a).uid, new.uid, expert_of(a, SECOND).uid}
        assert set(client.directory.current()) == {new.uid, expert_of(a, SECOND).uid}
        after = await client.inference.predict(IMAGES, timeout_s=10, top_k=1)
        assert np.allclose(after.outputs_BC.sum(axis=1), before.outputs_BC.sum(axis=1), atol=1e-6)


async def test_a_second_succession_supersedes_the_first_expert_where_nobody_advertises_the_one_between(
    tmp_path: Path,
) -> None:
    async with mesh(tmp_path, "ab") as (client, _, b):
        old = expert_of(b)
        middle = await migrate(b, old)
        newest = await migrate(b, middle, form("linear"), weights=other_weights(form("linear"), 2))
        assert newest.ancestors == (old.uid, middle.uid)
        await announce_all([b, client])
        assert middle.uid not in client.directory.experts()
        (listing,) = [one for one in client.directory.current().values() if one.classes == FIRST]
        assert (listing.uid, [older.uid for older in listing.older]) == (newest.uid, [old.uid])
        assert client.directory.left_out() == ()
        assert (await b.host.roll_back(newest.uid)).uid == middle.uid
        assert (await b.host.roll_back(middle.uid)).uid == old.uid


async def test_an_advert_with_false_ancestors_is_left_out_by_name(tmp_path: Path) -> None:
    async with mesh(tmp_path, "ab") as (client, a, b):
        victim, other = expert_of(a, SECOND), expert_of(b)
        new = await migrate(b, other)
        genuine = new.advert()
        await announce_all([b, client])
        forged = msgspec.structs.replace(genuine, ancestors=(victim.uid,))
        record = PeerRecord(
            mesh_id=MESH.mesh_id,
            peer_id=b.peer_id,
            peer_name="b",
            issued_at=b.network.now_s + 1,
            expires_at=b.network.now_s + 60,
            leaving=False,
            experts=(forged,),
            contributions=None,
        )
        b.network.now_s += 1
        sealed = seal_record(record, b.key)
        await b.transport.publish(record_key(MESH.mesh_id), b.peer_id, sealed, expires_at=record.expires_at)
        await client.directory.refresh()
        (left_out,) = client.directory.left_out()
        assert (left_out.uid, left_out.peer_name) == (new.uid, "b")
        assert "ancestors" in left_out.reason
        assert set(client.directory.current()) == {victim.uid, other.uid}


# --- the node ---


async def test_a_roll_back_restores_what_was_and_declines_the_successor(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        learned = await a.learn(old.uid, seed=1)
        weights, answer = old.weights, await a.host.answer(old.uid, FEATURES)
        new = await migrate(a, old, weights=other_weights(WIDER, 2))
        assert (list(a.host.experts), list(a.host.retired)) == ([new.uid], [old.uid])
        a.host.changed.clear()
        assert await a.host.roll_back(new.uid) is old
        assert a.host.changed.is_set()
        assert (list(a.host.experts), list(a.host.retired)) == ([old.uid], [new.uid])
        assert (old.standing, new.standing, old.weights) == ("current", "declined", weights)
        assert np.array_equal((await a.host.answer(old.uid, FEATURES)).probabilities, answer.probabilities)
        assert a.state.is_declined(new.uid)
        with pytest.raises(NoAncestorHere):
            await a.host.roll_back(old.uid)
        with pytest.raises(UnknownExpert):
            await a.host.roll_back(new.uid)
    async with memory_node(network, "a", tmp_path) as a:
        assert (list(a.host.experts), list(a.host.retired)) == ([old.uid], [new.uid])
        assert np.array_equal(a.host.snapshot(old.uid), learned)
        assert (await a.host.answer(new.uid, FEATURES)).weights == new.weights
        again = await migrate(a, expert_of(a))
        assert (again.uid, again.generation, again.standing) == (new.uid, 2, "current")
        assert not a.state.is_declined(new.uid)


async def test_a_restart_keeps_the_successor_its_lineage_and_what_it_took_the_place_of(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        await a.learn(old.uid, seed=1)
        new = await migrate(a, old)
        first = new.weights
        learned = await a.learn(new.uid, seed=2)
        advert, kept = new.advert(), a.host.snapshot(old.uid)
        a.state.collect_garbage()
    async with memory_node(network, "a", tmp_path) as a:
        assert (list(a.host.experts), list(a.host.retired)) == ([new.uid], [old.uid])
        found = expert_of(a)
        assert found.advert() == advert
        assert (found.origin, found.ancestors, found.drift > 0) == (first, (old.uid,), True)
        assert np.array_equal(a.host.snapshot(new.uid), learned)
        assert np.array_equal(a.host.snapshot(old.uid), kept)
        assert found.lineage is not None
        assert a.state.blobs.has(found.lineage)
        assert (await a.host.answer(old.uid, FEATURES)).weights == old.weights
        assert (await a.host.roll_back(new.uid)).uid == old.uid


async def test_a_successor_whose_weights_are_lost_gives_its_place_back(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        learned = await a.learn(old.uid, seed=1)
        new = await migrate(a, old)
        assert new.lineage is not None
    (tmp_path / "a" / "state" / "blobs" / new.weights).write_bytes(b"rotten")
    for _ in range(2):
        async with memory_node(network, "a", tmp_path) as a:
            assert (list(a.host.experts), list(a.host.retired)) == ([old.uid], [])
            assert np.array_equal(a.host.snapshot(old.uid), learned)
    async with memory_node(network, "a", tmp_path) as a:
        assert (await migrate(a, expert_of(a))).uid == new.uid


async def test_the_generation_of_a_succession_names_its_cause_and_what_it_was_made_of(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        new = await migrate(a, old)
        (generation,) = a.state.ledger.generations(new.uid)
        assert (generation.cause, generation.parent, generation.digest) == (MIGRATED, old.weights, new.weights)


async def test_an_expert_in_training_is_neither_succeeded_nor_rolled_back(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        await a.host.begin_training(old.uid)
        with pytest.raises(Refused, match="in training"):
            await migrate(a, old)
        a.host.end_training(old.uid)
        new = await migrate(a, old)
        await a.host.begin_training(new.uid)
        with pytest.raises(Refused, match="in training"):
            await a.host.roll_back(new.uid)
        assert list(a.host.experts) == [new.uid]


async def test_a_training_run_that_waits_for_a_succession_does_not_begin_on_the_retired_one(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        async with old.changed:
            succession = asyncio.create_task(migrate(a, old))
            await asyncio.sleep(0.05)
            training = asyncio.create_task(a.host.begin_training(old.uid))
            await asyncio.sleep(0.05)
        await succession
        with pytest.raises(UnknownExpert):
            await training
        assert old.deltas is None


@pytest.mark.parametrize("wrong", ["form", "weights", "first weights", "another's", "classes", "bytes"])
async def test_a_succession_that_is_not_what_its_lineage_says_is_refused_and_changes_nothing(
    tmp_path: Path, wrong: str
) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        old, second, wide = await a.spawn(*FIRST), await a.spawn(*SECOND), await a.spawn("4", "5", "6")
        weights = widened(old)
        lineage, architecture = lineage_of_successor(a, old, WIDER, weights), MESH.architecture(WIDER, 2)
        match wrong:
            case "form":
                architecture = MESH.architecture(form("mlp", hidden=6), 2)
            case "weights":
                weights = b"garbage"
            case "first weights":
                weights = other_weights(WIDER, 2)
            case "another's":
                lineage = lineage_of_successor(a, second, WIDER, weights)
            case "classes":
                lineage = lineage_of_successor(a, wide, WIDER, weights)
            case _:
                lineage = lineage[:-1]
        before = a.state.hosted_experts()
        with pytest.raises((MalformedLineage, CorruptWeights)):
            await a.host.succeed(old.uid, architecture=architecture, weights=weights, lineage=lineage, cause=MIGRATED)
        assert a.state.hosted_experts() == before
        assert (old.standing, list(a.host.retired)) == ("current", [])


async def test_a_succession_that_nobody_waits_for_any_more_is_the_same_on_the_disk_and_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        began, real = threading.Event(), a.state.succeed

        def slow(*args: Any, **kwargs: Any) -> Generation:
            began.set()
            time.sleep(0.1)
            return real(*args, **kwargs)

        monkeypatch.setattr(a.state, "succeed", slow)
        succession = asyncio.create_task(migrate(a, old))
        await asyncio.to_thread(began.wait, 10)
        succession.cancel()
        with pytest.raises(asyncio.CancelledError):
            await succession
        kept = {row.uid: row.standing for row in a.state.hosted_experts()}
        assert {uid: expert.standing for uid, expert in {**a.host.experts, **a.host.retired}.items()} == kept
        assert len(kept) == 2
        assert (await a.host.roll_back(expert_of(a).uid)) is old


async def test_what_is_current_here_already_takes_nobodys_place(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        old = await a.spawn(*FIRST)
        new = await migrate(a, old)
        with pytest.raises(UnknownExpert):
            await migrate(a, old)
        assert list(a.host.experts) == [new.uid]
        with pytest.raises(Refused, match="was succeeded here"):
            await a.spawn(*FIRST)
