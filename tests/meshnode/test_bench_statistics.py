"""The figures of a run, against plain loops."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.bench.load import Load
from meshnode.bench.runner import Asked, Request
from meshnode.bench.statistics import Spread, measure, nearest_rank

LOAD = Load(rate_per_s=20, duration_s=10, warm_up_s=2, batch=3)


def some_requests(seed: int, number: int = 400) -> list[Request]:
    """Requests of every kind, due over 12 s."""
    choose = random.Random(seed)
    requests = []
    for due_s in sorted(choose.uniform(0, 12) for _ in range(number)):
        request = Request(due_s=due_s)
        requests.append(request)
        if (kind := choose.random()) < 0.1:
            continue
        request.sent_s = due_s + choose.uniform(0, 0.01)
        if kind < 0.15:
            continue
        request.ended_s = request.sent_s + choose.expovariate(5)
        if kind < 0.3:
            request.error = choose.choice(["busy", "call_timeout", "call_timeout"])
            continue
        request.is_partial = kind < 0.4
        request.calls = tuple(
            Asked(expert, f"Qm-{name}", name, choose.randint(1, 3), choose.uniform(1, 9), choose.random() < 0.8)
            for expert in ("e", "f")
            for name in choose.sample(["ada", "ben", "cho"], 2)
        )
    return requests


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(1, 1000))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], thousandths: int) -> None:
    values.sort()
    for value in values:
        if 1000 * sum(other <= value for other in values) >= thousandths * len(values):
            break
    assert nearest_rank(values, thousandths) == value


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, (1, 1, 1, 1, 1)),
        (2, (1, 2, 2, 2, 2)),
        (1000, (500, 900, 990, 999, 1000)),
        (1001, (501, 901, 991, 1000, 1001)),
    ],
)
def test_percentiles_of_the_first_numbers(number: int, expected: tuple[int, ...]) -> None:
    values = [float(value) for value in range(1, number + 1)]
    random.Random(0).shuffle(values)
    assert tuple(Spread.of(values).figures.values()) == expected
    assert list(Spread.of(values).figures) == ["p50", "p90", "p99", "p99.9", "max"]


def test_nothing_has_no_percentiles() -> None:
    assert set(Spread.of([]).figures.values()) == {None}


@pytest.mark.parametrize("seed", range(5))
def test_every_request_after_the_warm_up_is_counted_once(seed: int) -> None:
    requests = some_requests(seed)
    measured = measure(requests, LOAD, ended_s=20)
    offered = answered = partial = not_sent = cut_off = warm_up = 0
    failures: Counter[str] = Counter()
    latencies, late, asking = [], [], []
    for request in requests:
        if request.due_s < 2:
            warm_up += 1
            continue
        offered += 1
        if request.sent_s is None:
            not_sent += 1
            continue
        late.append(1e3 * (request.sent_s - request.due_s))
        if request.ended_s is None:
            cut_off += 1
        elif request.error is not None:
            failures[request.error] += 1
        else:
            answered += 1
            partial += request.is_partial
            latencies.append(1e3 * (request.ended_s - request.due_s))
            waits = {
                expert: sum(call.elapsed_ms for call in request.calls if call.expert == expert) for expert in ("e", "f")
            }
            asking.append(max(waits.values()))
    assert (measured.offered, measured.answered, measured.partial) == (offered, answered, partial)
    assert (measured.not_sent, measured.cut_off, measured.warm_up) == (not_sent, cut_off, warm_up)
    assert measured.failures == failures
    assert list(measured.failures) == ["call_timeout", "busy"], "most frequent first"
    assert measured.answered + measured.failed + measured.not_sent + measured.cut_off == measured.offered
    assert measured.answered_ratio == answered / (offered - cut_off)
    assert list(measured.latency_ms.ascending) == pytest.approx(sorted(latencies))
    assert list(measured.late_ms.ascending) == pytest.approx(sorted(late))
    assert list(measured.asking_ms.ascending) == pytest.approx(sorted(asking))


def test_rates_are_over_the_window_and_count_the_answers_that_came_within_it() -> None:
    requests = some_requests(0)
    measured = measure(requests, LOAD, ended_s=20)
    came = sum(
        1 for request in requests if request.error is None and request.ended_s is not None and 2 <= request.ended_s < 12
    )
    assert any(request.due_s < 2 <= (request.ended_s or 0) for request in requests), "some were due in the warm-up"
    assert measured.window_s == 10
    assert measured.offered_per_s == measured.offered / 10
    assert measured.answered_per_s == came / 10
    assert measured.rows_per_s == pytest.approx(3 * came / 10)


def test_the_window_of_a_run_that_was_cut_off_ends_there() -> None:
    requests = [Request(due_s=due_s, sent_s=due_s, ended_s=due_s + 0.1) for due_s in (1.0, 2.5, 3.0, 4.5)]
    measured = measure(requests, LOAD, ended_s=4.5)
    assert measured.window_s == 2.5
    assert measured.offered_per_s == 3 / 2.5
    nothing = measure(requests[:1], LOAD, ended_s=1.5)
    assert (nothing.window_s, nothing.offered, nothing.answered_per_s, nothing.intervals) == (0, 0, 0, ())
    assert nothing.answered_ratio is None


@pytest.mark.parametrize("seed", range(3))
def test_peers_are_told_apart_by_their_id_with_what_each_answered(seed: int) -> None:
    requests = some_requests(seed)
    measured = measure(requests, LOAD, ended_s=20)
    rows, calls, failures = Counter[str](), Counter[str](), Counter[str]()
    for request in requests:
        if request.due_s >= 2 and request.latency_ms is not None:
            for call in request.calls:
                calls[call.peer_id] += 1
                rows[call.peer_id] += call.rows if call.answered else 0
                failures[call.peer_id] += not call.answered
    assert {peer.peer_id: peer.rows for peer in measured.peers} == rows
    assert {peer.peer_id: peer.calls for peer in measured.peers} == calls
    assert {peer.peer_id: peer.failures for peer in measured.peers} == failures
    assert [peer.rows for peer in measured.peers] == sorted(rows.values(), reverse=True)
    for peer in measured.peers:
        assert peer.call_ms.count == peer.calls - peer.failures


@pytest.mark.parametrize("seed", range(3))
def test_intervals_part_the_time_and_lose_nothing(seed: int) -> None:
    requests = some_requests(seed)
    intervals = measure(requests, LOAD, ended_s=20).intervals
    ends = [interval.from_s + interval.length_s for interval in intervals]
    assert [interval.from_s for interval in intervals] == pytest.approx([0.0, *ends[:-1]])
    assert len(intervals) <= 21
    assert intervals[-1].length_s >= intervals[0].length_s / 2
    last_s = max(request.ended_s for request in requests if request.ended_s is not None)
    assert ends[-1] == pytest.approx(max(10.0, last_s - 2))
    for interval in intervals[:-1]:
        from_s, to_s = 2 + interval.from_s, 2 + interval.from_s + interval.length_s
        due = [request for request in requests if from_s <= request.due_s < to_s]
        ended = [request for request in requests if request.ended_s is not None and from_s <= request.ended_s < to_s]
        assert interval.offered == len(due)
        assert interval.not_sent == sum(request.sent_s is None for request in due)
        assert interval.answered == sum(request.error is None for request in ended)
        assert interval.failed == sum(request.error is not None for request in ended)
    assert sum(interval.offered for interval in intervals) == sum(request.due_s >= 2 for request in requests)
