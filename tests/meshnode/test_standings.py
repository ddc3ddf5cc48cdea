"""Whom to ask first: the quick before the slow, the idle before the busy, those that failed last, and nobody never."""

import pytest
from mesh_in_memory import key_of

from meshnode.inference.standings import (
    ALIKE_RATIO,
    FADING_S,
    FIRST_BAN_S,
    FIRST_PATIENCE_S,
    LEAST_PATIENCE_S,
    LONGEST_BAN_S,
    PATIENCE_RATIO,
    Standings,
)
from protocol.identifiers import PeerId

A, B, C = (key_of(name).peer_id for name in "abc")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standings(clock: Clock) -> Standings:
    return Standings(clock)


def ask(standings: Standings, peer_id: PeerId, elapsed_s: float) -> None:
    standings.asking(peer_id)
    standings.answered(peer_id, elapsed_s)


def fail(standings: Standings, peer_id: PeerId) -> None:
    standings.asking(peer_id)
    standings.failed(peer_id)


def test_the_quicker_peer_is_asked_first_and_a_new_one_before_all(standings: Standings) -> None:
    ask(standings, A, 0.3)
    ask(standings, B, 0.1)
    assert standings.order([A, B]) == [B, A]
    assert standings.order([A, B, C]) == [C, B, A]


def test_peers_that_are_about_as_quick_are_asked_in_turn(standings: Standings) -> None:
    ask(standings, A, 0.10)
    ask(standings, B, 0.10 * ALIKE_RATIO - 0.001)
    first = []
    for _ in range(4):
        peer_id = standings.order([A, B])[0]
        first.append(peer_id)
        ask(standings, peer_id, 0.10 if peer_id == A else 0.10 * ALIKE_RATIO - 0.001)
    assert first == [A, B, A, B]


def test_questions_under_way_count_as_load(standings: Standings) -> None:
    ask(standings, A, 0.1)
    ask(standings, B, 0.25)
    assert standings.order([A, B]) == [A, B]
    for _ in range(4):
        standings.asking(A)
    assert standings.order([A, B]) == [B, A]
    for _ in range(4):
        standings.left(A)
    assert standings.order([A, B]) == [A, B]


def test_the_mean_follows_what_was_measured_last(standings: Standings) -> None:
    ask(standings, A, 0.1)
    ask(standings, B, 0.4)
    for _ in range(20):
        ask(standings, A, 1.0)
    assert standings.order([A, B]) == [B, A]


def test_a_slow_peer_is_tried_again_after_a_while(standings: Standings, clock: Clock) -> None:
    ask(standings, A, 1.0)
    for _ in range(4):
        clock.now_s += FADING_S
        ask(standings, B, 0.1)
    # Four times halved, A is as good as B again, and it has not been asked for longer.
    assert standings.order([A, B]) == [A, B]


def test_a_peer_that_is_new_or_back_is_tried_with_one_question_at_a_time(standings: Standings, clock: Clock) -> None:
    ask(standings, A, 0.1)
    assert standings.order([A, B])[0] == B
    standings.asking(B)
    assert standings.order([A, B])[0] == A
    standings.answered(B, 0.1)
    # So is one that failed, when its ban is over,
    fail(standings, B)
    clock.now_s += FIRST_BAN_S + 0.01
    assert standings.order([A, B])[0] == B
    standings.asking(B)
    assert standings.order([A, B])[0] == A
    standings.answered(B, 5.0)
    # and one that was slow long ago.
    clock.now_s += 20 * FADING_S
    ask(standings, A, 0.1)
    assert standings.order([A, B])[0] == B
    standings.asking(B)
    assert standings.order([A, B])[0] == A


def test_what_fails_at_the_same_time_is_one_failure(standings: Standings, clock: Clock) -> None:
    for _ in range(8):
        standings.asking(A)
    for _ in range(8):
        standings.failed(A)
    clock.now_s += FIRST_BAN_S + 0.01
    assert not standings.banned(A)
    fail(standings, A)
    clock.now_s += FIRST_BAN_S + 0.01
    assert standings.banned(A)  # for twice that now


def test_a_peer_may_fail_for_ever(standings: Standings, clock: Clock) -> None:
    for _ in range(2000):
        fail(standings, A)
        clock.now_s += LONGEST_BAN_S + 0.01
        assert not standings.banned(A)


def test_a_ban_doubles_with_every_failure_in_a_row_up_to_a_limit_and_ends_with_an_answer(
    standings: Standings, clock: Clock
) -> None:
    for failures in range(12):
        fail(standings, A)
        ban_s = min(FIRST_BAN_S * 2**failures, LONGEST_BAN_S)
        clock.now_s += ban_s - 0.01
        assert standings.banned(A)
        clock.now_s += 0.02
        assert not standings.banned(A)
    fail(standings, A)
    ask(standings, A, 0.1)
    assert not standings.banned(A)
    fail(standings, A)
    clock.now_s += FIRST_BAN_S + 0.01
    assert not standings.banned(A)


def test_banned_peers_are_last_in_the_order_in_which_their_bans_end_and_never_missing(
    standings: Standings, clock: Clock
) -> None:
    ask(standings, C, 5.0)
    fail(standings, B)
    clock.now_s += FIRST_BAN_S + 0.01
    fail(standings, B)
    fail(standings, A)
    assert standings.order([B, A, C]) == [C, A, B]
    assert standings.order([B]) == [B]


def test_busy_is_no_failure(standings: Standings, clock: Clock) -> None:
    standings.asking(A)
    standings.busy(A, 0.5)
    assert standings.banned(A)
    clock.now_s += 0.51
    assert not standings.banned(A)
    fail(standings, A)
    clock.now_s += FIRST_BAN_S + 0.01  # not twice that: it is the first failure
    assert not standings.banned(A)


def test_a_peer_cannot_have_itself_left_alone_for_ever(standings: Standings, clock: Clock) -> None:
    standings.asking(A)
    standings.busy(A, 1e9)
    clock.now_s += LONGEST_BAN_S + 0.01
    assert not standings.banned(A)


def test_patience_is_a_multiple_of_what_is_usual(standings: Standings) -> None:
    assert standings.patience_s(A) == FIRST_PATIENCE_S
    ask(standings, A, 0.001)
    assert standings.patience_s(A) == LEAST_PATIENCE_S
    ask(standings, B, 2.0)
    assert standings.patience_s(B) == pytest.approx(2.0 * PATIENCE_RATIO)
