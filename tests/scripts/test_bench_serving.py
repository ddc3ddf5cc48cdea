"""How the benchmark of serving sends requests and counts what becomes of them."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.errors import Busy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_node import BenchFailed
from bench_serving_figures import (
    Interruption,
    Paced,
    all_latencies_ms,
    goodput_of,
    interruption_of,
    latencies_ms,
    p50,
    p99,
    paced_from,
    paired_ratio,
)
from bench_serving_load import closed, paced


def _requests(*spans_s: tuple[float, float], error: str | None = None) -> list[Paced]:
    """Requests by when they were due and how long they took."""
    return [Paced(due_s, due_s + span_s, error) for due_s, span_s in spans_s]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 201)]
    assert (p50(values), p99(values)) == (100.0, 198.0)
    assert (p50([3.0]), p99([3.0])) == (3.0, 3.0)


def test_what_slows_a_whole_round_is_not_in_a_ratio_of_rivals() -> None:
    assert paired_ratio([1.0, 10.0, 1.2], [2.0, 20.0, 2.0]) == 0.5


def test_latencies_are_of_answers_and_count_from_when_a_request_was_due() -> None:
    requests = _requests((0.0, 0.5), (1.0, 0.25)) + _requests((2.0, 9.0), error="busy")
    assert latencies_ms(requests) == [500.0, 250.0]
    assert latencies_ms(requests, from_s=0.5) == [250.0]


def test_a_percentile_is_not_told_of_those_alone_that_were_answered() -> None:
    answered = _requests((0.0, 0.5), (1.0, 0.25))
    assert all_latencies_ms(answered) == [500.0, 250.0]
    with pytest.raises(BenchFailed, match="busy"):
        all_latencies_ms([*answered, *_requests((2.0, 9.0), error="busy")])


def test_goodput_counts_what_was_due_in_the_window_and_answered_in_time() -> None:
    before_and_after = _requests((0.9, 0.2), (3.0, 0.1))
    in_time, late = _requests((1.0, 0.5), (2.9, 0.4)), _requests((1.5, 0.51))
    refused = _requests((2.0, 0.01), error="busy") + _requests((2.1, 0.01), (2.2, 0.6), error="call_timeout")
    goodput = goodput_of([*before_and_after, *in_time, *late, *refused], from_s=1.0, to_s=3.0, deadline_s=0.5)
    assert goodput.offered_per_s == 6 / 2
    assert goodput.good_per_s == 2 / 2
    assert goodput.late == 1
    assert goodput.failures == {"busy": 1, "call_timeout": 2}


def _interruption(requests: Sequence[Paced], *hit: int) -> Interruption:
    return interruption_of(requests, killed_s=2.0, hit=hit, within_s=5.0)


STEADY = [(number / 10, 0.01) for number in range(20)]


def test_failover_is_the_longest_of_a_request_that_was_hit_one_after_the_kill_and_a_pause() -> None:
    hit_before_it = _interruption(_requests(*STEADY[:-1], (1.9, 0.4), (2.0, 0.35), (2.1, 0.01)), 19)
    assert hit_before_it.hit == 1
    assert hit_before_it.longest_hit_s == hit_before_it.failover_s == pytest.approx(0.4)
    assert hit_before_it.longest_after_s == pytest.approx(0.35)
    silence = _interruption(_requests(*STEADY, (2.7, 0.05), (2.8, 0.05)))
    assert silence.longest_pause_s == silence.failover_s == pytest.approx(2.75 - 1.91)


def test_what_was_slow_before_a_kill_is_not_of_its_cost() -> None:
    interruption = _interruption(_requests((0.0, 0.9), *STEADY, (2.05, 0.01)))
    assert interruption.longest_after_s == pytest.approx(0.01)
    assert interruption.failover_s == interruption.longest_pause_s == pytest.approx(0.15)


def test_a_request_without_an_answer_counts_as_unanswered_and_bridges_no_pause() -> None:
    requests = [*_requests((1.0, 0.1)), *_requests((2.1, 0.2), error="rows_unanswered"), *_requests((3.0, 0.1))]
    interruption = _interruption(requests)
    assert (interruption.unanswered, interruption.requests) == (1, 3)
    assert interruption.longest_pause_s == pytest.approx(2.0)


async def test_an_open_loop_sends_what_is_due_whether_or_not_earlier_requests_are_answered() -> None:
    asked, all_asked = 0, asyncio.Event()

    async def answer_nobody_before_all_have_asked() -> None:
        nonlocal asked
        asked += 1
        if asked == 20:
            all_asked.set()
        await all_asked.wait()

    requests = paced_from(await paced(answer_nobody_before_all_have_asked, rate_per_s=2000.0, requests=20, seed=1))
    assert len(requests) == 20
    assert min(one.ended_s for one in requests) >= requests[-1].due_s
    assert [one.due_s for one in requests] == sorted(one.due_s for one in requests)


async def test_equal_seeds_offer_the_same_arrivals_at_about_the_rate_that_was_asked_for() -> None:
    async def answer() -> None: ...

    first, again, other = [
        await paced(answer, rate_per_s=20_000.0, requests=2000, seed=seed, begin_at_s=0.0) for seed in (1, 1, 2)
    ]
    assert first["due_s"] == again["due_s"] != other["due_s"]
    assert first["due_s"][-1] == pytest.approx(0.1, rel=0.15)


async def test_an_open_loop_keeps_errors_by_their_codes_and_what_calls_have_to_say() -> None:
    outcomes = iter([Busy(retry_after_s=0.1), {"errors": ["a replica is gone"]}, None])

    async def ask() -> object:
        outcome = next(outcomes)
        if isinstance(outcome, Busy):
            raise outcome
        return outcome

    outcome = await paced(ask, rate_per_s=1000.0, requests=3, seed=0)
    assert outcome["error"] == ["busy", None, None]
    assert outcome["notes"] == {1: {"errors": ["a replica is gone"]}}


async def test_callers_of_a_closed_loop_share_the_calls_and_each_waits_for_its_answer() -> None:
    under_way = most = calls = 0

    async def ask() -> None:
        nonlocal under_way, most, calls
        under_way, calls = under_way + 1, calls + 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    outcome = await closed(ask, callers=4, calls=10)
    assert (calls, most, len(outcome["ms"])) == (10, 4, 10)
