"""A task that is forgotten is as if it had never been learned, as far as this node can; what it cannot is named."""

import asyncio
import functools
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from forgetting_nodes import ForgettingNode, forgetting_node, same_router
from mesh_in_memory import MESH, announce_all, digits, memory_network, memory_node, statistics_of
from replay_memories import replay_memory
from successions import migrate
from training_nodes import until

from experts.data.dataset import ImageDataset
from experts.data.npz import save_task
from meshnode.errors import NodeError, NoSuchPeerOrExpert, Refused
from meshnode.forget_order import ForgetReport
from meshnode.trainer import service as module
from protocol.identifiers import ExpertUid, digest_of

OF_0_1 = digits("0", "1")
KEPT, GONE, OTHER = OF_0_1.select(range(80)), OF_0_1.select(range(80, 160)), digits("2", "3").select(range(80))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_S", 0.05)


def uid_of(*classes: str) -> ExpertUid:
    return MESH.uid_of(classes, MESH.spec.expert)


def kinds(report: ForgetReport) -> dict[str, int]:
    return {gone.kind: gone.count for gone in report.dropped}


def remembered(here: ForgettingNode) -> set[bytes]:
    memory = replay_memory(here.home / "replay.msgpack", capacity=200)
    return {image.tobytes() for image in memory.images_of([str(digit) for digit in range(10)])}


def pixels(task: ImageDataset) -> set[bytes]:
    return {image.tobytes() for image in task.images}


async def test_the_router_and_the_other_experts_are_those_of_a_node_that_never_saw_the_task(tmp_path: Path) -> None:
    network = memory_network()
    async with forgetting_node(network, "never", tmp_path) as never, forgetting_node(network, "a", tmp_path) as here:
        for node in (never, here):
            await node.learn("kept", KEPT)
        await here.learn("gone", OTHER)
        assert not same_router(here.node, never.node)
        report = await here.forget(task="gone")
        assert same_router(here.node, never.node)
        assert kinds(report) == {"contribution": 80, "replay images": 80, "teacher": 1, "teachers' answers": 2}
        (fate,) = report.retired
        assert (fate.uid, report.redistilled) == (uid_of("2", "3"), [])
        assert here.node.host.experts.keys() == {uid_of("0", "1")}
        assert torch.equal(here.weights(uid_of("0", "1")), never.weights(uid_of("0", "1")))
        assert remembered(here) == pixels(KEPT)
        of_kept = {"replay.msgpack", "published.msgpack", "teachers/kept.safetensors", "teachers/kept.made-from"}
        assert here.kept().keys() == of_kept
        assert digest_of(statistics_of("2", "3", num_images=80)) not in here.node.state.blobs.digests()
        assert {left.kind for left in report.not_forgotten} == {"copies", "weights", "trunk", "file"}
        assert MESH.spec.calibration in next(left.reason for left in report.not_forgotten if left.kind == "trunk")
        assert here.told("task_forgotten") == [{"task": "gone", "experts": [uid_of("2", "3")]}]


async def test_an_expert_that_knew_more_is_distilled_again_to_what_it_would_be_without_the_task(tmp_path: Path) -> None:
    network = memory_network()
    async with forgetting_node(network, "never", tmp_path) as never, forgetting_node(network, "a", tmp_path) as here:
        uid = uid_of("0", "1")
        for node in (never, here):
            await node.learn("kept", KEPT)
        await here.learn("gone", GONE)
        assert not torch.equal(here.weights(uid), never.weights(uid))
        before = {one.digest for one in here.node.state.ledger.generations(uid)}
        report = await here.forget(task="gone")
        assert [(fate.uid, fate.tasks) for fate in report.redistilled] == [(uid, ("kept",))]
        assert "first weights" in report.redistilled[0].reason
        assert report.retired == []
        assert torch.equal(here.weights(uid), never.weights(uid))
        (generation,) = here.node.state.ledger.generations(uid)
        assert (generation.tasks, generation.cause) == (("kept",), "redistilled")
        assert before.isdisjoint(here.node.state.blobs.digests())
        assert same_router(here.node, never.node)
    async with forgetting_node(network, "a", tmp_path) as here:
        assert torch.equal(here.weights(uid), torch.from_numpy(never.node.host.snapshot(uid)))


