"""What a round may send goes to the stalest experts first, and what is too dear for one round is saved for."""

from hypothesis import given
from hypothesis import strategies as st

from meshnode.averaging.budget import Candidate, RoundBudget
from meshnode.pacing import AHEAD_S, Pacer
from protocol.identifiers import Digest, ExpertUid, digest_of

A, B, C = (ExpertUid(Digest(digest_of(name))) for name in (b"a", b"b", b"c"))


def test_without_a_limit_all_take_part() -> None:
    assert RoundBudget(Pacer(None), 1.0).choose([Candidate(A, 1, 10**12), Candidate(B, 2, 5)]) == {A, B}


def test_the_stalest_go_first_as_far_as_it_reaches() -> None:
    candidates = [Candidate(A, 1, 60), Candidate(B, 9, 60), Candidate(C, 5, 40)]
    assert RoundBudget(Pacer(100), 1.0).choose(candidates) == {B, C}


def test_one_that_is_too_dear_is_saved_for_and_nobody_less_stale_goes_before() -> None:
    budget = RoundBudget(Pacer(100), 1.0)
    chosen = [budget.choose([Candidate(A, 5 + age, 250), Candidate(B, 2 + age, 60)]) for age in range(3)]
    assert chosen == [frozenset(), frozenset(), {A}]
    assert budget.choose([Candidate(B, 5, 60)]) == {B}


def test_what_is_left_over_does_not_pile_up() -> None:
    budget = RoundBudget(Pacer(100), 1.0)
    for _ in range(50):
        budget.choose([])
    assert budget.choose([Candidate(A, 1, 60), Candidate(B, 1, 60)]) in ({A}, {B})


sizes = st.lists(st.integers(1, 500), min_size=1, max_size=8)


@given(sizes, st.integers(50, 500))
def test_over_many_rounds_no_more_is_sent_than_may_be_and_everybody_has_a_turn(sizes: list[int], rate: int) -> None:
    budget = RoundBudget(Pacer(rate), 1.0)
    uids = [ExpertUid(Digest(digest_of(bytes([number])))) for number in range(len(sizes))]
    last = dict.fromkeys(uids, 0)
    sent = 0
    rounds = 20 * len(sizes) * (1 + max(sizes) // rate)
    for number in range(1, rounds + 1):
        chosen = budget.choose(Candidate(uid, number - last[uid], size) for uid, size in zip(uids, sizes, strict=True))
        sent += sum(size for uid, size in zip(uids, sizes, strict=True) if uid in chosen)
        assert sent <= rate * number + max(sizes)
        last |= dict.fromkeys(chosen, number)
    assert min(last.values()) > 0


async def test_blobs_wait_for_what_rounds_send() -> None:
    slept: list[float] = []

    async def sleep(span_s: float) -> None:
        slept.append(span_s)

    pacer = Pacer(100.0, now_s=lambda: 0.0, sleep=sleep)
    assert RoundBudget(pacer, 10.0).choose([Candidate(A, 1, 300)]) == {A}
    await pacer.take(50)
    assert slept == [3.5 - AHEAD_S]
