"""Experts that say the same become one, those that nobody asks are retired, and nothing that they know is lost."""

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest
from mesh_in_memory import MESH, announce_all, digits, memory_network
from tidying_nodes import NARROW, WIDE, TidyingNode, look, tidying_node
from training_nodes import until

from meshnode.hosted import MERGED
from meshnode.spare import TidyConfig
from meshnode.state.rows import SpareRow
from meshnode.trainer import service as module
from protocol.identifiers import ExpertUid
from protocol.placement import turn_among

IMAGES = digits("0", "1", "2").select(range(400))
PAIR, ALL = ("0", "1"), ("0", "1", "2")
LEASE = TidyConfig(lease_s=100.0)
MERGES = dataclasses.replace(LEASE, lease_s=1e9, every_s=0.0, slot_s=0.0)
"""Merges at once, and waits for ever for what is unused."""
RETIRES = dataclasses.replace(MERGES, lease_s=0.0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_S", 0.05)
    monkeypatch.setattr(module, "MEASURE_EVERY_S", 0.05)


def uid_of(*classes: str, wide: bool = False) -> ExpertUid:
    return MESH.uid_of(classes, WIDE if wide else NARROW)


async def twins(here: TidyingNode, *, tasks: tuple[str, str] = ("", "")) -> tuple[ExpertUid, ExpertUid]:
    """Two experts of the same classes that say the same: the one that is measured to tell more, and the other."""
    narrow_stays = uid_of(*PAIR) < uid_of(*PAIR, wide=True)  # of equal logits the lower uid is asked
    first = await here.host(*PAIR, task=tasks[not narrow_stays])
    second = await here.host(*PAIR, hidden=8, seed="other", task=tasks[narrow_stays])
    await announce_all([here.node])
    await here.measured()
    return (first.uid, second.uid) if narrow_stays else (second.uid, first.uid)


async def test_two_experts_that_say_the_same_become_one_that_is_as_good(tmp_path: Path) -> None:
    async with tidying_node(memory_network(), "a", tmp_path, tasks={"task": IMAGES}, config=MERGES) as here:
        stays, goes = await twins(here)
        before = here.accuracy(stays, *PAIR)
        await look(here, rounds=2)
        assert here.node.host.experts.keys() == {stays}
        assert here.accuracy(stays, *PAIR) >= before - 0.01
        assert here.node.state.ledger.generations(stays)[0].cause == MERGED
        (merged,), (retired,) = here.told("experts_merged"), here.told("expert_retired")
        assert (merged["expert"], merged["instead_of"], merged["classes"]) == (stays, goes, PAIR)
        assert merged["difference"] <= 0.05
        assert merged["new_accuracy"] >= merged["old_accuracy"] - MERGES.margin
        assert (retired["expert"], retired["cause"], retired["instead"], retired["kept"]) == (
            goes,
            "merged",
            [stays],
            True,
        )
        # It can be had back as it was, and what is merged already is not merged again.
        assert here.node.host.retired.keys() == {goes}
        assert here.node.state.blobs.is_whole(here.node.host.get(goes).weights)


async def test_experts_that_differ_and_experts_of_other_classes_stay(tmp_path: Path) -> None:
    async with tidying_node(memory_network(), "a", tmp_path, tasks={"task": IMAGES}, config=MERGES) as here:
        await here.node.spawn(*PAIR, form=WIDE)  # has learned nothing
        await here.host(*PAIR)
        await here.host("1", "2")
        await announce_all([here.node])
        await here.measured()
        await look(here, rounds=3)
        assert len(here.node.host.experts) == 3
        assert not here.told("experts_merged")


async def test_a_merged_expert_has_learned_the_tasks_of_both_and_forgets_them(tmp_path: Path) -> None:
    parts = {"one": IMAGES.select(range(200)), "two": IMAGES.select(range(200, 400))}
    async with tidying_node(memory_network(), "a", tmp_path, tasks=parts, config=MERGES) as here:
        stays, goes = await twins(here, tasks=("one", "gone before"))
        await look(here, rounds=2)
        assert here.node.host.experts.keys() == {stays}
        assert {"one", "two", "gone before"} == set(here.tasks_of(stays) or ())
        report = await here.forget("gone before")
        assert {fate.uid for fate in (*report.retired, *report.redistilled)} == {stays, goes}
        assert goes not in here.node.host.retired


async def test_whose_turn_it_is_follows_from_the_records_and_one_does_it_for_all(tmp_path: Path) -> None:
    network, config = memory_network(), dataclasses.replace(MERGES, slot_s=50.0)
    async with (
        tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=config) as a,
        tidying_node(network, "b", tmp_path, tasks={"task": IMAGES}, config=config) as b,
    ):
        for one in (a, b):
            await one.host(*PAIR)
            await one.host(*PAIR, hidden=8, seed="other")
        await announce_all([a.node, b.node])
        for one in (a, b):
            await one.measured()
        low = min(uid_of(*PAIR), uid_of(*PAIR, wide=True))
        peers = (a.node.peer_id, b.node.peer_id)
        first, second = (a, b) if turn_among(peers[0], low, peers) == 0 else (b, a)
        await look(second)
        assert not second.told("experts_merged"), "it is the other one's turn"
        await look(second, first)
        assert first.told("experts_merged")
        await look(first, second, rounds=3)
        assert a.node.host.experts.keys() == b.node.host.experts.keys() == {low}
        assert not second.told("experts_merged")
        assert second.told("expert_retired")


