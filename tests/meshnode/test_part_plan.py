"""Which parts are asked of whom: each once, in order, and of another peer only when one is late."""

import random

from hypothesis import given
from hypothesis import strategies as st
from mesh_in_memory import key_of

from meshnode.blobs.plan import AHEAD_BYTES, PartPlan, Span

A, B = (key_of(name).peer_id for name in "ab")


def data(length: int) -> memoryview:
    return memoryview(bytes(length))


def test_parts_are_asked_for_once_each_from_where_the_file_ends() -> None:
    plan = PartPlan(100, 130, late_s=1.0)
    spans = [plan.ask(peer, length=10, now_s=0.0) for peer in (A, B, A)]
    assert spans == [Span(100, 10), Span(110, 10), Span(120, 10)]
    assert plan.ask(B, length=10, now_s=0.9) is None


def test_a_late_part_is_asked_of_another_peer_and_the_first_to_bring_it_has_brought_it() -> None:
    plan = PartPlan(0, 10, late_s=1.0)
    span = plan.ask(A, length=10, now_s=0.0)
    assert span is not None
    assert plan.ask(A, length=10, now_s=5.0) is None  # who is late is not asked twice
    assert plan.ask(B, length=10, now_s=1.0) == span
    assert plan.arrived(span, data(10))
    assert not plan.arrived(span, data(10))
    assert [len(piece) for piece in plan.take()] == [10]
    assert plan.is_done


def test_what_a_peer_does_not_bring_goes_to_whoever_asks_next_before_anything_new() -> None:
    plan = PartPlan(0, 40, late_s=1.0)
    first, second = (plan.ask(peer, length=10, now_s=0.0) for peer in (A, B))
    assert first is not None
    assert second is not None
    plan.failed(first, A)
    assert plan.ask(B, length=10, now_s=0.0) == first
    plan.failed(second, B)
    assert plan.ask(A, length=10, now_s=0.0) == second
    assert plan.ask(A, length=10, now_s=0.0) == Span(20, 10)


def test_what_comes_back_is_cut_to_what_the_next_peer_gives_at_a_time() -> None:
    plan = PartPlan(0, 10, late_s=1.0)
    span = plan.ask(A, length=10, now_s=0.0)
    assert span is not None
    plan.failed(span, A)
    assert [plan.ask(B, length=6, now_s=0.0) for _ in range(3)] == [Span(0, 6), Span(6, 4), None]


def test_a_part_that_is_late_at_one_and_lost_at_another_is_still_awaited() -> None:
    plan = PartPlan(0, 10, late_s=1.0)
    span = plan.ask(A, length=10, now_s=0.0)
    assert span is not None
    assert plan.ask(B, length=10, now_s=1.0) == span
    plan.failed(span, B)
    assert plan.arrived(span, data(10))


def test_a_short_answer_leaves_its_rest_to_be_asked_for() -> None:
    plan = PartPlan(0, 10, late_s=1.0)
    span = plan.ask(A, length=10, now_s=0.0)
    assert span is not None
    assert plan.arrived(span, data(4))
    assert plan.ask(B, length=10, now_s=0.0) == Span(4, 6)


def test_nothing_is_asked_for_too_far_ahead_of_what_was_handed_on() -> None:
    plan = PartPlan(0, 2 * AHEAD_BYTES, late_s=1.0)
    spans = []
    while (span := plan.ask(A, length=1024 * 1024, now_s=0.0)) is not None:
        spans.append(span)
    assert spans[-1].end == AHEAD_BYTES
    plan.arrived(spans[1], data(spans[1].length))
    assert plan.take() == []
    assert plan.ask(A, length=1024 * 1024, now_s=0.0) is None
    plan.arrived(spans[0], data(spans[0].length))
    assert len(plan.take()) == 2
    assert plan.ask(A, length=1024 * 1024, now_s=0.0) == Span(AHEAD_BYTES, 1024 * 1024)


@given(seed=st.integers(0, 2**32), total=st.integers(0, 300), begins_at=st.integers(0, 300))
def test_whatever_peers_do_the_bytes_come_out_whole_and_in_order(seed: int, total: int, begins_at: int) -> None:
    begins_at = min(begins_at, total)
    rng, blob = random.Random(seed), bytes(n % 251 for n in range(total))
    plan, now_s = PartPlan(begins_at, total, late_s=1.0), 0.0
    asked: list[tuple[Span, str]] = []
    out = bytearray(blob[:begins_at])
    for _ in range(10_000):
        if plan.is_done:
            break
        now_s += rng.random()
        peer = rng.choice((A, B))
        if len(asked) < 5 and (span := plan.ask(peer, length=rng.randrange(1, 40), now_s=now_s)) is not None:
            asked.append((span, peer))
        elif asked:
            span, peer = asked.pop(rng.randrange(len(asked)))
            if rng.random() < 0.3:
                plan.failed(span, peer)
            else:
                plan.arrived(span, memoryview(blob)[span.offset : span.offset + rng.randrange(1, span.length + 1)])
        out += b"".join(plan.take())
    assert plan.is_done
    assert out == blob
