"""Rounds without a leader: the mean of all, added to what was learned meanwhile, or nothing at all."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import equations
import numpy as np
import pytest
from mesh_in_memory import MESH, MemoryNode, announce_all, key_of, memory_network, memory_nodes

from experts.checkpoint import weights_to_bytes
from meshnode.averaging import driver as driver_module
from meshnode.averaging.averager import MAX_REMEMBERED_ROUNDS
from meshnode.averaging.budget import RoundBudget
from meshnode.averaging.exchange import Exchanged
from meshnode.averaging.settings import AveragerConfig
from meshnode.hosting import Descent
from meshnode.pacing import Pacer
from meshnode.state.rows import Reached
from meshnode.transport.interface import FrameHandler
from protocol.errors import NoRoute, PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.messages import (
    Ack,
    RoundAnswer,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundProposal,
    RoundTalk,
    RoundTalkReply,
    RoundWord,
)

PERIOD_S = 10.0
PATIENT = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0)
"""For rounds that end by themselves."""
SHORT = AveragerConfig(period_s=PERIOD_S, timeout_s=1.2)
"""For rounds in which somebody is awaited in vain."""


@asynccontextmanager
async def group(
    folder: Path, names: str, config: AveragerConfig
) -> AsyncIterator[tuple[ExpertUid, tuple[MemoryNode, ...]]]:
    """Nodes that hold replicas of one expert and know each other."""
    async with memory_nodes(memory_network(), list(names), folder, averager=config) as nodes:
        for node in nodes:
            expert = await node.spawn("0", "1")
        await announce_all(nodes)
        yield expert.uid, nodes


def round_number(nodes: Sequence[MemoryNode]) -> int:
    """The first round in which replicas that are hosted by now take part."""
    return int(nodes[0].network.now_s // PERIOD_S) + 2


async def say(node: MemoryNode, sender: PeerId, word: RoundWord) -> RoundAnswer:
    reply = (await node.averager.answer(sender, Frame(RoundTalk((word,))))).message
    assert isinstance(reply, RoundTalkReply)
    (answer,) = reply.answers
    return answer


def proposal_of(node: MemoryNode, round_id: RoundId, members: Sequence[PeerId], *, ready: bool = True) -> RoundProposal:
    expert = node.host.get(round_id.expert)
    return RoundProposal(
        round=round_id,
        members=tuple(sorted(members)),
        whole=True,
        ready=ready,
        dirty=True,
        base=expert.round,
        origin=expert.origin,
        settings=PATIENT.agreement,
        reference=None,
        weight=1.0,
    )


async def average(nodes: Sequence[MemoryNode], *, number: int | None = None) -> None:
    if number is None:
        number = round_number(nodes)
    async with asyncio.timeout(20):
        await asyncio.gather(*(node.averager.run_round(number) for node in nodes))


def mean_of(vectors: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(equations.mean_of([vector.tolist() for vector in vectors]))


def generations(uid: ExpertUid, nodes: Sequence[MemoryNode]) -> list[int]:
    return [node.host.get(uid).generation for node in nodes]


async def test_every_member_gets_the_mean_of_all(tmp_path: Path) -> None:
    async with group(tmp_path, "abcd", PATIENT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        await average(nodes)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=1e-6)
            assert node.averager.waiting() == ()
            assert dict(node.averager.results) == {"committed": 1}
            number, members = node.averager.last_committed[uid]
            assert number == round_number(nodes)
            assert members == tuple(sorted(other.peer_id for other in nodes))
            assert node.state.ledger.generations(uid)[0].cause == "averaged"


async def test_one_member_that_learned_is_enough(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", PATIENT) as (uid, nodes):
        start = nodes[0].host.snapshot(uid)
        learned = await nodes[0].learn(uid, seed=1)
        await average(nodes)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of([learned, start, start]), atol=1e-6)


async def test_each_expert_is_averaged_by_those_that_hold_it(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", PATIENT) as (uid, nodes):
        a, b, c = nodes
        second = (await b.spawn("2", "3")).uid
        await c.spawn("2", "3")
        alone = (await a.spawn("4")).uid
        await announce_all(nodes)
        first = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        pair = [await node.learn(second, seed=seed) for seed, node in enumerate((b, c))]
        own = await a.learn(alone, seed=9)
        await average(nodes)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(first), atol=1e-6)
        for node in (b, c):
            assert np.allclose(node.host.snapshot(second), mean_of(pair), atol=1e-6)
        assert np.array_equal(a.host.snapshot(alone), own)
        assert second not in a.averager.last_committed


async def test_what_is_learned_during_a_round_is_kept_and_averaged_in_the_next(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", PATIENT) as (uid, nodes):
        a = nodes[0]
        before = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        steps = np.random.default_rng(1).normal(size=len(before[0])).astype(np.float32)
        exchange = a.averager._exchanges.run

        async def train_meanwhile(*args: Any, **kwargs: Any) -> Exchanged:
            exchanged = await exchange(*args, **kwargs)
            await a.host.checkpoint(uid, before[0] + steps, deltas_applied=0, reached=Reached(run="run", steps=5))
            return exchanged

        a.averager._exchanges.run = train_meanwhile  # type: ignore[method-assign]
        await average(nodes)
        a.averager._exchanges.run = exchange  # type: ignore[method-assign]
        assert np.allclose(a.host.snapshot(uid), mean_of(before) + steps, atol=1e-6)
        for node in nodes[1:]:
            assert np.allclose(node.host.snapshot(uid), mean_of(before), atol=1e-6)
        # Nobody learns any more; the steps reach the others all the same.
        await average(nodes, number=round_number(nodes) + 1)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(before) + steps / 3, atol=1e-6)


async def test_when_nobody_learned_nothing_is_exchanged(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", PATIENT) as (uid, nodes):
        await average(nodes)
        assert generations(uid, nodes) == [1, 1, 1]
        assert [dict(node.averager.results) for node in nodes] == [{}] * 3
        await nodes[0].learn(uid, seed=1)
        await average(nodes, number=round_number(nodes) + 1)
        await average(nodes, number=round_number(nodes) + 2)
        assert generations(uid, nodes) == [3, 2, 2]
        assert [dict(node.averager.results) for node in nodes] == [{"committed": 1}] * 3


async def test_a_replica_that_hardly_changed_waits_until_it_has(tmp_path: Path) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, min_drift=0.01)
    async with group(tmp_path, "ab", config) as (uid, (a, b)):
        start = a.host.snapshot(uid)
        step = 0.004 * np.linalg.norm(start) / np.sqrt(len(start)) * np.ones_like(start)
        for number in range(1, 4):
            learned = start + number * step
            await a.host.checkpoint(uid, learned, deltas_applied=0, reached=Reached(run="run", steps=number))
            assert a.averager.waiting() == (() if number < 3 else (uid,))
            await average((a, b), number=round_number((a, b)) + number)
            assert a.averager.results["committed"] == (number == 3)
        assert np.allclose(b.host.snapshot(uid), start + 1.5 * step, atol=1e-6)


async def test_a_member_that_missed_a_round_is_made_one_with_the_others_again(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        a, b, c = nodes
        await average(nodes)
        learned = await a.learn(uid, seed=1)
        a.network.partition(frozenset({a.peer_id, b.peer_id}), frozenset({c.peer_id}))
        await average(nodes, number=round_number(nodes) + 1)
        assert np.allclose(a.host.snapshot(uid), b.host.snapshot(uid), atol=1e-6)
        assert not np.allclose(a.host.snapshot(uid), learned, atol=1e-3)
        assert not np.allclose(a.host.snapshot(uid), c.host.snapshot(uid), atol=1e-3)
        a.network.partition()
        await announce_all(nodes)
        # Nobody learns any more.
        await average(nodes, number=round_number(nodes) + 2)
        for node in (b, c):
            assert np.allclose(a.host.snapshot(uid), node.host.snapshot(uid), atol=1e-6)


@pytest.mark.parametrize("way", ["silent", "gone"])
async def test_a_silent_member_stops_the_first_attempt_and_the_others_average_in_the_second(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with group(tmp_path, "abcd", SHORT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        *survivors, lost = nodes
        seen: list[tuple[int, list[int]]] = []
        run = driver_module.RoundDriver.run

        async def watched(self: driver_module.RoundDriver, *args: Any, **kwargs: Any) -> driver_module.AttemptResult:
            seen.append((self.round.round_id.attempt, generations(uid, survivors)))
            return await run(self, *args, **kwargs)

        monkeypatch.setattr(driver_module.RoundDriver, "run", watched)
        if way == "gone":
            await lost.transport.aclose()
        else:
            lost.go_silent()
        await average(survivors)
        # When the second attempt began nobody had changed anything.
        assert sorted(seen)[:3] == [(0, [2, 2, 2])] * 3
        assert [attempt for attempt, _ in seen].count(1) == 3
        assert min(number for attempt, then in seen if attempt == 1 for number in then) == 2
        for node in survivors:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned[:-1]), atol=1e-6)
            assert dict(node.averager.results) == {"partner_silent": 1, "committed": 1}
            assert set(node.averager.last_committed[uid][1]) == {other.peer_id for other in survivors}
        assert np.array_equal(lost.host.snapshot(uid), learned[-1])


async def test_nobody_commits_when_the_exchange_was_not_full_for_one_member(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", PATIENT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        exchange = nodes[1].averager._exchanges.run

        async def partial(*args: Any, **kwargs: Any) -> Exchanged:
            await exchange(*args, **kwargs)
            return Exchanged(averaged=None)

        nodes[1].averager._exchanges.run = partial  # type: ignore[method-assign]
        await average(nodes)
        for node, vector in zip(nodes, learned, strict=True):
            assert np.array_equal(node.host.snapshot(uid), vector)
            assert node.averager.waiting() == (uid,)
            assert "committed" not in node.averager.results
        nodes[1].averager._exchanges.run = exchange  # type: ignore[method-assign]
        await average(nodes, number=round_number(nodes) + 1)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=1e-6)


async def test_a_member_lost_after_the_exchange_is_left_out_of_the_second_attempt(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        *survivors, lost = nodes
        exchange = lost.averager._exchanges.run

        async def exchange_and_fall_silent(*args: Any, **kwargs: Any) -> Exchanged:
            await exchange(*args, **kwargs)
            lost.go_silent()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        lost.averager._exchanges.run = exchange_and_fall_silent  # type: ignore[method-assign]
        hanging = asyncio.create_task(lost.averager.run_round(round_number(nodes)))
        await average(survivors)
        hanging.cancel()
        # All three vectors were exchanged in full, but without the third one's word that mean was not used.
        for node in survivors:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned[:2]), atol=1e-6)
            assert dict(node.averager.results) == {"partner_silent": 1, "committed": 1}
        assert np.array_equal(lost.host.snapshot(uid), learned[2])


async def test_members_that_see_different_groups_average_without_whom_one_has_not_heard_of(tmp_path: Path) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=3.0)
    async with memory_nodes(memory_network(), list("abc"), tmp_path, averager=config) as nodes:
        for node in nodes:
            uid = (await node.spawn("0", "1")).uid
        await announce_all(nodes[:2])
        await nodes[2].announce()
        for node in nodes[1:]:  # the first one does not hear of the third
            await node.directory.refresh()
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        await average(nodes)
        for node in nodes[:2]:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned[:2]), atol=1e-6)
            assert dict(node.averager.results) == {"differing_views": 1, "committed": 1}
        assert np.array_equal(nodes[2].host.snapshot(uid), learned[2])
        assert "committed" not in nodes[2].averager.results


async def test_members_may_begin_one_after_the_other(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", PATIENT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        number = round_number(nodes)
        async with asyncio.timeout(20), asyncio.TaskGroup() as rounds:
            for node in nodes:
                rounds.create_task(node.averager.run_round(number))
                for _ in range(20):  # its proposals arrive before the next one has begun
                    await asyncio.sleep(0)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=1e-6)


async def test_a_lossy_network_changes_all_replicas_or_none(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        nodes[0].network.loss_ratio = 0.2
        for number in range(3):
            before = [await node.learn(uid, seed=10 * number + seed) for seed, node in enumerate(nodes)]
            committed = [node.averager.results["committed"] for node in nodes]
            await average(nodes, number=round_number(nodes) + number)
            for node, vector, had in zip(nodes, before, committed, strict=True):
                if node.averager.results["committed"] == had:
                    assert np.array_equal(node.host.snapshot(uid), vector)
                else:
                    members = node.averager.last_committed[uid][1]
                    mean = mean_of([v for v, other in zip(before, nodes, strict=True) if other.peer_id in members])
                    assert np.allclose(node.host.snapshot(uid), mean, atol=1e-6)


async def refuse_oddly(sender: PeerId, request: Frame) -> Frame:
    raise NoRoute()


async def answer_with_outcome_of_another(sender: PeerId, request: Frame) -> Frame:
    return Frame(RoundOutcome(round=RoundId(ExpertUid(digest_of(b"x")), 1, 0), outcome="unknown"))


@pytest.mark.parametrize("answer", [refuse_oddly, answer_with_outcome_of_another])
async def test_a_member_that_answers_nonsense_ends_no_node(tmp_path: Path, answer: FrameHandler) -> None:
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        nodes[2].transport.serve(answer)
        await average(nodes[:2])
        for node, vector in zip(nodes[:2], learned, strict=False):
            assert np.array_equal(node.host.snapshot(uid), vector) or node.averager.results["committed"] == 1


async def test_an_ended_round_is_still_answered_for_and_an_unheard_one_is_unknown(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", PATIENT) as (uid, nodes):
        await nodes[0].learn(uid, seed=1)
        await average(nodes)
        number = round_number(nodes)
        a, b = nodes
        ended, unheard = RoundId(uid, number, 0), RoundId(uid, number + 1, 0)
        for round_id, outcome in ((ended, "committed"), (unheard, "unknown")):
            reply = await say(a, b.peer_id, RoundOutcomeQuery(round=round_id))
            assert reply == RoundOutcome(round=round_id, outcome=outcome)  # type: ignore[arg-type]
        assert await say(a, b.peer_id, RoundAttestation(round=ended, full=True)) == Ack()
        unknown = RoundOutcome(round=unheard, outcome="unknown")
        assert await say(a, b.peer_id, RoundAttestation(round=unheard, full=True)) == unknown


async def test_a_stranger_cannot_end_a_round(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", PATIENT) as (uid, nodes):
        await nodes[0].learn(uid, seed=1)
        number = round_number(nodes)
        stranger = key_of("stranger").peer_id
        members = [node.peer_id for node in nodes]
        round_id = RoundId(uid, number, 0)
        for node in nodes:
            await say(node, stranger, proposal_of(node, round_id, [*members, stranger], ready=False))
        await average(nodes)
        assert [node.averager.results["committed"] for node in nodes] == [1, 1]


async def test_what_strangers_say_of_rounds_is_remembered_only_up_to_a_bound(tmp_path: Path) -> None:
    async with group(tmp_path, "a", PATIENT) as (uid, (a,)):
        stranger = key_of("stranger").peer_id
        for number in range(MAX_REMEMBERED_ROUNDS + 100):
            for _ in range(3):
                proposal = proposal_of(a, RoundId(uid, number, 0), [a.peer_id, stranger])
                assert await say(a, stranger, proposal) == Ack()
        assert sum(map(len, a.averager._early.values())) <= MAX_REMEMBERED_ROUNDS


async def test_the_service_begins_each_round_once_and_not_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AveragerConfig(period_s=0.05, timeout_s=0.05)
    async with group(tmp_path, "a", config) as (_, (a,)):
        begun: list[tuple[int, float]] = []
        enough = asyncio.Event()

        async def note(number: int) -> None:
            begun.append((number, a.network.now_s))
            if len(begun) == 4:
                enough.set()

        async def tick() -> None:
            """The DHT's clock, slower than the one that timers go by."""
            while True:
                await asyncio.sleep(0.005)
                a.network.now_s += 0.003

        monkeypatch.setattr(a.averager, "run_round", note)
        first = int(a.network.now_s // config.period_s) + 1
        tasks = [asyncio.create_task(tick()), asyncio.create_task(a.averager.run())]
        async with asyncio.timeout(5):
            await enough.wait()
        for task in tasks:
            task.cancel()
        assert [number for number, _ in begun] == [first, first + 1, first + 2, first + 3]
        assert all(now_s >= number * config.period_s for number, now_s in begun)


async def next_rounds(nodes: Sequence[MemoryNode], rounds: int) -> None:
    """One after the other, as time goes by."""
    for _ in range(rounds):
        await average(nodes)
        nodes[0].network.now_s += PERIOD_S
        await announce_all(nodes)


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


@pytest.mark.parametrize("method", ["hypercube", "random"])
async def test_pairs_come_to_the_mean_of_all_too(tmp_path: Path, method: Any) -> None:
    config = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0, method=method, min_drift=1e-3)
    async with group(tmp_path, "abcd", config) as (uid, nodes):
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
