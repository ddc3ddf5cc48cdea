"""Rounds without a leader: the mean of all, added to what was learned meanwhile, or nothing at all."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from averaging_groups import (
    PATIENT,
    PERIOD_S,
    SHORT,
    average,
    generations,
    group,
    mean_of,
    proposal_of,
    round_number,
    say,
)
from mesh_in_memory import announce_all, key_of, memory_network, memory_nodes

from meshnode.averaging import driver as driver_module
from meshnode.averaging.averager import MAX_REMEMBERED_ROUNDS
from meshnode.averaging.exchange import Exchanged
from meshnode.averaging.settings import AveragerConfig
from meshnode.state.rows import Reached
from meshnode.transport.interface import FrameHandler
from protocol.errors import NoRoute
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.messages import (
    Ack,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundProposal,
)


async def test_every_member_gets_the_mean_of_all(tmp_path: Path) -> None:
    async with group(tmp_path, "abcd", PATIENT) as (uid, nodes):
        learned = [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)]
        await average(nodes)
        for node in nodes:
            assert np.allclose(node.host.snapshot(uid), mean_of(learned), atol=1e-6)
            assert np.array_equal(node.host.snapshot(uid), nodes[0].host.snapshot(uid)), "to the bit"
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
    async with group(tmp_path, "abc", SHORT) as (uid, nodes):
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


async def test_a_member_that_was_stopped_in_mid_round_still_answers_the_others(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", PATIENT) as (uid, (a, b)):
        await a.learn(uid, seed=1)
        number = round_number((a, b))
        stopped = asyncio.create_task(a.averager.run_round(number))
        while not a.averager._drivers:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        stopped.cancel()
        await asyncio.gather(stopped, return_exceptions=True)
        # What b says would end the attempt that nobody carries through any more.
        proposal = proposal_of(b, RoundId(uid, number, 0), [a.peer_id, b.peer_id], ready=False)
        assert isinstance(await say(a, b.peer_id, proposal), RoundProposal)


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