async def test_where_the_first_one_cannot_the_next_one_does(tmp_path: Path) -> None:
    network, config = memory_network(), dataclasses.replace(MERGES, slot_s=50.0)
    async with (
        tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=config) as a,
        tidying_node(network, "b", tmp_path, tasks={"task": IMAGES}, config=config) as b,
    ):
        for one in (a, b):
            await one.host(*PAIR)
            await one.host(*PAIR, hidden=8, seed="other")
        await announce_all([a.node, b.node])
        for one in (a, b):
            await one.measured()
        low = min(uid_of(*PAIR), uid_of(*PAIR, wide=True))
        peers = (a.node.peer_id, b.node.peer_id)
        first, second = (a, b) if turn_among(peers[0], low, peers) == 0 else (b, a)
        await look(second)
        network.now_s += 51.0
        await first.node.announce()
        await look(second)
        assert second.told("experts_merged")


async def test_peers_follow_each_after_a_look_of_its_own_or_once_all_others_do(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=MERGES) as a,
        tidying_node(network, "b", tmp_path, tasks={"task": IMAGES}, config=MERGES) as b,
        tidying_node(network, "c", tmp_path, train=False, config=MERGES) as c,
    ):
        stays, goes = await twins(a)
        await announce_all([a.node, b.node, c.node])
        for one in (b, c):
            for uid in (stays, goes):
                await one.node.replicas.pull(uid, placed=one is c)
        await announce_all([a.node, b.node, c.node])
        await b.measured()
        await a.tidying.step()
        await announce_all([a.node, b.node, c.node])
        await c.tidying.step()
        assert c.said == set(), "not before all the others"
        await look(b, a, c, rounds=4)
        for one in (a, b, c):
            assert one.node.host.experts.keys() == {stays}
        assert (b.node.host.retired.keys(), c.node.host.retired.keys()) == ({goes}, set()), "what was placed is dropped"


async def test_a_peer_whose_own_images_say_otherwise_keeps_the_mesh_from_losing_the_expert(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=MERGES) as a,
        tidying_node(network, "b", tmp_path, tasks={"task": IMAGES}, config=MERGES) as b,
    ):
        used = await a.host(*PAIR)
        await announce_all([a.node, b.node])
        await b.node.replicas.pull(used.uid)
        await announce_all([a.node, b.node])
        await b.measured()
        a.node.state.ledger.put_spare(SpareRow(uid=used.uid, since=0.0, cause="told", handed_on=True))
        for _ in range(3):
            await announce_all([a.node, b.node])
            await b.tidying.step()
        assert used.uid in b.node.host.experts
        assert b.said == set()