async def test_a_generation_of_before_the_task_that_is_still_kept_is_what_it_goes_back_to(tmp_path: Path) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path, steps=20) as here:
        uid = uid_of("0", "1")
        await here.learn("kept", KEPT)
        before = here.weights(uid)
        await here.learn("gone", GONE)
        (here.tasks / "kept.npz").unlink()
        report = await here.forget(task="gone")
        assert [fate.tasks for fate in report.redistilled] == [("kept",)]
        assert "generation 2" in report.redistilled[0].reason
        assert torch.equal(here.weights(uid), before)


async def test_a_task_that_was_found_in_a_stream_goes_with_its_file(tmp_path: Path) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path) as here:
        assert here.trainer is not None
        (here.tasks / "s.stream").mkdir()
        save_task(here.tasks / "s.stream" / "1.npz", OF_0_1.select(range(192)))
        here.trainer.look_again()
        await until(lambda: here.trainer.history)  # type: ignore[union-attr]
        assert "found/s-0001.npz" in here.kept()
        report = await here.forget(task="s-0001")
        assert kinds(report)["replay images"] == 192
        assert kinds(report)["file found in a stream"] == 1
        assert "file" not in {left.kind for left in report.not_forgotten}
        assert here.kept().keys() == {"replay.msgpack", "published.msgpack", "streams/s.state"}
        assert here.trainer.history == ()
        here.trainer.look_again()
        await until(lambda: here.trainer.status.state == "idle")  # type: ignore[union-attr]
        assert (here.node.host.experts, here.trainer.history) == ({}, ())


async def test_it_is_not_learned_again_until_that_is_allowed_and_then_it_counts_again(tmp_path: Path) -> None:
    network = memory_network()
    async with forgetting_node(network, "a", tmp_path) as here:
        await here.learn("gone", OTHER)
        await here.forget(task="gone")
        await here.learn("kept", KEPT)
        assert here.node.host.experts.keys() == {uid_of("0", "1")}
    async with forgetting_node(network, "a", tmp_path) as here:
        assert here.trainer is not None
        await until(lambda: here.trainer.status.state == "idle")  # type: ignore[union-attr]
        assert "forgotten" in str(here.trainer.status.reason)
        await here.forget(task="gone", undo=True)
        await until(lambda: len(here.trainer.history) == 2)  # type: ignore[union-attr]
        assert here.trainer.history[-1]["task"] == "gone"
        assert here.node.host.experts.keys() == {uid_of("0", "1"), uid_of("2", "3")}
        assert here.node.contributions.version_of(here.node.peer_id, "gone") == 3
        with pytest.raises(Refused):
            await here.forget(task="gone", undo=True)


async def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path) as here:
        await here.learn("kept", KEPT)
        await here.learn("gone", GONE)
        await here.learn("other", OTHER)
        before = (here.kept(), here.node.state.blobs.digests(), here.node.contributions.index)
        would = await here.forget(task="gone", dry_run=True)
        assert (here.kept(), here.node.state.blobs.digests(), here.node.contributions.index) == before
        assert here.node.state.ledger.forgotten("task") == ()
        did = await here.forget(task="gone")
        assert would.dropped == did.dropped
        assert (would.retired, would.redistilled, would.not_forgotten) == (
            did.retired,
            did.redistilled,
            did.not_forgotten,
        )


async def test_experts_are_only_named_where_they_are_to_be_kept_and_go_when_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path) as here:
        await here.learn("gone", OTHER)
        uid = uid_of("2", "3")
        before = here.weights(uid)
        report = await here.forget(task="gone", keep_experts=True)
        assert ("expert", uid) in [(left.kind, left.name) for left in report.not_forgotten]
        assert torch.equal(here.weights(uid), before)
        assert here.node.contributions.view is None
        again = await here.forget(task="gone")
        assert [fate.uid for fate in again.retired] == [uid]
        assert again.dropped == []


