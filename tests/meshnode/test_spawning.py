"""A spawned expert begins where it measures better, and says what it began as."""

import json
import os
import signal
from pathlib import Path

import pytest
from forgetting_nodes import forgetting_node
from mesh_in_memory import MESH, digits, memory_network, memory_node
from spawning_nodes import BEGUN, DIGITS, PLAIN, RENAMED, SpawningNode, announce, renamed, spawning_node

from experts.checkpoint import weights_to_bytes
from meshnode.logs import configure_logs
from meshnode.trainer import service
from meshnode.trainer import spawning as module
from protocol.identifiers import ExpertUid, digest_of
from protocol.lineage import Source, decode_lineage

FIRST = MESH.uid_of(DIGITS, MESH.form_for(2))
TASK = renamed(slice(0, 240))


@pytest.fixture(autouse=True)
def _logs() -> None:
    configure_logs("info", "json")


async def taught(node: SpawningNode) -> None:
    """The mesh has an expert for the two digits, which this node has taught it."""
    await node.learn("first", digits(*DIGITS))
    assert node.told("expert_hosted") == [{"expert": FIRST, "classes": DIGITS, "cause": "new"}], "nothing to try"
    await announce([node])


async def test_an_expert_for_classes_that_another_one_knows_begins_as_that_one(tmp_path: Path) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        await taught(a)
        parent_weights = a.node.host.get(FIRST).weights
        entry = await a.learn("second", TASK)
        start = entry["decision"]["start"]
        assert (start["chosen"], start["source"], start["num_items"]) == ("transferred", FIRST, 80)
        assert start["accuracy_transferred"] >= start["accuracy_random"] + module.MARGIN
        assert a.told("expert_hosted")[-1] == {"expert": BEGUN, "classes": RENAMED, "cause": "new", "start": start}

        expert = a.expert
        assert (expert.uid, expert.ancestors) == (BEGUN, (PLAIN,))
        assert expert.lineage is not None
        (step,) = decode_lineage(a.node.state.blobs.get(expert.lineage)).steps
        assert step.source == Source(uid=FIRST, form=MESH.form_for(2), classes=DIGITS, weights=parent_weights)
        assert step.parent_weights == digest_of(_initial_weights())
        assert step.accuracy is not None
        assert (step.accuracy.old, step.accuracy.new) == (start["accuracy_random"], start["accuracy_transferred"])
        # Its parent goes on, here and for everybody else, and so does what it knows.
        await announce([a, b])
        assert b.node.directory.current().keys() == {FIRST, BEGUN}
        assert b.node.directory.left_out() == ()
        assert all(not listing.older for listing in b.node.directory.current().values())
        await b.node.replicas.pull(BEGUN)
        assert b.node.host.get(BEGUN).origin == expert.origin == step.weights
        assert await b.own_accuracy() > 0.9

        # What its parent has learned it has learned as well: it goes when that is to be forgotten.
        tasks = [generation.tasks for generation in a.node.state.ledger.generations(BEGUN)]
        assert all(known is not None and set(known) == {"first", "second"} for known in tasks)
    async with memory_node(network, "a", tmp_path) as again:
        assert again.host.get(BEGUN).origin == step.weights


def _initial_weights() -> bytes:
    return weights_to_bytes(MESH.architecture(MESH.form_for(2), 2).build(PLAIN))


async def test_where_the_nearest_expert_is_no_better_an_expert_begins_at_random_and_tells_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN", 0.9)
    async with spawning_node(memory_network(), "a", tmp_path) as a:
        await taught(a)
        start = (await a.learn("second", TASK))["decision"]["start"]
        assert (start["chosen"], start["source"]) == ("random", FIRST)
        assert (a.expert.uid, a.expert.ancestors) == (PLAIN, ())
        assert json.dumps(a.told("expert_hosted")[-1]["start"]) == json.dumps(start)


async def test_the_nearest_expert_is_pulled_to_begin_as_and_not_hosted(tmp_path: Path) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        await taught(a)
        await announce([a, b])
        start = (await b.learn("second", TASK))["decision"]["start"]
        assert (start["chosen"], start["source"]) == ("transferred", FIRST)
        assert b.node.host.experts.keys() == {BEGUN}
        newest = b.node.state.ledger.generations(BEGUN)[0]
        assert newest.tasks == ("second",)