async def unused(here: TidyingNode) -> tuple[ExpertUid, ExpertUid]:
    """An expert that is asked, and one that is not: all of its classes are among those of the former."""
    used, idle = await here.host(*ALL, hidden=8), await here.host(*PAIR)
    await announce_all([here.node])
    await here.measured()
    return used.uid, idle.uid


async def test_an_unused_expert_is_retired_after_the_lease_which_a_restart_does_not_begin_again(tmp_path: Path) -> None:
    network = memory_network()
    async with tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=LEASE) as here:
        used, idle = await unused(here)
        await look(here)
        network.now_s += 60.0
        await look(here)
        assert here.said == set()
        assert here.node.host.experts.keys() == {used, idle}
    async with tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=LEASE) as here:
        await announce_all([here.node])
        await here.measured()
        network.now_s += 41.0
        await look(here, rounds=3)
        assert here.node.host.experts.keys() == {used}
        (told,) = here.told("expert_retired")
        assert (told["expert"], told["cause"], told["instead"]) == (idle, "unused", [used])
        # Its owner has it back by asking for it, with a lease of its own.
        await here.node.replicas.pull(idle)
        await look(here, rounds=2)
        assert here.node.host.experts.keys() == {used, idle}
        assert here.accuracy(idle, *PAIR) > 0.9


async def test_what_is_used_again_begins_a_lease_anew(tmp_path: Path) -> None:
    network = memory_network()
    async with tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=LEASE) as here:
        used, idle = await unused(here)
        await look(here)
        assert here.node.state.ledger.spare().keys() == {idle}
        await here.node.learn(idle, seed=1)
        await look(here)
        assert here.node.state.ledger.spare().keys() == set(), "it has learned"
        await look(here)
        await here.node.host.drop(used, unwanted=True)
        await announce_all([here.node])
        await here.measured()
        network.now_s += 200.0
        await look(here, rounds=3)
        assert here.node.host.experts.keys() == {idle}, "nobody else answers for its classes"


async def test_what_those_that_stay_do_not_know_is_handed_on_first(tmp_path: Path) -> None:
    async with tidying_node(memory_network(), "a", tmp_path, tasks={"task": IMAGES}, config=RETIRES) as here:
        # The router asks the one for all three, which has learned nothing yet.
        used = await here.node.spawn(*ALL, form=WIDE)
        idle = await here.host(*PAIR)
        before = here.accuracy(used.uid, *ALL)
        await announce_all([here.node])
        await here.measured()
        await look(here, rounds=3)
        assert here.node.host.experts.keys() == {used.uid}
        assert here.accuracy(used.uid, *ALL) > max(0.8, before)
        assert here.node.state.ledger.generations(used.uid)[0].cause == MERGED
        assert here.told("expert_retired")[0]["expert"] == idle.uid


async def test_of_two_that_stand_for_each_other_one_stays(tmp_path: Path) -> None:
    config = dataclasses.replace(RETIRES, max_difference=0.0, max_usage=1.0, max_information_nats=10.0, margin=1.0)
    async with tidying_node(memory_network(), "a", tmp_path, tasks={"task": IMAGES}, config=config) as here:
        low, high = await twins(here)
        await look(here, rounds=5)
        assert here.node.host.experts.keys() in ({low}, {high})
        assert len(here.told("expert_retired")) == 1


async def test_without_anybody_there_who_answers_for_its_classes_an_expert_stays(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=RETIRES) as a,
        tidying_node(network, "b", tmp_path, train=False, config=RETIRES) as b,
    ):
        idle = await a.host(*PAIR)
        used = await b.host(*ALL, hidden=8)
        await announce_all([a.node, b.node])
        await a.measured()
        b.node.go_silent()  # its record lives on
        await a.tidying.step()
        await announce_all([a.node])
        await asyncio.wait_for(a.tidying.step(), 30.0)
        assert (a.node.host.experts.keys(), used.uid) == ({idle.uid}, used.uid)


