"""Real nodes of meshes that tell domains and tasks apart."""

from pathlib import Path

import numpy as np
import pytest
from integration_nodes import Daemon, Daemons, complaints, digits_test, found, save_shard, shards

from experts.data.dataset import ImageDataset
from experts.data.npz import save_task

pytestmark = pytest.mark.integration

DIGITS = ("0", "1", "2", "3")
STEPS = {"MESHNODE_TRAIN__STEPS": "400", "MESHNODE_TRAIN__TEACHER_EPOCHS": "4"}


def turned(data: ImageDataset) -> ImageDataset:
    """By a quarter."""
    return ImageDataset(np.ascontiguousarray(np.rot90(data.images, axes=(1, 2))), data.labels)


def share_right(node: Daemon, test: ImageDataset, *, task: str | None = None) -> float:
    predictions = node.infer(test.images, task=task)["predictions"]
    return float(np.mean([got == want for got, want in zip(predictions, test.labels, strict=True)]))


def two_nodes(daemons: Daemons, folder: Path) -> tuple[Daemon, Daemon]:
    first = daemons.make("ann", data=folder / "ann-data")
    second = daemons.make("ben", data=folder / "ben-data")
    for node in (first, second):
        node.env = STEPS
    return first, second


def run_both(first: Daemon, second: Daemon) -> None:
    first.launch().wait_ready()
    second.join = [first.address]
    second.launch().wait_ready()
    for node in (first, second):
        node.wait_for(
            lambda node: node.status()["experts"]["mesh"] == 2 and node.status()["router"]["contributions"] == 2,
            "both experts and what is known of both",
            within_s=90.0,
        )
        node.wait_for(lambda node: node.status()["training"]["state"] == "idle", "its task learned", within_s=90.0)


def test_domains_have_experts_of_their_own_and_are_told_apart_by_the_router(daemons: Daemons, tmp_path: Path) -> None:
    first, second = two_nodes(daemons, tmp_path)
    shard_a, shard_b = shards(2)
    upright = save_shard(first.data, "upright", shard_a, DIGITS)
    second.data.mkdir()
    save_task(second.data / "turned@ben.npz", turned(shard_b.of_classes(DIGITS)))
    found(first.home, first.data / "upright.npz", setting="domain-incremental")
    run_both(first, second)
    assert set(upright.labels) == set(DIGITS)
    classes = {tuple(expert["classes"]) for expert in first.experts()}
    assert classes == {tuple(f"{domain}/{digit}" for digit in DIGITS) for domain in ("turned", "upright")}
    (expert_of_turned,) = (one["uid"] for one in first.experts() if one["classes"][0].startswith("turned"))

    test = digits_test("".join(DIGITS), 80)
    for node in (first, second):
        assert node.infer(test.images)["classes"] == list(DIGITS), "as people name them"
        assert share_right(node, test) > 0.9
        assert share_right(node, turned(test)) > 0.9
    route = first.infer(turned(test).images, top_k=1)["route"]
    assert np.mean([hop["expert"] == expert_of_turned for hop in route]) > 0.9
    (entry,) = second.get("train")["history"]
    assert (entry["decision"]["action"], entry["decision"]["context"]) == ("spawn", "turned")
    for node in (first, second):
        assert complaints(node.stderr) == []


def test_a_query_names_its_task_and_only_that_tasks_experts_answer(daemons: Daemons, tmp_path: Path) -> None:
    first, second = two_nodes(daemons, tmp_path)
    shard_a, shard_b = shards(2)
    save_shard(first.data, "low", shard_a, ("0", "1"))
    second.data.mkdir()
    high = shard_b.of_classes(("7", "8"))
    names = {"7": "0", "8": "1"}
    save_task(second.data / "high.npz", ImageDataset(high.images, [names[label] for label in high.labels]))
    found(first.home, first.data / "low.npz", setting="task-incremental")
    run_both(first, second)

    low_test, high_images = digits_test("01", 40), digits_test("78", 40)
    high_test = ImageDataset(high_images.images, [names[label] for label in high_images.labels])
    for node in (first, second):
        assert share_right(node, low_test, task="low") > 0.9
        assert share_right(node, high_test, task="high") > 0.9
        with pytest.raises(AssertionError, match="the images' task has to be named; there are high, low"):
            node.infer(low_test.images)
        with pytest.raises(AssertionError, match="nobody answers for a task 'middle'"):
            node.infer(low_test.images, task="middle")
    for node in (first, second):
        assert complaints(node.stderr) == []