async def test_what_cannot_be_had_to_begin_as_holds_nothing_up(tmp_path: Path) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        await taught(a)
        await announce([a, b])
        network.partition(frozenset({b.node.peer_id}), frozenset({a.node.peer_id}))
        assert (await b.learn("second", TASK))["decision"]["start"] is None
        assert b.node.host.experts.keys() == {PLAIN}


async def test_too_few_images_to_judge_by_decide_nothing(tmp_path: Path) -> None:
    async with spawning_node(memory_network(), "a", tmp_path) as a:
        await taught(a)
        assert (await a.learn("second", renamed(slice(0, 140))))["decision"]["start"] is None
        assert a.expert.uid == PLAIN


async def test_a_beginning_that_was_declined_here_does_not_come_back_by_itself(tmp_path: Path) -> None:
    async with spawning_node(memory_network(), "a", tmp_path) as a:
        await taught(a)
        a.node.state.decline(BEGUN)
        assert (await a.learn("second", TASK))["decision"]["start"] is None
        assert a.expert.uid == PLAIN


async def test_what_a_peer_has_spawned_while_beginnings_were_tried_is_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        await taught(a)
        await announce([a, b])
        tried = module.Spawning._tried

        async def slowly(*args: object) -> object:
            begun = await tried(*args)  # type: ignore[arg-type]
            await a.node.spawn(*RENAMED)
            await announce([a, b])
            return begun

        monkeypatch.setattr(module.Spawning, "_tried", slowly)
        await b.learn("second", TASK)
        assert b.node.host.experts.keys() == {PLAIN}
        assert b.told("expert_hosted") == []
        assert b.node.state.ledger.generations(PLAIN)[-1].cause == "adopted"


async def test_a_worker_that_dies_in_the_trial_is_started_again_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RESTART_S", 0.05)
    async with spawning_node(memory_network(), "a", tmp_path) as a:
        await taught(a)
        tried = module.Spawning._tried

        async def killed(*args: object) -> object:
            monkeypatch.setattr(module.Spawning, "_tried", tried)
            assert a.trainer.status.pid is not None
            os.kill(a.trainer.status.pid, signal.SIGKILL)
            return await tried(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(module.Spawning, "_tried", killed)
        start = (await a.learn("second", TASK))["decision"]["start"]
        assert (start["chosen"], a.expert.uid, a.trainer.status.restarts) == ("transferred", BEGUN, 1)


async def test_a_lesson_that_a_kill_interrupts_goes_on_with_the_beginning_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RESTART_S", 0.05)
    async with spawning_node(memory_network(), "a", tmp_path) as a:
        await taught(a)
        begin_training = a.node.host.begin_training

        async def killed(uid: ExpertUid) -> bytes:
            monkeypatch.setattr(a.node.host, "begin_training", begin_training)
            assert a.trainer.status.pid is not None
            os.kill(a.trainer.status.pid, signal.SIGKILL)
            return await begin_training(uid)

        monkeypatch.setattr(a.node.host, "begin_training", killed)
        entry = await a.learn("second", TASK)
        start = entry["decision"]["start"]
        assert (entry["decision"]["action"], start["chosen"]) == ("spawn", "transferred")
        assert (entry["experts"], a.trainer.status.restarts) == ([BEGUN], 1)
        assert [told["expert"] for told in a.told("expert_hosted")] == [FIRST, BEGUN], "nothing was tried again"


async def test_what_began_as_an_expert_goes_with_the_task_that_one_has_learned(tmp_path: Path) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path, steps=200) as one:
        await one.learn("first", digits(*DIGITS))
        await one.node.announce()
        await one.learn("second", TASK)
        assert one.node.host.experts.keys() == {FIRST, BEGUN}
        # Looking at what would happen changes nothing, and has both in it.
        would = await one.forget(task="first", dry_run=True)
        assert {fate.uid for fate in (*would.retired, *would.redistilled)} == {FIRST, BEGUN}
        await one.forget(task="first")
        held = one.node.state.hosted_experts()
        assert all("first" not in (one.node.state.ledger.generations(row.uid)[0].tasks or ()) for row in held)
        assert BEGUN not in one.node.host.experts
