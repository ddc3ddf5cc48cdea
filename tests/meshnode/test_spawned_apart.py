"""Nodes that are cut off from each other, spawn experts for the same classes, and meet again."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from averaging_groups import average, round_number
from mesh_in_memory import MESH, ROUTER, MemoryNode, announce_all, digits, memory_network, memory_node
from spawning_nodes import BEGUN, DIGITS, PLAIN, RENAMED, SpawningNode, announce, renamed, spawning_node
from training_nodes import until

from experts.data.dataset import ImageDataset
from experts.router.ridge import solve_ridge
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.logs import configure_logs
from meshnode.transport.memory import MemoryNetwork

HARD = digits(*DIGITS)
SHARES = {"a": HARD.select(range(150)), "b": HARD.select(range(150, len(HARD)))}
UNSEEN = digits(*DIGITS, test=True)
ONE_IMAGE = 1 / len(UNSEEN) + 1e-9


@pytest.fixture(autouse=True)
def _logs() -> None:
    configure_logs("info", "json")


def cut(network: MemoryNetwork, *nodes: SpawningNode | MemoryNode) -> None:
    network.partition(
        *(frozenset({node.node.peer_id if isinstance(node, SpawningNode) else node.peer_id}) for node in nodes)
    )


def central(*parts: ImageDataset) -> torch.Tensor:
    """B of the router of somebody who has all the images."""
    images, labels = np.concatenate([part.images for part in parts]), [label for part in parts for label in part.labels]
    statistics = ClassStatistics.from_features(features_of(MESH.trunk, images), labels, fingerprint=MESH.fingerprint)
    return solve_ridge(statistics, ROUTER).weights


def router_of(node: MemoryNode) -> torch.Tensor:
    assert node.contributions.view is not None
    return node.contributions.view.router.weights


async def averaged(a: SpawningNode, b: SpawningNode) -> np.ndarray:
    """What both hold after a round."""
    assert a.expert.uid == b.expert.uid
    await average([a.node, b.node], number=round_number([a.node]))
    assert all(one.node.averager.results.keys() == {"committed"} for one in (a, b))
    assert a.expert.uid in a.node.averager.last_committed
    vectors = [one.node.host.snapshot(one.expert.uid) for one in (a, b)]
    assert np.array_equal(*vectors), "to the bit"
    return vectors[0]


async def test_what_is_spawned_at_random_apart_is_one_expert_and_who_comes_late_knows_as_much_without_data(
    tmp_path: Path,
) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        cut(network, a, b)
        before = {}
        for one in (a, b):
            await one.learn("mine", SHARES[one.node.name])
            await announce([one])
            assert len(one.node.directory.records()) == 1
            before[one.node.name] = await one.accuracy(UNSEEN)
        replicas = [next(iter(one.node.host.experts.values())) for one in (a, b)]
        assert replicas[0].uid == replicas[1].uid == MESH.uid_of(DIGITS, MESH.form_for(2))
        assert replicas[0].origin == replicas[1].origin
        learned = [one.node.host.snapshot(replicas[0].uid) for one in (a, b)]
        assert not np.allclose(*learned)

        network.partition()
        await announce([a, b])
        for one in (a, b):
            await one.settling.settle(replicas[0].uid)
            assert one.told("expert_settled") == [], "replicas of one expert are nothing to settle"
        await average([a.node, b.node])
        means = [one.node.host.snapshot(replicas[0].uid) for one in (a, b)]
        assert np.array_equal(*means)
        assert np.allclose(means[0], np.mean(learned, axis=0), atol=1e-6)
        assert torch.equal(router_of(a.node), router_of(b.node))
        whole = central(*SHARES.values())
        assert torch.linalg.norm(router_of(a.node) - whole) < 1e-3 * torch.linalg.norm(whole)
        after = {one.node.name: await one.accuracy(UNSEEN) for one in (a, b)}
        assert after["a"] == after["b"] >= np.mean(list(before.values()))

        async with memory_node(network, "late", tmp_path) as late:
            await announce([a, b])
            await announce_all([late])
            await late.contributions.pull(late.puller, late.directory)
            await late.contributions.solve()
            assert torch.equal(router_of(late), router_of(a.node))
            for uid in tuple(late.directory.current()):
                await late.replicas.pull(uid)
            await announce_all([late])
            cut(network, a, b, late)  # it answers by itself
            prediction = await late.inference.predict(UNSEEN.images, timeout_s=5.0)
            right = np.mean([got == want for got, want in zip(prediction.predictions, UNSEEN.labels, strict=True)])
            assert {call.peer_id for call in prediction.calls} <= {late.peer_id}
            assert right == after["a"]


async def knowing_the_digits(a: SpawningNode, b: SpawningNode) -> None:
    await a.learn("digits", HARD)
    await announce([a, b])


async def test_two_beginnings_of_one_expert_become_one_which_has_learned_from_both_sides(tmp_path: Path) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        await knowing_the_digits(a, b)
        await b.node.replicas.pull(MESH.uid_of(DIGITS, MESH.form_for(2)))
        cut(network, a, b)
        for one, rows in ((a, slice(0, 150)), (b, slice(-150, None))):
            start = (await one.learn("mine", renamed(rows)))["decision"]["start"]
            assert (start["chosen"], one.expert.uid) == ("transferred", BEGUN)
            await announce([one])
        before = [await one.own_accuracy() for one in (a, b)]
        assert a.expert.origin != b.expert.origin

        network.partition()
        await announce([a, b])
        kept, given_up = sorted((a, b), key=lambda one: str(one.expert.lineage))
        lineage = kept.expert.lineage
        await asyncio.gather(*(one.settling.settle(BEGUN) for one in (a, b)))
        assert a.expert.lineage == b.expert.lineage == lineage
        assert a.expert.origin == b.expert.origin
        assert kept.told("expert_settled") == []
        assert given_up.told("expert_settled") == [
            {"expert": BEGUN, "instead_of": BEGUN, "classes": RENAMED, "tasks": ("mine",)}
        ]
        await until(lambda: [one["decision"]["action"] for one in given_up.entries("mine")] == ["update"])
        (again,) = given_up.entries("mine")
        assert (again["outcome"], again["experts"], again["decision"]["start"]) == ("learned", [BEGUN], None)
        assert len(kept.trainer.history) == (2 if kept is a else 1)
        await announce([a, b])
        await averaged(a, b)
        after = [await one.own_accuracy() for one in (a, b)]
        assert after[0] == after[1] >= min(before) - ONE_IMAGE


async def test_a_beginning_gives_way_to_what_began_at_random_elsewhere(tmp_path: Path) -> None:
    network = memory_network()
    async with spawning_node(network, "a", tmp_path) as a, spawning_node(network, "b", tmp_path) as b:
        cut(network, a, b)
        await knowing_the_digits(a, a)
        await a.learn("mine", renamed(slice(0, 150)))
        await b.learn("mine", renamed(slice(-150, None)))
        assert (a.expert.uid, b.expert.uid) == (BEGUN, PLAIN)
        before = [await one.own_accuracy() for one in (a, b)]

        network.partition()
        await announce([a, b])
        running = [asyncio.create_task(one.settling.run()) for one in (a, b)]
        try:
            for _ in range(3):
                for one in (a, b):
                    one.settling.look_again()
                await until(lambda: a.told("expert_settled"))
                await announce([a, b])
        finally:
            for task in running:
                task.cancel()
        assert (a.expert.uid, b.expert.uid) == (PLAIN, PLAIN)
        assert (len(a.told("expert_settled")), b.told("expert_settled")) == (1, [])
        await until(lambda: [one["decision"]["action"] for one in a.entries("mine")] == ["update"])
        await announce([a, b])
        assert a.node.directory.current().keys() == {PLAIN, MESH.uid_of(DIGITS, MESH.form_for(2))}
        await averaged(a, b)
        assert min([await one.own_accuracy() for one in (a, b)]) >= min(before) - ONE_IMAGE
