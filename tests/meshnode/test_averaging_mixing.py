"""How replicas become one over several rounds: along grids, in pairs, compressed, beside training, after absences."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from averaging_groups import (
    PATIENT,
    PERIOD_S,
    SHORT,
    average,
    group,
    mean_of,
    next_rounds,
    round_number,
)
from mesh_in_memory import MESH, MemoryNode, announce_all, memory_network, memory_nodes

from experts.checkpoint import weights_to_bytes
from meshnode.averaging.budget import RoundBudget
from meshnode.averaging.settings import AveragerConfig
from meshnode.hosted import Descent
from meshnode.pacing import Pacer
from meshnode.state.rows import Reached
from protocol.errors import PeerUnreachable
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.messages import (
    RoundAnswer,
    RoundProposal,
    RoundWord,
)
from protocol.mixing import group_in_round


async def test_more_replicas_than_a_group_holds_come_to_the_mean_along_a_grid(tmp_path: Path) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, group=2)
    async with group(tmp_path, "abcd", config) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        number = round_number(nodes)
        await average(nodes, number=number)
        assert {len(node.averager.last_committed[uid][1]) for node in nodes} == {2}
        assert not np.allclose(nodes[0].host.snapshot(uid), mean_of(learned), atol=1e-3)
        # Nobody learns any more, and still what each pair came to goes on to the other.
        await average(nodes, number=number + 1)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=1e-6)
        nodes[0].network.now_s += 2 * PERIOD_S
        await next_rounds(nodes, 4)
        assert max(node.averager.results["committed"] for node in nodes) <= 4


async def to_rounds_of_other_pairs(nodes: Sequence[MemoryNode]) -> None:
    """To a round after which four replicas pair up otherwise: as one matching again and again, two would stay apart."""
    peers = sorted(node.key.peer_id for node in nodes)

    def partners(number: int) -> tuple[PeerId, ...]:
        return group_in_round(peers[0], peers, number, method="random", most=2)

    while partners(round_number(nodes)) == partners(round_number(nodes) + 1):
        nodes[0].network.now_s += PERIOD_S
    await announce_all(nodes)


@pytest.mark.parametrize("method", ["hypercube", "random"])
async def test_pairs_come_to_the_mean_of_all_too(tmp_path: Path, method: Any) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, method=method, min_drift=1e-3)
    async with group(tmp_path, "abcd", config) as (uid, nodes):
        if method == "random":
            await to_rounds_of_other_pairs(nodes)
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        await next_rounds(nodes, 2 if method == "hypercube" else 30)
        tolerance = 1e-6 if method == "hypercube" else 0.01
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=tolerance)
            assert node.averager.results.keys() == {"committed"}


@pytest.mark.parametrize(("compression", "rounds"), [("float16", 6), ("int8", 8), ("topk", 45)])
async def test_compressed_rounds_lose_nothing_and_come_to_the_mean(
    tmp_path: Path, compression: str, rounds: int
) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, compression=compression, min_drift=1e-6)
    async with group(tmp_path, "abc", config) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        for _ in range(rounds):
            await next_rounds(nodes, 1)
            held = [node.host.snapshot(uid) for node in nodes]
            assert np.allclose(np.mean(held, axis=0), np.mean(learned, axis=0), atol=1e-5)
        assert np.abs(np.subtract(held, np.mean(learned, axis=0))).max() < 1e-3


class Training:
    """A run that goes on beside the rounds: it learns, takes in deltas when it likes, and reports where it stands."""

    def __init__(self, node: MemoryNode, uid: ExpertUid, seed: int) -> None:
        self._node, self._uid = node, uid
        self._random = np.random.default_rng(seed)
        self._vector = node.host.snapshot(uid)
        self._applied = 0
        self.learned = np.zeros(len(self._vector))

    async def go_on(self, steps: int) -> None:
        for number in range(steps):
            step = self._random.normal(size=len(self._vector)).astype(np.float32)
            self.learned += step
            self._vector = self._vector + step
            if self._random.random() < 0.7:
                deltas = self._node.host.get(self._uid).deltas or []
                self._vector = self._vector + sum(deltas[self._applied :], np.zeros_like(step))
                self._applied = len(deltas)
            await asyncio.sleep(float(self._random.uniform(0, 0.01)))
            reached = Reached(run="run", steps=number)
            await self._node.host.checkpoint(self._uid, self._vector, deltas_applied=self._applied, reached=reached)


@pytest.mark.parametrize("compression", ["none", "topk"])
async def test_rounds_beside_training_lose_nothing_that_anybody_learned(tmp_path: Path, compression: str) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, group=2, compression=compression)
    async with group(tmp_path, "abcd", config) as (uid, nodes):
        nodes[0].network.delay_s = 0.002
        start = nodes[0].host.snapshot(uid)
        for node in nodes:
            await node.host.begin_training(uid)
        runs = [Training(node, uid, seed) for seed, node in enumerate(nodes)]
        # Pairs of which only one has something to average are rounds apart at once, and the other pair catches up.
        await asyncio.gather(*(run.go_on(1) for run in runs))
        training = [asyncio.create_task(run.go_on(12)) for run in runs]
        while not all(task.done() for task in training):
            await next_rounds(nodes, 1)
        await asyncio.gather(*training)
        assert min(node.averager.results["committed"] for node in nodes) >= 2
        held = np.sum([node.host.snapshot(uid) for node in nodes], axis=0, dtype=np.float64)
        expected = 4.0 * start + sum(run.learned for run in runs)
        assert np.linalg.norm(held - expected) <= 1e-6 * np.linalg.norm(expected)


async def test_a_weight_of_samples_counts(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", PATIENT) as (uid, (a, b)):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate((a, b))]
        for node, weight in ((a, 3.0), (b, 1.0)):
            node.averager._hooks = replace(node.averager._hooks, weight=lambda uid, weight=weight: weight)
        await average((a, b))
        for node in (a, b):
            assert np.allclose(node.host.snapshot(uid), 0.75 * learned[0] + 0.25 * learned[1], atol=1e-6)


async def test_a_replica_of_other_origin_is_refused_and_the_rest_average(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), list("abc"), tmp_path, averager=SHORT) as nodes:
        uid = (await nodes[0].spawn("0", "1")).uid
        await nodes[1].spawn("0", "1")
        architecture = MESH.architecture(MESH.spec.expert, 2)
        weights = weights_to_bytes(architecture.build("another seed"))
        await nodes[2].host.adopt(uid, ("0", "1"), architecture, weights, Descent(origin=digest_of(weights)))
        await announce_all(nodes)
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        await average(nodes)
        for node in nodes[:2]:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned[:2]), atol=1e-6)
        assert np.array_equal(nodes[2].host.snapshot(uid), learned[2])
        assert [node.averager.results["differing_origins"] for node in nodes] == [1, 1, 1]


async def test_members_that_average_in_another_way_are_refused(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        other = nodes[2].averager
        other._config = replace(SHORT, weighting="samples")
        await average(nodes)
        for node in nodes[:2]:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned[:2]), atol=1e-6)
        assert np.array_equal(nodes[2].host.snapshot(uid), learned[2])
        assert other.results["differing_settings"] == 1


async def test_a_replica_that_missed_many_rounds_pulls_and_keeps_what_it_learned(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        *others, late = nodes
        start = late.host.snapshot(uid)
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        number = round_number(nodes)
        await average(others, number=number)  # the late one has never averaged at all
        await announce_all(nodes)
        mean = mean_of(learned[:2])
        await average(nodes, number=number + 1)
        assert late.averager.results["stale"] == 1
        assert late.host.get(uid).round == number
        assert np.allclose(late.host.snapshot(uid), mean + learned[2] - start, atol=1e-5)
        for node in others:
            assert np.allclose(node.host.snapshot(uid), mean, atol=1e-6)
        await announce_all(nodes)
        await average(nodes, number=number + 2)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean + (learned[2] - start) / 3, atol=1e-5)


async def test_a_member_cut_off_before_the_end_asks_later_and_commits_what_the_others_did(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", SHORT) as (uid, (a, b)):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate((a, b))]
        say_of_b = b.averager._say

        async def unheard(peer_id: PeerId, words: Sequence[RoundWord]) -> Sequence[RoundAnswer]:
            """Every answer to what b attests, and to what it asks afterwards, is lost on its way back."""
            answers = await say_of_b(peer_id, words)
            if isinstance(words[0], RoundProposal):
                return answers
            raise PeerUnreachable(peer_id)

        b.averager._talk._send = unheard  # type: ignore[method-assign]
        await average((a, b))
        assert np.allclose(a.host.snapshot(uid), mean_of(learned), atol=1e-6)
        assert np.array_equal(b.host.snapshot(uid), learned[1])
        await average((b,), number=round_number((a, b)) + 1)
        assert np.array_equal(b.host.snapshot(uid), learned[1]), "as long as nobody answers nothing is done"
        b.averager._talk._send = say_of_b  # type: ignore[method-assign]
        await average((b,), number=round_number((a, b)) + 2)
        assert np.allclose(b.host.snapshot(uid), mean_of(learned), atol=1e-6)


async def test_what_a_round_may_send_goes_to_the_stalest_first(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), list("ab"), tmp_path, averager=PATIENT) as nodes:
        for node in nodes:
            uids = [(await node.spawn(*classes)).uid for classes in (("0", "1"), ("2", "3"), ("4", "5"))]
        await announce_all(nodes)
        number = round_number(nodes)
        cost = 4 * nodes[0].host.get(uids[0]).num_parameters
        for node in nodes:
            node.averager._budget = RoundBudget(Pacer(1.5 * cost), 1.0)
            for age, uid in enumerate(uids):
                node.host.get(uid).round = number - 3 + age
                await node.learn(uid, seed=age + 10 * nodes.index(node))
        await average(nodes, number=number)
        assert list(nodes[0].averager.last_committed) == uids[:1]
        await average(nodes, number=number + 1)  # what was left over is enough for two, with what comes new
        assert list(nodes[0].averager.last_committed) == uids[:3] or list(nodes[0].averager.last_committed) == uids[:2]
        await average(nodes, number=number + 2)
        assert set(nodes[0].averager.last_committed) == set(uids)


async def test_halves_that_averaged_apart_become_one_again_though_nobody_learns_any_more(tmp_path: Path) -> None:
    async with group(tmp_path, "abcd", SHORT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        halves = [frozenset(node.peer_id for node in half) for half in (nodes[:2], nodes[2:])]
        nodes[0].network.partition(*halves)
        await next_rounds(nodes, 1)
        assert not np.allclose(nodes[0].host.snapshot(uid), nodes[3].host.snapshot(uid), atol=1e-3)
        nodes[0].network.partition()
        await next_rounds(nodes, 1)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=1e-6)


async def test_rounds_end_with_training_even_if_a_replica_is_alone_on_an_axis(tmp_path: Path) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, group=2)
    async with group(tmp_path, "abc", config) as (uid, nodes):
        for seed, node in enumerate(nodes):
            await node.learn(uid, seed=seed)
        await next_rounds(nodes, 30)
        held = [node.host.snapshot(uid) for node in nodes]
        assert np.allclose(held, held[0], atol=1e-3)
        committed = [node.averager.results["committed"] for node in nodes]
        await next_rounds(nodes, 4)
        assert [node.averager.results["committed"] for node in nodes] == committed


async def test_a_replica_whose_newer_ones_are_no_weights_stays_what_it_is(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        *others, late = nodes
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        number = round_number(nodes)
        await average(others, number=number)
        for node in others:
            node.host.get(uid).weights = node.state.blobs.put(b"no weights of anything")
        await announce_all(nodes)
        await average(nodes, number=number + 1)
        assert late.averager.results["stale"] == 1
        assert np.array_equal(late.host.snapshot(uid), learned[2])
        assert late.host.get(uid).round == 0
