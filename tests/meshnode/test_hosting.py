"""Replicas: what training and averaging change at the same time is all kept, and every change is a generation."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_in_memory import MESH, memory_network, memory_node, memory_nodes

from experts.architectures.base import probabilities
from experts.averaging import Averaged
from experts.checkpoint import load_weights, weights_to_bytes
from experts.errors import CorruptWeights
from meshnode.hosted import Descent
from meshnode.state.rows import NewWeights, Reached
from meshnode.state.state import State
from protocol.errors import UnknownExpert
from protocol.identifiers import ExpertUid, digest_of


def at(steps: int) -> Reached:
    return Reached(run="run", steps=steps)


def moved(delta: np.ndarray, *, mean: np.ndarray | None = None) -> Averaged:
    """What a round comes to that moves a replica by so much; the mean is of no matter unless it is given."""
    return Averaged(mean=delta if mean is None else mean, delta=delta)


def some_vector(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32)


async def test_two_hosts_that_adopt_an_expert_hold_replicas_without_having_met(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        ours, theirs = await a.spawn("0", "1"), await b.spawn("1", "0")
        other = await b.spawn("0", "2")
        assert (ours.uid, ours.weights) == (theirs.uid, theirs.weights)
        assert np.array_equal(a.host.snapshot(ours.uid), b.host.snapshot(ours.uid))
        assert other.uid != ours.uid
        assert not np.array_equal(b.host.snapshot(other.uid), b.host.snapshot(ours.uid))


async def test_adopting_a_peers_weights_continues_from_them(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        uid = (await a.spawn("0", "1")).uid
        learned = await a.learn(uid, seed=1)
        adopted = await b.spawn("0", "1", weights=a.state.blobs.get(a.host.get(uid).weights))
        assert np.array_equal(b.host.snapshot(uid), learned)
        assert adopted.weights == a.host.get(uid).weights
        with pytest.raises(CorruptWeights):
            await b.spawn("2", "3", weights=b"garbage")
        assert [expert.uid for expert in b.host.experts.values()] == [uid]


async def test_the_advert_names_weights_that_are_served_as_a_blob(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        expert = await a.spawn("0", "1")
        await a.learn(expert.uid, seed=1)
        advert = expert.advert()
        assert (advert.uid, advert.form, advert.classes) == (expert.uid, MESH.spec.expert, ("0", "1"))
        assert advert.generation == 2
        module = expert.architecture.build("another seed")
        load_weights(module, a.state.blobs.get(advert.weights))
        assert weights_to_bytes(module) == weights_to_bytes(expert.module)


async def test_answers_are_the_served_modules_and_name_their_generation(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        expert = await a.spawn("0", "1")
        features = some_vector(3 * MESH.spec.feature_dim, 5).reshape(3, -1)
        features.setflags(write=False)
        answer = await a.host.answer(expert.uid, features)
        expected = probabilities(expert.module, torch.from_numpy(features.copy()))
        assert np.array_equal(answer.probabilities, expected.numpy())
        assert (answer.classes, answer.generation, answer.weights) == (("0", "1"), 1, expert.weights)
        await a.learn(expert.uid, seed=1)
        later = await a.host.answer(expert.uid, features)
        assert later.generation == 2
        assert not np.allclose(later.probabilities, answer.probabilities)
        with pytest.raises(UnknownExpert):
            await a.host.answer(ExpertUid(digest_of(b"absent")), features)


async def test_an_answer_under_way_keeps_the_module_it_began_with(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        expert = await a.spawn("0", "1")
        held, before = expert.module, a.host.snapshot(expert.uid)
        await a.learn(expert.uid, seed=1)
        assert expert.module is not held
        assert torch.equal(torch.cat([p.flatten() for _, p in sorted(held.named_parameters())]), torch.tensor(before))


async def test_each_change_is_a_generation_with_its_cause_and_wakes_the_advertiser(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        await a.host.checkpoint(uid, a.host.snapshot(uid) + 1, deltas_applied=0, reached=at(50))
        a.host.changed.clear()
        await a.host.apply_round(uid, moved(np.ones_like(a.host.snapshot(uid))), number=1)
        assert a.host.changed.is_set()
        newest_first = a.state.ledger.generations(uid)
        assert [(g.number, g.cause, g.reached) for g in newest_first] == [
            (3, "averaged", at(50)),
            (2, "trained", at(50)),
            (1, "initial", None),
        ]
        assert newest_first[0].parent == newest_first[1].digest
        assert newest_first[0].digest == a.host.get(uid).weights


async def test_rounds_of_many_experts_that_end_at_once_are_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[ExpertUid]] = []
    real = State.commit_generations

    def commit_generations(state: State, new: Sequence[NewWeights], *, now_s: float | None = None) -> object:
        written.append([one.uid for one in new])
        return real(state, new, now_s=now_s)

    async with memory_node(memory_network(), "a", tmp_path) as a:
        uids = [(await a.spawn(str(number), "9")).uid for number in range(3)]
        before = [a.host.snapshot(uid) for uid in uids]
        monkeypatch.setattr(State, "commit_generations", commit_generations)
        broken = moved(np.full_like(before[1], np.nan))
        rounds = [moved(np.ones_like(before[0])), broken, moved(np.ones_like(before[2]))]
        ended = await asyncio.gather(
            *(a.host.apply_round(uid, averaged, number=1) for uid, averaged in zip(uids, rounds, strict=True)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in ended] == [bool, CorruptWeights, bool]
        assert written == [[uids[0], uids[2]]]
        for uid, vector, steps in zip(uids, before, (1, 0, 1), strict=True):
            assert np.array_equal(a.host.snapshot(uid), vector + steps)
            assert a.host.get(uid).generation == 1 + steps


async def test_a_checkpoint_takes_in_the_deltas_that_the_trainer_had_not(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        start = a.host.snapshot(uid)
        deltas = [some_vector(len(start), seed) for seed in range(3)]
        steps = some_vector(len(start), 9)
        assert await a.host.begin_training(uid) == a.state.blobs.get(a.host.get(uid).weights)
        for delta in deltas:
            assert await a.host.apply_round(uid, moved(delta), number=1)
        assert np.allclose(a.host.snapshot(uid), start + sum(deltas), atol=1e-5)
        # The trainer had added the first one by then, and taken steps of its own.
        await a.host.checkpoint(uid, start + steps + deltas[0], deltas_applied=1, reached=at(10))
        assert np.allclose(a.host.snapshot(uid), start + steps + sum(deltas), atol=1e-5)
        await a.host.checkpoint(uid, start + 2 * steps + sum(deltas), deltas_applied=3, reached=at(20))
        assert np.allclose(a.host.snapshot(uid), start + 2 * steps + sum(deltas), atol=1e-5)


async def test_deltas_and_checkpoints_at_the_same_moment_lose_nothing(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        start = a.host.snapshot(uid)
        deltas = [some_vector(len(start), seed) for seed in range(4)]
        steps = some_vector(len(start), 9)
        await a.host.begin_training(uid)
        await asyncio.gather(
            a.host.apply_round(uid, moved(deltas[0]), number=1),
            a.host.apply_round(uid, moved(deltas[1]), number=1),
            a.host.checkpoint(uid, start + steps, deltas_applied=0, reached=at(10)),
            a.host.apply_round(uid, moved(deltas[2]), number=1),
            a.host.apply_round(uid, moved(deltas[3]), number=1),
        )
        assert np.allclose(a.host.snapshot(uid), start + steps + sum(deltas), atol=1e-5)
        assert a.host.get(uid).generation == 6


async def test_a_run_that_ended_or_never_began_takes_no_delta(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        start = a.host.snapshot(uid)
        delta, steps = some_vector(len(start), 1), some_vector(len(start), 2)
        assert not await a.host.apply_round(uid, moved(delta), number=1)
        await a.host.begin_training(uid)
        assert await a.host.apply_round(uid, moved(delta), number=1)
        a.host.end_training(uid)
        assert not await a.host.apply_round(uid, moved(delta), number=1)
        # A new run starts from what is served, so the old run's deltas are not added to it again.
        await a.host.begin_training(uid)
        await a.host.checkpoint(uid, a.host.snapshot(uid) + steps, deltas_applied=0, reached=at(1))
        assert np.allclose(a.host.snapshot(uid), start + 3 * delta + steps, atol=1e-5)


async def test_a_run_that_begins_while_a_delta_is_committed_starts_with_it_and_is_not_told_again(
    tmp_path: Path,
) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        expert = await a.spawn("0", "1")
        delta = some_vector(len(a.host.snapshot(expert.uid)), 1)
        expected = a.host.snapshot(expert.uid) + delta
        trainer_is_told, weights = await asyncio.gather(
            a.host.apply_round(expert.uid, moved(delta), number=1), a.host.begin_training(expert.uid)
        )
        assert not trainer_is_told
        assert weights == a.state.blobs.get(expert.weights)
        await a.host.checkpoint(expert.uid, expected, deltas_applied=0, reached=at(1))
        assert np.allclose(a.host.snapshot(expert.uid), expected, atol=1e-6)


async def test_the_drift_is_what_was_learned_after_the_rounds_snapshot(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        expert = await a.spawn("0", "1")
        start = a.host.snapshot(expert.uid)
        assert expert.drift == 0
        taken = await a.learn(expert.uid, seed=1)
        assert np.isclose(expert.drift, np.linalg.norm(taken - start) / np.linalg.norm(start))
        mean = taken + 1
        learned = await a.learn(expert.uid, seed=2)
        await a.host.apply_round(expert.uid, moved(mean - taken, mean=mean), number=7)
        assert np.isclose(expert.drift, np.linalg.norm(learned - taken) / np.linalg.norm(mean), rtol=1e-4)
        held = a.host.snapshot(expert.uid)
        await a.host.apply_round(expert.uid, moved(mean - held, mean=mean), number=8)
        assert expert.drift < 1e-6
        assert expert.advert().round == 8


async def test_a_restart_serves_the_newest_generation_again(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        other = (await a.spawn("2")).uid
        learned = await a.learn(uid, seed=1)
        advert = a.host.get(uid).advert()
    async with memory_node(network, "a", tmp_path) as a:
        assert a.host.experts.keys() == {uid, other}
        assert np.array_equal(a.host.snapshot(uid), learned)
        assert a.host.get(uid).advert() == advert
        # It may have been killed before its last round; the other one is as all replicas of it begin.
        assert a.host.get(uid).drift > 0.1
        assert a.host.get(other).drift == 0
        # What it has of its own cannot be told once everything is gone that was not learned here.
        for generation in a.state.ledger.generations(uid):
            if generation.cause != "trained":
                a.state.blobs.delete(generation.digest)
    async with memory_node(network, "a", tmp_path) as a:
        assert a.host.get(uid).drift == math.inf


async def test_a_restart_knows_the_last_round_and_the_origin_of_what_it_holds(tmp_path: Path) -> None:
    network = memory_network()
    elsewhere = digest_of(b"weights of another mesh")
    async with memory_node(network, "a", tmp_path) as a:
        own, other = (await a.spawn("0", "1")).uid, MESH.uid_of(("2",), MESH.spec.expert)
        mean = a.host.snapshot(own) + 1
        await a.host.apply_round(own, moved(np.ones_like(mean), mean=mean), number=5)
        architecture = MESH.architecture(MESH.spec.expert, 1)
        weights = weights_to_bytes(architecture.build("another seed"))
        await a.host.adopt(other, ("2",), architecture, weights, Descent(round=3, origin=elsewhere))
        origins = {uid: a.host.get(uid).origin for uid in (own, other)}
        assert origins == {own: digest_of(weights_to_bytes(a.host.get(own).architecture.build(own))), other: elsewhere}
    async with memory_node(network, "a", tmp_path) as a:
        assert {uid: a.host.get(uid).origin for uid in (own, other)} == origins
        assert (a.host.get(own).round, a.host.get(other).round) == (5, 3)
        assert a.host.get(own).drift == 0
        assert np.array_equal(a.host.get(own).reference, mean)


async def test_a_restart_falls_back_to_the_newest_generation_that_is_whole(tmp_path: Path) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        kept = await a.learn(uid, seed=1)
        await a.learn(uid, seed=2)
        lost = a.host.get(uid).weights
    (tmp_path / "a" / "state" / "blobs" / lost).write_bytes(b"rotten")
    async with memory_node(network, "a", tmp_path) as a:
        assert np.array_equal(a.host.snapshot(uid), kept)
        await a.learn(uid, seed=3)
        assert a.host.get(uid).generation == 4
