"""Decisions of a node with a real worker: what is learned, only counted or left waiting, and what a kill changes."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from learning_nodes import learning
from mesh_in_memory import announce_all, digits, memory_network, memory_node, memory_nodes, statistics_of
from training_nodes import until

from experts.data.npz import save_partly_labelled, save_task
from experts.data.partly import PartlyLabelled
from meshnode.logs import configure_logs
from meshnode.trainer import service as module
from meshnode.trainer.service import ASSESSED, LEARNED, WAITS, Trainer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logs("info", "json")
    monkeypatch.setattr(module, "RESTART_S", 0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


async def done(trainer: Trainer, number: int) -> list[dict[str, object]]:
    """The history once it has so many entries."""
    trainer.look_again()
    await until(lambda: len(trainer.history) >= number)
    assert len(trainer.history) == number
    return [dict(entry) for entry in trainer.history]


async def test_what_an_expert_knows_already_is_counted_and_remembered_but_trains_nothing(
    tmp_path: Path, data: Path
) -> None:
    save_task(data / "a.npz", digits("0", "1").select(range(160)))
    async with memory_node(memory_network(), "a", tmp_path) as node, learning(node, tmp_path, data) as trainer:
        await done(trainer, 1)
        (expert,) = node.host.experts.values()
        generation, remembered = expert.generation, trainer.status.replay_samples
        save_task(data / "b.npz", digits("0", "1").select(range(160, 240)))
        _, entry = await done(trainer, 2)
        assert (entry["outcome"], entry["action"], entry["experts"]) == (LEARNED, "reuse", [])
        decision = entry["decision"]
        assert isinstance(decision, dict)
        assert decision["gains"].keys() == {expert.uid}
        assert decision["gain"]["accuracy_now"] > 0.95
        assert expert.generation == generation, "nothing is made that would have to be sent"
        assert (remembered, trainer.status.replay_samples) == (160, 200)
        assert node.contributions.own_samples(node.transport.peer_id, ("0", "1")) == 240
        assert not (tmp_path / "trainer" / "teachers" / "b.safetensors").exists()


async def test_what_has_learned_nothing_learns_and_the_expert_beside_it_that_has_nothing_to_gain_stays(
    tmp_path: Path, data: Path
) -> None:
    save_task(data / "a.npz", digits("0", "1").select(range(160)))
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        untaught = await b.spawn("2", "3")
        async with learning(a, tmp_path, data) as trainer:
            await done(trainer, 1)
            (taught,) = a.host.experts.values()
            before = taught.generation
            await announce_all((a, b))
            save_task(data / "b.npz", digits("0", "1", "2", "3").select(range(300, 460)))
            _, entry = await done(trainer, 2)
            decision = entry["decision"]
            assert isinstance(decision, dict)
            assert decision["action"] == "update"
            assert decision["trained"] == [untaught.uid] == entry["experts"]
            assert decision["gains"].keys() == {taught.uid}
            assert taught.generation == before
            assert a.host.get(untaught.uid).reached is not None


async def test_a_decision_is_taken_before_learning_and_a_killed_worker_goes_on_by_it(
    tmp_path: Path, data: Path
) -> None:
    save_task(data / "a.npz", digits("0", "1").select(range(80)))
    async with (
        memory_node(memory_network(), "a", tmp_path) as node,
        learning(node, tmp_path, data, steps=3000) as trainer,
    ):
        await until(lambda: any(one.reached and one.reached.steps >= 500 for one in node.host.experts.values()))
        under_way = trainer.last_decision
        assert under_way is not None
        assert (under_way["outcome"], under_way["decision"]["action"]) == (None, "spawn")  # type: ignore[index]
        assert trainer.status.pid is not None
        os.kill(trainer.status.pid, signal.SIGKILL)
        (entry,) = await done(trainer, 1)
        # Decided anew it would be an update by now: its expert exists.
        assert (entry["decision"], entry["decided_at"]) == (under_way["decision"], under_way["decided_at"])
        (expert,) = node.host.experts.values()
        assert expert.generation == 1 + 3000 // 50


async def test_history_is_the_same_after_a_restart_and_goes_with_a_forgotten_task(tmp_path: Path, data: Path) -> None:
    save_task(data / "a.npz", digits("0", "1").select(range(80)))
    (data / "b.npz").write_bytes(b"")
    async with memory_node(memory_network(), "a", tmp_path) as node:
        async with learning(node, tmp_path, data) as trainer:
            before = await done(trainer, 1)
        async with learning(node, tmp_path, data) as trainer:
            await until(lambda: trainer.status.state == "idle")
            assert [dict(entry) for entry in trainer.history] == before
            assert json.loads(json.dumps(before)) == before
        node.state.ledger.drop_task("a")
        assert trainer.history == ()


async def test_images_without_labels_wait_until_they_are_known(tmp_path: Path, data: Path) -> None:
    known = digits("0", "1", "2", "3", "4")  # enough that 128 of them are held out
    np.savez(data / "a.npz", images=known.images[:64])
    async with memory_node(memory_network(), "a", tmp_path) as node, learning(node, tmp_path, data) as trainer:
        (entry,) = await done(trainer, 1)
        assert (entry["outcome"], entry["classes"], entry["unlabelled"]) == (WAITS, {}, 64)
        await until(lambda: trainer.status.state == "idle")
        assert trainer.status.unlabelled == ("a",)
        assert trainer.status.reason == "what is left to learn has no labels"
        save_task(data / "b.npz", known)
        trainer.look_again()
        await until(lambda: trainer.status.state == "idle" and not trainer.status.unlabelled)
        of_a = next(entry for entry in trainer.history if entry["task"] == "a")
        assert of_a["outcome"] == ASSESSED
        assert of_a["decision"]["assessment"]["verdict"] == "known"  # type: ignore[index]
        np.savez(data / "c.npz", images=255 - digits("7").images[:64])
        trainer.look_again()
        await until(lambda: trainer.status.unlabelled == ("c",))
        of_c = next(entry for entry in trainer.history if entry["task"] == "c")
        assert "waits for labels" in of_c["decision"]["reason"]  # type: ignore[index]
        assert len(node.host.experts) == 1
        assert node.contributions.own_samples(node.transport.peer_id, known.classes) == len(known)


async def test_what_waits_is_looked_at_again_when_peers_have_contributed(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASURE_EVERY_S", 0.05)
    np.savez(data / "a.npz", images=digits("0", "1").images[:64])
    async with (
        memory_nodes(memory_network(), "ab", tmp_path) as (a, b),
        learning(a, tmp_path, data) as trainer,
    ):
        (first,) = await done(trainer, 1)
        await until(lambda: trainer.status.state == "idle")
        statistics = statistics_of("0", "1")
        await a.contributions.contribute(b.key, "theirs", statistics, issued_at=a.transport.now_s())
        await a.contributions.solve()
        await until(lambda: trainer.history[0]["decided_at"] != first["decided_at"])
        await until(lambda: trainer.history[0]["outcome"])
        assert trainer.history[0]["decision"]["assessment"]["verdict"] == "undecided"  # type: ignore[index]
        assert first["decision"]["assessment"]["verdict"] == "new"  # type: ignore[index]


async def test_rows_without_labels_teach_but_are_never_counted(tmp_path: Path, data: Path) -> None:
    task = digits("0", "1").select(range(120))
    labels = tuple(label if row < 40 else None for row, label in enumerate(task.labels))
    save_partly_labelled(data / "a.npz", PartlyLabelled(task.images, labels))
    async with memory_node(memory_network(), "a", tmp_path) as node, learning(node, tmp_path, data) as trainer:
        (entry,) = await done(trainer, 1)
        assert (entry["outcome"], sum(entry["classes"].values()), entry["unlabelled"]) == (LEARNED, 40, 80)  # type: ignore[attr-defined]
        assert entry["decision"]["assessment"]["num_labelled"] == 40  # type: ignore[index]
        assert node.contributions.own_samples(node.transport.peer_id, ("0", "1")) == 40
        assert trainer.status.replay_samples == 40