async def test_a_kill_while_it_learns_loses_nothing_and_the_next_look_does_it(tmp_path: Path) -> None:
    tasks = {"task": IMAGES}
    async with tidying_node(memory_network(), "a", tmp_path, tasks=tasks, config=MERGES, steps=1500) as here:
        stays, goes = await twins(here)
        before = here.node.host.get(stays).weights
        assert here.trainer is not None
        ended = here.trainer.status.pid
        assert ended is not None
        step = asyncio.create_task(here.tidying.step())
        await until(lambda: here.trainer and here.trainer.status.state == "tidying")
        os.kill(ended, signal.SIGKILL)
        await asyncio.wait_for(step, 30.0)
        assert here.node.host.experts.keys() == {stays, goes}
        assert here.node.host.get(stays).weights == before
        assert here.said == set()
        await until(lambda: here.trainer and here.trainer.status.state == "idle")
        await look(here, rounds=3)
        assert here.node.host.experts.keys() == {stays}


@pytest.mark.parametrize("told", [True, False])
async def test_a_kill_between_two_steps_is_gone_on_with(tmp_path: Path, told: bool) -> None:
    network = memory_network()
    async with tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=MERGES) as here:
        stays, goes = await twins(here)
        await here.tidying.step()
        assert here.told("experts_merged")
        if not told:  # the row is written last
            here.node.state.ledger.drop_spare(goes)
    async with tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=MERGES) as here:
        await announce_all([here.node])
        await here.measured()
        await look(here, rounds=3)
        assert here.node.host.experts.keys() == {stays}
        assert here.node.host.retired.keys() == {goes}
        assert len(here.told("experts_merged")) == (not told)


async def test_what_all_its_holders_do_without_is_not_adopted(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        tidying_node(network, "a", tmp_path, train=False) as a,
        tidying_node(network, "b", tmp_path, train=False) as b,
    ):
        idle, used = await a.host(*PAIR), await a.host(*ALL, hidden=8)
        placement = b.node.placement
        placement.config = dataclasses.replace(placement.config, room=4)
        a.node.state.ledger.put_spare(SpareRow(uid=idle.uid, since=0.0, cause="merged", instead=used.uid))
        await announce_all([a.node, b.node])
        for _ in range(3):
            await placement.step()
            network.now_s += 20.0
            await announce_all([a.node, b.node])
        assert b.node.host.experts.keys() == {used.uid}
        assert [short.uid for short in placement.shortages()] == []


async def test_a_holder_that_does_not_tidy_keeps_the_mesh_from_losing_an_expert(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        tidying_node(network, "a", tmp_path, tasks={"task": IMAGES}, config=RETIRES) as a,
        tidying_node(network, "b", tmp_path, train=False) as b,
    ):
        used, idle = await a.host(*ALL, hidden=8), await a.host(*PAIR)
        b.node.says.clear()  # as with tidying switched off, or of an earlier version
        await announce_all([a.node, b.node])
        await b.node.replicas.pull(idle.uid)
        await announce_all([a.node, b.node])
        await a.measured()
        await look(a, rounds=1)
        for _ in range(3):
            await announce_all([a.node, b.node])
            await a.tidying.step()
        assert a.said == {idle.uid}
        assert a.node.host.experts.keys() == {used.uid, idle.uid}
        (spare,) = a.tidying.spare()
        assert (spare.document()["holding_on"], spare.document()["gone"]) == (["b"], False)
        # Once it does without it, too, both do.
        await b.node.host.drop(idle.uid, unwanted=True)
        for _ in range(2):
            await announce_all([a.node, b.node])
            await a.tidying.step()
        assert a.node.host.experts.keys() == {used.uid}
        await announce_all([a.node])
        (spare,) = a.tidying.spare()
        assert spare.document()["gone"]


async def test_without_an_image_of_a_class_of_the_one_that_stays_nothing_is_handed_on(tmp_path: Path) -> None:
    pair = digits(*PAIR).select(range(280))
    async with tidying_node(memory_network(), "a", tmp_path, tasks={"task": pair}, config=RETIRES) as here:
        used = await here.node.spawn(*ALL, form=WIDE)  # has learned nothing
        idle = await here.host(*PAIR)
        await announce_all([here.node])
        await here.measured()
        await look(here, rounds=3)
        assert here.node.host.experts.keys() == {used.uid, idle.uid}
        assert here.node.host.get(used.uid).generation == 1
