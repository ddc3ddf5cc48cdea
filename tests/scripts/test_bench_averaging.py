"""How the benchmark of averaging strikes members, judges what came of it, and counts."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from mesh_in_memory import key_of

from meshnode.transport.memory import MemoryNetwork
from protocol.errors import CallTimeout, PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import Ack, Hello

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_averaging import BENCH, PARTS, TARGETS
from bench_averaging_faulty import FaultyTransport
from bench_averaging_judge import Commit, Witness, faults_found
from bench_averaging_member import FORMS
from bench_averaging_ticker import ticking
from bench_averaging_trials import tallied
from bench_averaging_words import sixteen

NAMES = ("ann", "ben", "cho", "dan")


def _brought(name: str) -> np.ndarray:
    return np.random.default_rng(NAMES.index(name)).standard_normal(8, np.float32)


def _mean(*names: str) -> np.ndarray:
    return np.mean([_brought(name) for name in names], axis=0, dtype=np.float64).astype(np.float32)


def _committed(name: str, *members: str, mean: np.ndarray | None = None, attempt: int = 0) -> Witness:
    """Who brought the same to each attempt, and committed this one of it."""
    mean = _mean(*members) if mean is None else mean
    commit = Commit(attempt=attempt, members=frozenset(members), mean=mean)
    return Witness(brought=(_brought(name),) * (attempt + 1), learned=None, commit=commit, held=mean)


def _untouched(name: str, *, attempts: int = 1) -> Witness:
    return Witness(brought=(_brought(name),) * attempts, learned=None, commit=None, held=_brought(name))


def _all_committed() -> dict[str, Witness]:
    return {name: _committed(name, *NAMES) for name in NAMES}


def test_a_mean_of_all_and_one_of_those_that_were_left_are_both_right() -> None:
    assert faults_found(_all_committed()) == []
    survivors = {name: _committed(name, *NAMES[:3], attempt=1) for name in NAMES[:3]}
    assert faults_found({**survivors, "dan": _untouched("dan")}) == []
    assert faults_found({name: _untouched(name) for name in NAMES}) == []


def test_a_wrong_mean_is_found() -> None:
    wrong = _mean(*NAMES) + np.float32(1e-5)
    found = faults_found({name: _committed(name, *NAMES, mean=wrong) for name in NAMES})
    assert found == [f"{name} committed something else than its group's mean" for name in NAMES]


def test_means_that_differ_by_a_single_bit_are_found() -> None:
    mean = _mean(*NAMES)
    other = mean.copy()
    other[3] = np.nextafter(other[3], np.float32(9))
    witnesses = _all_committed() | {"ben": _committed("ben", *NAMES, mean=other)}
    assert faults_found(witnesses) == ["ben committed another mean than others did in attempt 0"]


def test_a_replica_that_changed_without_a_commit_is_found() -> None:
    changed = _brought("cho")
    changed[0] = np.nextafter(changed[0], np.float32(9))
    witnesses = {name: _untouched(name) for name in NAMES} | {"cho": replace(_untouched("cho"), held=changed)}
    assert faults_found(witnesses) == ["cho committed nothing and holds something else than it had"]


def test_what_was_learned_during_a_round_must_be_on_top_of_its_mean() -> None:
    steps = np.full(8, 0.25, np.float32)
    kept = replace(_committed("ann", *NAMES), learned=steps, held=_mean(*NAMES) + steps)
    assert faults_found(_all_committed() | {"ann": kept}) == []
    lost = replace(kept, held=_mean(*NAMES))
    assert faults_found(_all_committed() | {"ann": lost}) == [
        "ann does not hold the mean it committed and what it learned since"
    ]
    idle = replace(_untouched("ann"), learned=steps)
    assert len(faults_found({"ann": idle})) == 1
    assert faults_found({"ann": replace(idle, held=_brought("ann") + steps)}) == []


def test_a_mean_without_its_holder_or_with_a_stranger_is_found() -> None:
    assert faults_found(
        {"ann": _committed("ann", "ben", "cho"), "ben": _untouched("ben"), "cho": _untouched("cho")}
    ) == ["ann committed a mean that it is no part of"]
    assert faults_found({"ann": _committed("ann", "ann", "ben")}) == [
        "ann committed a mean with ben, who brought nothing"
    ]


def _trial(fault: str, *, ratio: float = 0.5, **said: Any) -> dict[str, Any]:
    trial = {"fault": fault, "event": 3, "found": [], "survivors_committed": 3, "recovery_s": 2 * ratio}
    return {**trial, "attempts": 2, "is_healed": True, **said}


def test_trials_are_counted_in_all_and_by_fault() -> None:
    lost = "ann committed nothing and holds something else than it had"
    trials = [
        *[_trial("killed") for _ in range(8)],
        _trial("hung", found=[lost, lost], survivors_committed=0, ratio=2.5),
        _trial("hung", event=None, is_healed=False),
    ]
    tally = tallied(trials, 2.0)
    assert (tally["trials"], tally["wrong"], tally["not_healed"], tally["past_the_round"]) == (10, 1, 1, 1)
    assert tally["found"] == [lost]
    assert tally["recovery_over_deadline"] == pytest.approx(2.5)
    assert tally["survivors_ratio"] == pytest.approx(0.9)
    assert tally["by_fault"]["killed"]["wrong"] == 0
    assert tally["by_fault"]["hung"]["survivors_ratio"] == pytest.approx(0.5)
    assert [event for event, _ in tally["by_fault"]["hung"]["recovery_by_event"]] == [3]


def _rounds(ours_s: Sequence[float], averager_s: Sequence[float]) -> dict[str, Any]:
    return {
        "ours": {"ended_s": ours_s, "commits_s": ours_s, "sent_bytes": [2.42e6, 2.41e6]},
        "runner": {"ended_s": averager_s, "commits_s": averager_s},
        "averager": {"ended_s": averager_s},
        "optimum_bytes": 2.4e6,
        "members": 4,
        "experts": 1,
        "parameters": 10**5,
        "rounds": 2,
    }


def test_ratios_are_of_one_round_each_and_bytes_are_those_of_the_worst_round() -> None:
    figures = sixteen(_rounds([0.1, 0.4], [1.0, 4.0])).figures
    assert figures["round16_over_decentralized_averager"] == pytest.approx(0.1)
    assert figures["bytes_over_optimum"] == pytest.approx(2.42 / 2.4)


def test_experts_have_as_many_parameters_as_is_said() -> None:
    assert [form.num_parameters for form in FORMS.values()] == [86, 10**5, 10**6, 10**7]


def test_every_figure_belongs_to_one_part_and_is_held_against_its_target() -> None:
    assert sorted(name for part in PARTS.values() for name in part.figures) == sorted(TARGETS)
    judged = BENCH.judged(
        {"bytes_over_optimum": 1.05, "processes_16_experts": 20, "faults_survivors_committed_ratio": 1}
    )
    assert {name: target["met"] for name, target in judged.items()} == {
        "bytes_over_optimum": True,
        "processes_16_experts": False,
    }


def test_the_table_says_what_is_missed_and_what_a_figure_was_made_from() -> None:
    figures = {"loop_stall_p99_ms": 31.0, "faults_survivors_committed_ratio": 0.75}
    document = {
        "figures": figures,
        "targets": BENCH.judged(figures),
        "measured": {"how": {"loop_stall_p99_ms": "of 7 rounds", "faults_survivors_committed_ratio": "of 1,500"}},
    }
    _, stall, ratio = BENCH.table(document).splitlines()
    assert stall.split() == ["loop_stall_p99_ms", "31", "<=", "20", "NO", "of", "7", "rounds"]
    assert ratio.split() == ["faults_survivors_committed_ratio", "0.75", "of", "1,500"]


async def test_a_loop_that_is_held_up_is_late_with_every_tick_of_the_while() -> None:
    async with ticking() as late_ms:
        await asyncio.sleep(0.02)
        time.sleep(0.1)
    assert max(late_ms) >= 95
    assert sum(value > 40 for value in late_ms) >= 50


class _Two:
    """Two members of a network in memory; the first one's transport can fail."""

    def __init__(self) -> None:
        network = MemoryNetwork(Random(1))
        self.faulty = FaultyTransport(network.join(key_of("a").peer_id), Random(1), jitter_s=0.0)
        self.other = network.join(key_of("b").peer_id)
        self.faulty.serve(_acknowledge)
        self.other.serve(_acknowledge)

    async def ask(self, timeout_s: float = 5.0) -> None:
        await self.faulty.call(self.other.peer_id, Frame(Hello(mesh_id=None)), timeout_s=timeout_s)

    async def be_asked(self, timeout_s: float = 5.0) -> None:
        await self.other.call(self.faulty.peer_id, Frame(Hello(mesh_id=None)), timeout_s=timeout_s)


async def _acknowledge(sender: PeerId, request: Frame) -> Frame:
    return Frame(Ack())


async def test_a_fault_strikes_once_before_the_message_that_it_was_armed_for() -> None:
    two = _Two()
    struck: list[int] = []

    async def strike() -> None:
        struck.append(two.faulty.events)

    two.faulty.arm(strike, at=3)
    await two.ask()
    assert struck == []
    await two.be_asked()
    await two.ask()
    assert struck == [3]
    assert two.faulty.events == 6


async def test_a_hung_member_answers_nobody_until_it_recovers() -> None:
    two = _Two()
    two.faulty.hang()
    with pytest.raises(CallTimeout):
        await two.be_asked(timeout_s=0.05)
    asking = asyncio.create_task(two.ask())
    await asyncio.sleep(0.05)
    assert not asking.done()
    two.faulty.recover()
    await asking
    await two.be_asked()


async def test_a_slowed_member_answers_later_and_a_dead_one_fails_at_once() -> None:
    two = _Two()
    two.faulty.slow(0.1)
    with pytest.raises(CallTimeout):
        await two.be_asked(timeout_s=0.05)
    await two.be_asked()
    two.faulty.die()
    with pytest.raises(PeerUnreachable):
        await two.ask()
