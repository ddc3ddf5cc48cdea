"""The load generator, against answers whose times are known, on a clock that jumps."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from bench_examples import answer, in_virtual_time, run_load

from meshnode.bench.load import Load, poisson_arrivals
from meshnode.bench.runner import GRACE_S, PAUSE_S, Ask, LoadRunner, sleep_exactly
from meshnode.inference import Prediction
from protocol.errors import Busy, NoRoute

OPEN = Load(rate_per_s=50, duration_s=10, warm_up_s=0)


def answered_after(span_s: float) -> Ask:
    async def ask(_number: int) -> Prediction:
        await asyncio.sleep(span_s)
        return answer(("ada", 1, 1e3 * span_s, None))

    return ask


def run(ask: Ask, load: Load, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> LoadRunner:
    return in_virtual_time(run_load(ask, load, sleep))


@pytest.mark.parametrize("service_s", [0.0, 0.001, 4.0])
def test_requests_go_out_when_they_are_due_however_slow_the_answers(service_s: float) -> None:
    runner = run(answered_after(service_s), OPEN)
    expected = poisson_arrivals(50, 10, seed=0)
    assert [request.due_s for request in runner.requests] == pytest.approx(expected)
    assert [request.sent_s for request in runner.requests] == pytest.approx(expected)
    assert [request.latency_ms for request in runner.requests] == pytest.approx([1e3 * service_s] * len(expected))


def test_a_stall_shows_in_the_latency_of_every_request_that_was_due_meanwhile() -> None:
    stall_from_s, stall_to_s = 3.0, 5.0

    async def ask(_number: int) -> Prediction:
        now_s = asyncio.get_running_loop().time()
        if stall_from_s <= now_s < stall_to_s:
            await asyncio.sleep(stall_to_s - now_s)
        await asyncio.sleep(0.002)
        return answer()

    requests = run(ask, OPEN).requests
    meanwhile = [request for request in requests if stall_from_s <= request.due_s < stall_to_s]
    assert len(meanwhile) == pytest.approx(100, abs=30)
    for request in meanwhile:
        assert request.latency_ms == pytest.approx(1e3 * (stall_to_s - request.due_s) + 2)
    others = [request.latency_ms for request in requests if request not in meanwhile]
    assert others == pytest.approx([2.0] * len(others))
    # What a closed loop makes of the same stall: one slow request a worker.
    closed = run(ask, Load(rate_per_s=None, concurrency=1, duration_s=10, warm_up_s=0)).requests
    assert sum(request.latency_ms is not None and request.latency_ms > 10 for request in closed) == 1


def test_what_this_program_is_late_counts_as_latency() -> None:
    async def oversleep(span_s: float) -> None:
        await asyncio.sleep(span_s + 0.05)

    runner = run(answered_after(0.001), Load(rate_per_s=2, duration_s=20, warm_up_s=0), oversleep)
    for request in runner.requests:
        assert request.sent_s is not None
        assert request.sent_s - request.due_s > 0.0499
        assert request.latency_ms == pytest.approx(1e3 * (request.sent_s - request.due_s) + 1)


def test_no_more_are_outstanding_than_allowed_and_the_rest_is_kept_as_not_sent() -> None:
    outstanding = most = 0

    async def ask(_number: int) -> Prediction:
        nonlocal outstanding, most
        outstanding += 1
        most = max(most, outstanding)
        await asyncio.sleep(1.0)
        outstanding -= 1
        return answer()

    runner = run(ask, Load(rate_per_s=50, concurrency=5, duration_s=10, warm_up_s=0))
    assert most == 5
    assert len(runner.requests) == len(poisson_arrivals(50, 10, seed=0))
    sent = [request for request in runner.requests if request.sent_s is not None]
    # Five at a time, a second each: at most 5 * 10, and hardly fewer, for one is due every 20 ms.
    assert 44 <= len(sent) <= 50
    assert all(request.latency_ms is not None for request in sent)
    not_sent = [request for request in runner.requests if request.sent_s is None]
    assert all((request.ended_s, request.error, request.latency_ms) == (None, None, None) for request in not_sent)
    assert runner.outstanding == 0


def test_failures_are_kept_by_code_and_have_no_latency() -> None:
    async def ask(number: int) -> Prediction:
        await asyncio.sleep(0.01)
        match number % 4:
            case 0:
                raise Busy(1.0)
            case 1:
                raise NoRoute
            case 2:
                await asyncio.sleep(60)  # the deadline is long over, and nothing is said
        return answer()

    load = Load(rate_per_s=20, duration_s=5, warm_up_s=0, timeout_s=0.5)
    requests = run(ask, load).requests
    number = len(requests)
    expected = Counter([("busy", "no_route", "timeout", None)[index % 4] for index in range(number)])
    assert Counter(request.error for request in requests) == expected
    assert all((request.latency_ms is None) == (request.error is not None) for request in requests)
    for request in requests:
        if request.error == "timeout":
            assert request.ended_s == pytest.approx(request.due_s + load.timeout_s + GRACE_S)


def test_a_bug_is_no_failure_of_the_mesh() -> None:
    async def ask(_number: int) -> Prediction:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        run(ask, OPEN)
    assert raised.group_contains(ZeroDivisionError)


def test_a_run_that_is_cut_off_keeps_what_it_has() -> None:
    async def ask(number: int) -> Prediction:
        await asyncio.sleep(0.01 if number % 2 else 100.0)
        return answer()

    async def cut_off() -> LoadRunner:
        runner = LoadRunner(ask, OPEN, clock=asyncio.get_running_loop().time, sleep=asyncio.sleep)
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(2.5)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        return runner

    runner = in_virtual_time(cut_off())
    due_s = poisson_arrivals(50, 2.5, seed=0)
    assert len(runner.requests) == len(due_s)
    assert runner.ended_s == pytest.approx(2.5)
    for number, request in enumerate(runner.requests):
        is_done = number % 2 == 1 and request.due_s + 0.01 < 2.5
        assert (request.ended_s is not None) == is_done
        assert request.sent_s is not None
        assert request.error is None
    assert runner.outstanding == 0


def test_a_run_lasts_as_long_as_it_was_to_although_nothing_is_due_any_more() -> None:
    runner = run(answered_after(0.001), Load(rate_per_s=0.01, duration_s=10, warm_up_s=3))
    assert runner.ended_s == pytest.approx(13)


def test_workers_of_a_closed_loop_each_ask_again_once_they_are_answered() -> None:
    load = Load(rate_per_s=None, concurrency=3, duration_s=2, warm_up_s=1)
    requests = run(answered_after(0.25), load).requests
    assert len(requests) == 3 * 12  # at 0, 0.25, ... 2.75
    for number, request in enumerate(requests):
        assert request.due_s == request.sent_s == pytest.approx(0.25 * (number // 3))
        assert request.latency_ms == pytest.approx(250)


def test_a_worker_that_is_refused_rests_before_it_asks_again() -> None:
    async def ask(_number: int) -> Prediction:
        raise NoRoute

    requests = run(ask, Load(rate_per_s=None, concurrency=2, duration_s=2, warm_up_s=0)).requests
    assert len(requests) == pytest.approx(2 * 2 / PAUSE_S, abs=2)


def test_an_answer_is_kept_as_who_gave_it_and_whether_it_was_whole() -> None:
    async def ask(number: int) -> Prediction:
        return answer(("ada", 3, 4.0, "silent"), ("ben", 3, 2.5, None), missing=0.25 * (number % 2))

    first, second, *_ = run(ask, OPEN).requests
    assert (first.is_partial, second.is_partial) == (False, True)
    assert [(call.peer_name, call.rows, call.elapsed_ms, call.answered) for call in first.calls] == [
        ("ada", 3, 4.0, False),
        ("ben", 3, 2.5, True),
    ]
    assert first.asking_ms == 6.5, "the replicas of one expert are asked one after another"


async def test_the_exact_sleep_is_never_too_short_and_hardly_too_long() -> None:
    late_s = []
    for span_s in (0.0, 0.0011, 0.0064, 0.0123) * 5:
        began_s = time.monotonic()
        await sleep_exactly(span_s)
        late_s.append(time.monotonic() - began_s - span_s)
    assert min(late_s) >= 0
    assert sorted(late_s)[len(late_s) // 2] < 0.005  # a busy machine delays some, not most
