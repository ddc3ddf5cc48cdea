"""SIGKILL of a node, of its trainer or of its p2pd: nothing is left behind, and nothing committed is lost."""

from pathlib import Path
from typing import Any

import psutil
import pytest
from integration_nodes import Daemon, Daemons, digits_test, eventually, found, is_running, save_shard, shards
from replay_memories import replay_memory

from experts.data.npz import load_task
from meshnode.home import Home
from meshnode.state.state import State
from protocol.identifiers import digest_of

pytestmark = pytest.mark.integration

SLOW_TRAINING = {
    "MESHNODE_TRAIN__STEPS": "20000",
    "MESHNODE_TRAIN__ROUND_STEPS": "20",
    "MESHNODE_TRAIN__CHECKPOINT_EVERY": "1ms",
}
"""Long enough to be interrupted, with a checkpoint every few milliseconds."""


def _founded(daemons: Daemons, folder: Path, *tasks: tuple[str, ...], **settings: Any) -> Daemon:
    """A node that founds a mesh on its first task; not started."""
    node = daemons.make("ann", data=folder / "data", **settings)
    for number, classes in enumerate(tasks):
        save_shard(node.data, f"task{number}", shards(2)[0], classes)
    found(node.home, node.data / "task0.npz")
    return node


def _remembered(home: Home) -> tuple[list[str], list[str]]:
    """Labels, and digests of images, in the replay memory, which no process has open now."""
    memory = replay_memory(home.trainer / "replay.msgpack", capacity=200)
    labels = sorted({label for label in "0123456789" if len(memory.images_of([label]))})
    return labels, [digest_of(memory.images_of([label]).tobytes()) for label in labels]


def _sealed_contributions(home: Home) -> tuple[bytes, ...]:
    with State(home) as state:
        return state.contributions()


def _kill_and_see_its_children_end(node: Daemon) -> None:
    children = node.kill()
    assert children.keys() == {"p2pd", "trainer"}
    _, alive = psutil.wait_procs([child for child in children.values() if is_running(child)], timeout=5)
    assert not any(is_running(child) for child in alive)


def test_a_killed_node_resumes_with_its_experts_router_and_memory(daemons: Daemons, tmp_path: Path) -> None:
    node = _founded(daemons, tmp_path, ("0", "1"), ("2", "3"))
    node.launch().wait_ready()
    node.wait_for(lambda node: len(node.status()["training"]["learned"]) == 2, "two tasks learned")
    images = digits_test("0123", 40).images
    experts, before, answer = node.experts(), node.status(), node.infer(images)

    _kill_and_see_its_children_end(node)
    remembered, contributions = _remembered(node.home), _sealed_contributions(node.home)
    assert remembered[0] == ["0", "1", "2", "3"]
    assert len(contributions) == 2

    node.launch().wait_ready()
    resumed = node.status()
    assert (resumed["peer_id"], resumed["mesh"]) == (before["peer_id"], before["mesh"])
    assert _replicas(node.experts()) == _replicas(experts)
    assert resumed["router"] == before["router"]
    assert node.infer(images)["outputs"] == answer["outputs"]
    node.wait_for(lambda node: node.status()["training"]["state"] == "idle", "the trainer looked at the tasks")
    training = node.status()["training"]
    assert training["learned"] == ["task0", "task1"]
    assert training["decided"] == before["training"]["decided"], "nothing is learned a second time"
    assert training["replay_samples"] == before["training"]["replay_samples"] > 100

    assert node.terminate() == 0
    assert _remembered(node.home) == remembered
    assert _sealed_contributions(node.home) == contributions


def _replicas(experts: list[dict[str, Any]]) -> list[tuple[str, str, int, str]]:
    return [
        (expert["uid"], replica["peer_id"], replica["generation"], replica["weights"])
        for expert in experts
        for replica in expert["replicas"]
    ]


def test_a_node_killed_while_it_learns_keeps_every_generation_it_committed(daemons: Daemons, tmp_path: Path) -> None:
    node = _founded(daemons, tmp_path, ("0", "1"), env=SLOW_TRAINING)
    node.launch().wait_ready()
    node.wait_for(lambda node: node.experts() and _generation(node) > 5, "some checkpoints")
    seen = _replicas(node.experts())[0]
    _kill_and_see_its_children_end(node)

    with State(node.home) as state:
        (row,) = state.hosted_experts()
        kept = {generation.number: generation.digest for generation in state.ledger.generations(row.uid)}
        current = state.current(row.uid)
    assert kept[seen[2]] == seen[3], "what was advertised was on the disk"
    assert current is not None
    assert current.number == max(kept)

    node.env = {"MESHNODE_TRAIN__STEPS": "100"}
    node.launch().wait_ready()
    assert _generation(node) >= current.number
    node.wait_for(lambda node: node.status()["training"]["learned"] == ["task0"], "the interrupted task learned")
    samples = load_task(node.data / "task0.npz").class_counts
    assert node.status()["router"] == {"contributions": 1, "samples": samples}, "its data counts once"
    assert node.terminate() == 0


def _generation(node: Daemon) -> int:
    return int(node.experts()[0]["replicas"][0]["generation"])


def test_a_killed_trainer_is_started_again_and_the_node_answers_meanwhile(daemons: Daemons, tmp_path: Path) -> None:
    node = _founded(daemons, tmp_path, ("0", "1"), env=SLOW_TRAINING | {"MESHNODE_TRAIN__STEPS": "2000"})
    node.launch().wait_ready()
    node.wait_for(lambda node: node.experts() and _generation(node) > 5, "some checkpoints")
    images = digits_test("01", 20).images
    first, generation = node.status()["training"]["pid"], _generation(node)
    trainer = node.children()["trainer"]
    assert trainer.pid == first
    trainer.kill()

    def again() -> bool:
        assert node.infer(images)["missing_mass"] == [0.0] * 20
        training = node.status()["training"]
        return training["restarts"] == 1 and training["pid"] not in {None, first}

    eventually(again, within_s=15, what="another trainer")
    node.wait_for(lambda node: _generation(node) > generation + 1, "it learns again")
    node.wait_for(lambda node: node.status()["training"]["learned"] == ["task0"], "the task learned", within_s=60)

    # With nothing to learn its end is noticed as well.
    node.wait_for(lambda node: node.status()["training"]["state"] == "idle", "it waits for tasks")
    node.children()["trainer"].kill()
    node.wait_for(lambda node: node.status()["training"]["restarts"] == 2, "its end noticed")
    node.wait_for(lambda node: node.status()["training"]["state"] == "idle", "it waits for tasks again")
    assert node.terminate() == 0
    assert "the trainer process ended by itself (exit status -9)" in node.stderr
    assert "Traceback" not in node.stderr


def test_a_node_whose_p2pd_is_killed_ends_and_says_why(daemons: Daemons, tmp_path: Path) -> None:
    node = _founded(daemons, tmp_path, ("0", "1"), options=["--no-train"])
    node.launch().wait_ready()
    p2pd = node.children()["p2pd"]
    p2pd.kill()
    assert node.process is not None
    assert node.process.wait(15) == 1
    assert "p2pd ended by itself" in node.stderr
    assert "Traceback" not in node.stderr