async def test_an_expert_with_replicas_at_peers_is_erased_here_and_the_replicas_are_named(tmp_path: Path) -> None:
    network = memory_network()
    async with forgetting_node(network, "a", tmp_path) as here, memory_node(network, "b", tmp_path) as b:
        await here.learn("kept", KEPT)
        await here.learn("gone", GONE)
        uid = uid_of("0", "1")
        await announce_all((here.node, b))
        await b.replicas.pull(uid)
        await announce_all((here.node, b))
        report = await here.forget(task="gone")
        assert [fate.uid for fate in report.retired] == [uid]
        (left,) = [left for left in report.not_forgotten if left.kind == "replicas"]
        assert left.name == uid
        assert " b " in left.reason
        assert here.node.host.find(uid) is None
        assert here.node.state.ledger.generations(uid) == ()


@pytest.mark.parametrize("placed", [False, True])
async def test_an_expert_that_came_back_from_a_peer_may_know_what_was_learned_before_it_went(
    tmp_path: Path, placed: bool
) -> None:
    network = memory_network()
    async with forgetting_node(network, "a", tmp_path) as here, memory_node(network, "b", tmp_path) as b:
        await here.learn("gone", GONE)
        await here.learn("other", OTHER)
        uid, unlike = uid_of("0", "1"), (await b.spawn("8", "9")).uid
        await announce_all((here.node, b))
        await b.replicas.pull(uid)
        await here.node.host.drop(uid, unwanted=False)
        await announce_all((here.node, b))
        for pulled in (uid, unlike):
            await here.node.replicas.pull(pulled, placed=placed)
        report = await here.forget(task="gone")
        assert [fate.uid for fate in report.retired] == [uid]
        assert "not known which tasks" in report.retired[0].reason
        assert here.node.host.find(uid) is None
        assert here.node.host.experts.keys() == {uid_of("2", "3"), unlike}


async def test_a_successor_gives_its_place_back_to_what_never_learned_the_task(tmp_path: Path) -> None:
    network = memory_network()
    async with forgetting_node(network, "a", tmp_path) as here:
        await here.learn("kept", KEPT)
        old = here.node.host.get(uid_of("0", "1"))
        weights = here.weights(old.uid)
        new = await migrate(here.node, old)
        await here.node.announce()
        await here.node.directory.refresh()
        await here.learn("gone", GONE)
        assert here.node.state.ledger.generations(new.uid)[0].tasks == ("gone", "kept")
        report = await here.forget(task="gone")
        assert [fate.uid for fate in report.retired] == [new.uid]
        assert here.node.host.experts.keys() == {old.uid}
        assert torch.equal(here.weights(old.uid), weights)
        assert here.node.host.retired == {}


async def test_of_an_expert_of_unknown_tasks_the_classes_decide(tmp_path: Path) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path) as here:
        await here.learn("kept", KEPT)
        await here.learn("gone", OTHER)
        here.node.state.ledger._rows("UPDATE generations SET tasks = NULL")
        report = await here.forget(task="gone")
        assert [fate.uid for fate in report.retired] == [uid_of("2", "3")]
        assert "not known" in report.retired[0].reason
        assert here.node.host.experts.keys() == {uid_of("0", "1")}


async def test_a_trainer_that_is_killed_on_the_way_leaves_the_old_expert_and_the_same_order_finishes(
    tmp_path: Path,
) -> None:
    network = memory_network()
    uid = uid_of("0", "1")
    async with forgetting_node(network, "a", tmp_path) as here:
        await here.learn("kept", KEPT)
        await here.learn("gone", GONE)
        before = here.weights(uid)
    async with forgetting_node(network, "a", tmp_path, steps=300_000) as here:
        assert here.trainer is not None
        order = asyncio.create_task(here.forget(task="gone"))
        await until(lambda: here.trainer.status.state == "forgetting")  # type: ignore[union-attr]
        await until(lambda: remembered(here) == pixels(KEPT))
        assert here.trainer.status.pid is not None
        os.kill(here.trainer.status.pid, signal.SIGKILL)
        with pytest.raises(NodeError):
            await order
        assert torch.equal(here.weights(uid), before)
        assert here.node.contributions.version_of(here.node.peer_id, "gone") == 1
        await until(lambda: here.trainer.status.state == "idle")  # type: ignore[union-attr]
    async with forgetting_node(network, "a", tmp_path) as here:
        assert torch.equal(here.weights(uid), before)
        report = await here.forget(task="gone")
        assert [fate.tasks for fate in report.redistilled] == [("kept",)]
        assert kinds(report)["contribution"] == 80
        assert here.node.contributions.version_of(here.node.peer_id, "gone") == 2


