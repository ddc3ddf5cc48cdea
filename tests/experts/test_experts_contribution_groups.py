"""Groups of contributions that meet: nothing is counted twice, and what is left out is named."""

import itertools

import pytest
from contribution_examples import (
    DATA,
    DIM,
    PEERS,
    SINGLES,
    TASKS,
    Item,
    bits,
    contribution,
    copy_of,
    folding,
    items,
    keys_of,
    merged,
    replica,
    state,
    sum_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from experts.router.contributions import Contributions
from experts.router.groups import GroupSum, Member


@pytest.mark.parametrize("flip", [False, True])
def test_a_group_that_overlaps_with_singles_counts_them_once_and_gives_them_back(flip: bool) -> None:
    grouped, single = folding(*SINGLES[:5]), replica(*SINGLES[3:7])
    both = merged(single, grouped) if flip else merged(grouped, single)
    assert bits(both) == bits(replica(*SINGLES[:7]))
    assert set(both.folded) == keys_of(*SINGLES[:3])


def test_a_group_of_which_all_is_held_singly_is_gone() -> None:
    both = merged(replica(*SINGLES), folding(*SINGLES[2:6]))
    assert state(both) == state(replica(*SINGLES))


def test_disjoint_groups_add_up_and_nested_ones_leave_the_larger() -> None:
    disjoint, nested = copy_of(folding(*SINGLES[:4])), copy_of(folding(*SINGLES[:3]))
    assert disjoint.merge(folding(*SINGLES[4:])) == ()
    assert bits(disjoint) == bits(replica(*SINGLES))
    assert nested.merge(folding(*SINGLES[:6])) == ()
    assert bits(nested) == bits(replica(*SINGLES[:6]))


def test_of_groups_that_overlap_one_stays_and_what_is_left_out_is_named() -> None:
    for first, second in itertools.permutations([folding(*SINGLES[:3]), folding(*SINGLES[2:6])]):
        both = copy_of(first)
        left_out = both.merge(second)
        assert {member.key for member in left_out} == keys_of(*SINGLES[:2])
        assert bits(both) == bits(replica(*SINGLES[2:6]))
        for item in SINGLES[:2]:
            assert both.add(*item)
        assert bits(both) == bits(replica(*SINGLES[:6]))


def test_what_is_folded_counts_against_a_single_contribution_of_another_version_which_is_named() -> None:
    for version in (1, 3):
        grouped, other = (
            folding(contribution("P", "boots", 2), SINGLES[1]),
            replica(contribution("P", "boots", version)),
        )
        for both, left_out in joined_both_ways(grouped, other):
            assert both.counted["P", "boots"].version == 2
            assert [member.version for member in left_out] == [version] * (version > 2)


def test_what_either_dropped_does_not_come_back_in_a_group() -> None:
    grouped, dropping = folding(*SINGLES[:4]), replica(SINGLES[0], SINGLES[5])
    dropping.drop_peer("P")
    for both, left_out in joined_both_ways(grouped, dropping):
        assert bits(both) == bits(replica(SINGLES[5]))
        # The other task of P it had never heard of.
        assert {member.key for member in left_out} == keys_of(*SINGLES[1:4])
    # With the bytes of what was dropped at hand the rest of the group stays.
    dropping = replica(SINGLES[2])
    dropping.drop_peer("Q")
    holding = merged(folding(*SINGLES[:4]), replica(*SINGLES[2:4]))
    for both, left_out in joined_both_ways(holding, dropping):
        assert bits(both) == bits(replica(*SINGLES[:2], SINGLES[3]))
        assert left_out == ()


def joined_both_ways(a: Contributions, b: Contributions) -> list[tuple[Contributions, tuple[Member, ...]]]:
    ab, ba = copy_of(a), copy_of(b)
    outcomes = [(ab, ab.merge(b)), (ba, ba.merge(a))]
    assert state(ab) == state(ba)
    return outcomes


@st.composite
def bounded(draw: st.DrawFn) -> Contributions:
    held = replica(*draw(st.lists(items, max_size=7)), max_bytes=draw(st.sampled_from([0, 1500, 3000])))
    if draw(st.booleans()):
        held.drop_peer(draw(st.sampled_from(PEERS)))
    return held


@settings(deadline=None, max_examples=40)
@given(a=bounded(), b=bounded())
def test_merging_with_groups_is_commutative_and_idempotent_and_counts_nothing_twice(
    a: Contributions, b: Contributions
) -> None:
    ab, ba = merged(a, b), merged(b, a)
    assert state(ab) == state(ba)
    assert bits(ab) == sum_of(ab)
    assert state(merged(ab, a, b)) == state(ab)


@settings(deadline=None, max_examples=30)
@given(
    owner=st.lists(st.integers(0, 2), min_size=8, max_size=8), singles=st.lists(st.sampled_from(SINGLES), max_size=4)
)
def test_merging_disjoint_groups_is_associative(owner: list[int], singles: list[Item]) -> None:
    parts = [[item for item, of in zip(SINGLES, owner, strict=True) if of == k] for k in range(3)]
    a, b, c = folding(*parts[0]), merged(folding(*parts[1]), replica(*singles)), folding(*parts[2])
    assert state(merged(merged(a, b), c)) == state(merged(a, merged(b, c)))
    assert bits(merged(a, b, c)) == bits(replica(*SINGLES))


class Replicas(RuleBasedStateMachine):
    """Three replicas, two of them bounded, under anything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [replica(max_bytes=budget) for budget in (None, 2500, 0)]
        self.fillers = itertools.count(1)

    which = st.integers(0, 2)

    @rule(at=which, item=items, issued_at=st.integers(0, 3))
    def add(self, at: int, item: Item, issued_at: int) -> None:
        self.replicas[at].add(*item, issued_at=float(issued_at))

    @rule(at=which, peer=st.sampled_from(PEERS))
    def drop_peer(self, at: int, peer: str) -> None:
        self.replicas[at].drop_peer(peer)

    @rule(at=which, task=st.sampled_from(TASKS))
    def drop_task(self, at: int, task: str) -> None:
        self.replicas[at].drop_task(task)

    @rule(at=which, other=which)
    def merge(self, at: int, other: int) -> None:
        left_out = self.replicas[at].merge(self.replicas[other])
        counted = self.replicas[at].counted
        assert all(counted.get(member.key) != member for member in left_out)

    @precondition(lambda self: self.replicas[2].folded)
    @rule(at=which)
    def merge_group(self, at: int) -> None:
        group = self.replicas[2].group()
        assert group is not None
        self.replicas[at].merge_group(GroupSum.from_bytes(group.to_bytes()))

    @rule(at=which, peer=st.sampled_from(PEERS))
    def reissue(self, at: int, peer: str) -> None:
        for key, member in self.replicas[at].folded.items():
            if key[0] == peer:
                self.replicas[at].reissue(key, DATA[member.digest])
        self.replicas[at].add(("filler", "boots"), next(self.fillers), SINGLES[0][2])  # the bound holds again

    @invariant()
    def the_sum_is_that_of_what_is_counted(self) -> None:
        for held in self.replicas:
            assert bits(held) == sum_of(held)

    @invariant()
    def what_is_dropped_does_not_count(self) -> None:
        for held in self.replicas:
            assert all(member.version > held.dropped.get(key, 0) for key, member in held.counted.items())

    @invariant()
    def the_budget_holds(self) -> None:
        bare = 8 * DIM * (DIM + 1) + 4 * 16 * DIM
        for held, budget in zip(self.replicas[1:], (2500, 0), strict=True):
            names = sum(member.num_bytes for member in held.counted.values())
            dropped = sum(len(key[0]) + len(key[1]) + 8 for key in held.dropped)
            assert held.num_bytes <= max(budget, bare + names + dropped)


Replicas.TestCase.settings = settings(deadline=None, max_examples=12, stateful_step_count=15)
TestReplicas = Replicas.TestCase