STEPS = ("contributions.withdraw", "host.start_over", "host.erase", "state.ledger.drop_task")


async def test_a_daemon_that_is_killed_anywhere_is_brought_to_the_same_end_by_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed: what the step would have done is not done, and nothing after it."""
    network = memory_network()
    async with forgetting_node(network, "a", tmp_path / "whole") as here:
        await here.learn("kept", KEPT)
        await here.learn("gone", together(GONE, OTHER.select(range(40))))
    ends = []
    for step in (None, *STEPS):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", folder)
        if step is not None:
            async with forgetting_node(network, "a", folder) as here:
                *path, name = step.split(".")
                part = functools.reduce(getattr, path, here.node)
                with monkeypatch.context() as patch:
                    patch.setattr(part, name, die)
                    with pytest.raises(Killed):
                        await here.forget(task="gone")
        async with forgetting_node(network, "a", folder) as here:
            await here.forget(task="gone")
            experts = {uid: here.node.host.snapshot(uid).tobytes() for uid in here.node.host.experts}
            view = here.node.contributions.view
            assert view is not None
            tasks = {row.name for row in here.node.state.ledger.tasks()}
            # What teachers say of other tasks is computed again where it is needed.
            files = {name for name in here.kept() if not name.startswith("logits/")}
            ends.append((experts, view.router.weights.numpy().tobytes(), remembered(here), tasks, files))
    assert ends[0][0].keys() == {uid_of("0", "1")}
    for end in ends[1:]:
        assert end == ends[0]


class Killed(BaseException):
    """Not one that anybody catches."""


def die(*args: object, **named: object) -> None:
    raise Killed


def together(*parts: ImageDataset) -> ImageDataset:
    labels = tuple(label for part in parts for label in part.labels)
    return ImageDataset(np.concatenate([part.images for part in parts]), labels)


async def test_without_a_trainer_what_it_keeps_is_named_and_the_rest_goes(tmp_path: Path) -> None:
    network = memory_network()
    async with forgetting_node(network, "a", tmp_path) as here:
        await here.learn("gone", OTHER)
    async with forgetting_node(network, "a", tmp_path, train=False) as here:
        report = await here.forget(task="gone")
        assert "trainer" in {left.kind for left in report.not_forgotten}
        assert kinds(report) == {"contribution": 80}
        assert not here.node.host.experts
        assert here.node.contributions.view is None
    async with forgetting_node(network, "a", tmp_path) as here:
        assert kinds(await here.forget(task="gone")) == {"replay images": 80, "teacher": 1, "teachers' answers": 1}


async def test_a_task_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    async with forgetting_node(memory_network(), "a", tmp_path, train=False) as here:
        with pytest.raises(Refused):
            await here.forget(task="unheard of")
        assert here.node.state.ledger.forgotten("task") == ()


async def test_a_peer_is_named_or_known_by_its_id_and_may_be_readmitted(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        forgetting_node(network, "a", tmp_path, train=False) as here,
        memory_node(network, "b", tmp_path) as b,
        memory_node(network, "c", tmp_path) as c,
    ):
        node = here.node
        await b.contribute("t", statistics_of("0", "1"))
        await c.contribute("t", statistics_of("2", "3"))
        await announce_all((node, b, c))
        await node.contributions.pull(node.puller, node.directory)
        would = await here.forget(peer="b", dry_run=True)
        assert len(node.contributions.held()) == 2
        report = await here.forget(peer="b")
        assert report.dropped == would.dropped
        assert kinds(report) == {"contribution": 120}
        await c.contributions.pull(c.puller, c.directory)
        await c.contributions.solve()
        await announce_all((node, b, c))
        await node.contributions.pull(node.puller, node.directory)
        assert [of.peer_id for of in node.contributions.held()] == [c.peer_id]
        for nobody in ("nobody", "Qm", node.peer_id[:1] + "?"):
            with pytest.raises(NoSuchPeerOrExpert):
                await here.forget(peer=nobody)
        with pytest.raises(Refused):
            await here.forget(peer=node.peer_id)
        await here.forget(peer=b.peer_id[:12], undo=True)
        await node.contributions.pull(node.puller, node.directory)
        await node.contributions.solve()
        assert same_router(node, c)
