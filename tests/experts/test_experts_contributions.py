"""Contributions: a state that merges in any order to the same bits, within its budget, and counts nothing twice."""

import itertools
from collections.abc import Iterable
from functools import cache, partial
from hashlib import sha256

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from experts.errors import FingerprintMismatch, UnsafeStatistics
from experts.router.contributions import Contributions
from experts.router.fingerprint import statistics_fingerprint
from experts.router.groups import ContributionKey, GroupSum, Member
from experts.router.packing import pack, unpack
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.router.whitening import WhiteningReference
from experts.router.wire8 import decode8, encode8

DIM = 3
PEERS, TASKS, VERSIONS, CONTENTS = "PQRS", ("boots", "coats"), (1, 2, 3), (0, 1)

Item = tuple[ContributionKey, int, bytes]


def contribution(peer: str, task: str, version: int, content: int = 0) -> Item:
    """The same bytes for the same arguments; another content makes other bytes of the same version."""
    seed = int.from_bytes(sha256(f"{peer}{task}{version}{content}".encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(seed)
    classes = ("a", "b", "c") if task == "boots" else ("c", "d")
    labels = [classes[i % len(classes)] for i in range(4 + seed % 5)]
    stats = ClassStatistics.from_features(torch.randn(len(labels), DIM, generator=generator) * 3 + 1, labels)
    return (peer, task), version, stats.to_bytes()


ALL = [contribution(*form) for form in itertools.product(PEERS, TASKS, VERSIONS, CONTENTS)]
DATA = {sha256(data).hexdigest(): data for _, _, data in ALL}
SINGLES = [contribution(peer, task, 1) for peer in PEERS for task in TASKS]
SUM_BYTES = 8 * DIM * (DIM + 1) + 4 * 16 * DIM
"""Of an exact sum over the four classes."""

items = st.sampled_from(ALL)

decode = cache(ClassStatistics.from_bytes)
"""The same statistics of the same bytes, as the holder asks, without reading them thousands of times."""


def replica(*added: Item, max_bytes: int | None = None) -> Contributions:
    held = Contributions(DIM, max_bytes=max_bytes, decode=decode)
    for key, version, data in added:
        held.add(key, version, data)
    return held


def folding(*added: Item) -> Contributions:
    """A replica that can hold nothing but its sum."""
    return replica(*added, max_bytes=0)


def copy_of(held: Contributions) -> Contributions:
    twin = Contributions(DIM, decode=decode)
    twin.merge(held)
    return twin


def merged(*replicas: Contributions) -> Contributions:
    result = copy_of(replicas[0])
    for other in replicas[1:]:
        result.merge(other)
    return result


def bits(held: Contributions) -> tuple[object, ...]:
    """The sum to the last bit; empty without one."""
    if not held.counted:
        return ()
    stats = held.sum()
    return dict(stats.counts), stats.stacked_means().numpy().tobytes(), stats.scatter.numpy().tobytes()


def state(held: Contributions) -> tuple[object, ...]:
    return held.counted, held.folded, held.dropped, bits(held)


def sum_of(held: Contributions) -> tuple[object, ...]:
    """What the sum has to be: that of the counted contributions, each added once to nothing."""
    fresh = Contributions(DIM, decode=decode)
    for member in held.counted.values():
        fresh.add(member.key, member.version, DATA[member.digest])
    return bits(fresh)


@st.composite
def histories(draw: st.DrawFn) -> Contributions:
    """A replica without a budget after any additions and drops."""
    held = Contributions(DIM, decode=decode)
    for item in draw(st.lists(items, max_size=6)):
        held.add(*item)
        if draw(st.integers(0, 4)) == 0:
            held.drop_peer(draw(st.sampled_from(PEERS)))
        if draw(st.integers(0, 4)) == 0:
            held.drop_task(draw(st.sampled_from(TASKS)))
    return held


# The lattice: nothing folded


@settings(deadline=None, max_examples=30)
@given(a=histories(), b=histories(), c=histories())
def test_merging_is_commutative_associative_and_idempotent_to_the_last_bit(
    a: Contributions, b: Contributions, c: Contributions
) -> None:
    assert state(merged(a, b)) == state(merged(b, a))
    assert state(merged(merged(a, b), c)) == state(merged(a, merged(b, c)))
    assert state(merged(a, a)) == state(a) == state(merged(a, Contributions(DIM)))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), chosen=st.lists(items, min_size=1, max_size=8))
def test_order_and_repetition_of_additions_leave_no_trace(data: st.DataObject, chosen: list[Item]) -> None:
    again = data.draw(st.permutations(chosen + chosen[:3]))
    assert state(replica(*again)) == state(replica(*chosen))


@settings(deadline=None, max_examples=40)
@given(peer=st.sampled_from(PEERS), task=st.sampled_from(TASKS), order=st.permutations(SINGLES))
def test_a_drop_is_bit_equal_to_never_having_held(peer: str, task: str, order: list[Item]) -> None:
    for drop, is_dropped in (
        (lambda held: held.drop_peer(peer), lambda key: key[0] == peer),
        (lambda held: held.drop_task(task), lambda key: key[1] == task),
    ):
        held = replica(*order)
        assert drop(held) == ()
        never = replica(*(item for item in SINGLES if not is_dropped(item[0])))
        assert bits(held) == bits(never)
        assert held.counted == never.counted
        assert held.num_bytes > never.num_bytes  # it remembers what it must not take again


def test_what_was_dropped_does_not_come_back_but_a_higher_version_does() -> None:
    held, other = replica(*SINGLES), replica(*SINGLES)
    held.drop_peer("P")
    assert not held.add(*contribution("P", "boots", 1))
    held.merge(other)
    other.merge(held)
    assert ("P", "boots") not in held.counted | other.counted
    assert held.add(*contribution("P", "boots", 2))
    assert held.counted["P", "boots"].version == 2


def test_a_higher_version_replaces_and_a_lower_one_is_not_taken() -> None:
    held = replica(contribution("P", "boots", 2), contribution("Q", "boots", 1))
    assert not held.add(*contribution("P", "boots", 1))
    assert not held.add(*contribution("P", "boots", 2))
    assert held.add(*contribution("P", "boots", 3))
    assert bits(held) == bits(replica(contribution("P", "boots", 3), contribution("Q", "boots", 1)))


def test_of_two_contents_of_one_version_the_greater_digest_counts_everywhere() -> None:
    first, second = contribution("P", "boots", 1, 0), contribution("P", "boots", 1, 1)
    a, b = replica(first, second), replica(second, first)
    assert state(a) == state(b)
    assert a.counted["P", "boots"].digest == max(sha256(item[2]).hexdigest() for item in (first, second))


def test_the_sum_is_that_of_summing_in_float64() -> None:
    got = replica(*SINGLES).sum()
    wanted = sum_contributions({key: ClassStatistics.from_bytes(data) for key, _, data in SINGLES})
    assert got.counts == wanted.counts
    torch.testing.assert_close(got.stacked_means(), wanted.stacked_means(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got.scatter, wanted.scatter, rtol=1e-12, atol=1e-12)


def test_a_merged_router_is_the_central_one_and_the_sequential_one() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = [f"class {i % 7}" for i in range(700)]
    values = torch.randn(700, 24, generator=generator) + 2 * torch.nn.functional.one_hot(torch.arange(700) % 7, 24)
    central = ClassStatistics.from_features(values, labels)
    sequential = ClassStatistics.from_features(values[:100], labels[:100])
    held = Contributions(24, decode=lambda data: PARTS[int(data)])
    parts = [ClassStatistics.from_features(values[i::4], labels[i::4]) for i in range(4)]
    PARTS.extend(parts)
    for k in range(4):
        held.add((f"peer {k}", "task"), 1, str(k).encode())
    for start in range(100, 700, 100):
        sequential = sequential.updated(values[start : start + 100], labels[start : start + 100])
    wanted = solve_ridge(central, RouterConfig()).weights
    for stats in (sequential, held.sum()):
        error = torch.linalg.norm(solve_ridge(stats, RouterConfig()).weights - wanted)
        assert error <= 1e-9 * torch.linalg.norm(wanted)


PARTS: list[ClassStatistics] = []


# Refusals


def test_other_features_are_refused_by_name_and_change_nothing() -> None:
    mine, others = (statistics_fingerprint(digest * 64, b"") for digest in "ab")
    assert statistics_fingerprint("a" * 64, b"W") != mine != others
    values, labels = torch.randn(4, DIM), ["a", "b", "a", "b"]
    held = Contributions(DIM, fingerprint=mine)
    held.add(("P", "t"), 1, ClassStatistics.from_features(values, labels, fingerprint=mine).to_bytes())
    before = state(held)
    for fingerprint in (others, None):
        with pytest.raises(FingerprintMismatch) as caught:
            held.add(("Q", "t"), 1, ClassStatistics.from_features(values, labels, fingerprint=fingerprint).to_bytes())
        assert (caught.value.expected, caught.value.got) == (mine, fingerprint)
        with pytest.raises(FingerprintMismatch):
            held.merge(Contributions(DIM, fingerprint=fingerprint))
    group = folding(*SINGLES).group()
    assert group is not None
    with pytest.raises(FingerprintMismatch):
        held.merge_group(group)
    with pytest.raises(UnsafeStatistics, match="4 features"):
        held.merge(Contributions(4, fingerprint=mine))
    assert state(held) == before


def test_bytes_that_are_no_statistics_of_this_dimension_change_nothing() -> None:
    held = replica(*SINGLES)
    before = state(held)
    four = ClassStatistics.from_features(torch.randn(3, 4), ["a", "a", "b"])
    far = ClassStatistics({"a": 2**40}, {"a": torch.full((DIM,), 9.0).double()}, torch.zeros(DIM, DIM).double())
    for key in (("P", "boots"), ("new", "boots")):
        for data in (b"", b"garbage", four.to_bytes(), far.to_bytes()):
            with pytest.raises(UnsafeStatistics):
                held.add(key, 7, data)
    for key, version in ((("P", "boots"), 0), (("", "boots"), 1), (("P", ""), 1)):
        with pytest.raises(UnsafeStatistics, match=r"version 0|not a name"):
            held.add(key, version, SINGLES[0][2])
    assert state(held) == before


def test_nothing_has_no_sum() -> None:
    with pytest.raises(UnsafeStatistics):
        Contributions(DIM).sum()
    assert Contributions(DIM).group() is None


# The budget


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(SINGLES), budget=st.integers(0, 6000))
def test_folding_costs_no_bit_of_the_sum_and_keeps_the_budget(order: list[Item], budget: int) -> None:
    held = replica(*order, max_bytes=budget)
    assert bits(held) == bits(replica(*SINGLES))
    assert held.counted == replica(*SINGLES).counted
    names = sum(member.num_bytes for member in held.counted.values())
    assert held.num_bytes <= max(budget, SUM_BYTES + names)


def test_what_is_oldest_folds_first() -> None:
    held = Contributions(DIM, max_bytes=SUM_BYTES + 3 * (len(SINGLES[0][2]) + 200))
    for age, (key, version, data) in enumerate(SINGLES):
        held.add(key, version, data, issued_at=100.0 - age)
    newest_first = [key for key, _, _ in SINGLES]
    folded = set(held.folded)
    assert 0 < len(folded) < len(SINGLES)
    assert folded == set(newest_first[-len(folded) :])


def test_a_folded_contribution_is_removed_by_the_contributors_reissue_without_a_trace() -> None:
    held = folding(*SINGLES)
    with pytest.raises(UnsafeStatistics, match="bytes"):
        held.reissue(("P", "boots"), contribution("P", "boots", 2)[2])
    with pytest.raises(UnsafeStatistics, match="bytes"):
        held.reissue(("nobody", "boots"), SINGLES[0][2])
    before = bits(held)
    for task in TASKS:
        held.reissue(("P", task), contribution("P", task, 1)[2])
    assert bits(held) == before
    assert held.drop_peer("P") == ()
    assert bits(held) == bits(replica(*(item for item in SINGLES if item[0][0] != "P")))


def test_dropping_what_is_folded_gives_up_the_group_and_names_the_rest() -> None:
    held = copy_of(folding(*SINGLES[:5]))
    for item in SINGLES[5:7]:
        held.add(*item)
    gone = held.drop_peer("P")
    assert {member.key for member in gone} == keys_of(*SINGLES[2:5])
    assert bits(held) == bits(replica(*SINGLES[5:7]))
    assert not held.add(*SINGLES[0])
    assert held.merge(folding(*SINGLES[:5])) == gone
    for item in SINGLES[2:5]:
        assert held.add(*item)
    assert bits(held) == bits(replica(*SINGLES[2:7]))


def test_another_version_of_what_is_folded_is_taken_once_that_was_reissued() -> None:
    held = folding(*SINGLES)
    before = state(held)
    newer = contribution("P", "boots", 2)
    assert not held.add(*newer)
    assert state(held) == before
    held.reissue(SINGLES[0][0], SINGLES[0][2])
    assert held.add(*newer)
    assert bits(held) == bits(replica(newer, *SINGLES[1:]))


def test_a_full_sum_still_takes_higher_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experts.router.exact.MAX_PARTS", 2)
    held = replica(*SINGLES[:2])
    with pytest.raises(UnsafeStatistics, match="2 contributions"):
        held.add(*SINGLES[2])
    assert held.add(*contribution("P", "boots", 2))
    assert bits(held) == bits(replica(contribution("P", "boots", 2), SINGLES[1]))


# Groups that meet


def keys_of(*chosen: Item) -> set[ContributionKey]:
    return {item[0] for item in chosen}


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


def test_an_add_that_is_not_taken_also_restores_the_bound_after_a_reissue() -> None:
    held = replica(max_bytes=0)
    key, version, data = SINGLES[0]
    held.add(key, version, data)
    within = held.num_bytes
    held.reissue(key, data)
    assert held.num_bytes == within + len(data)
    assert not held.add(key, version, data)
    assert held.num_bytes == within
    assert key in held.folded


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


# Groups as bytes, and contributions in eight bits


def test_a_group_travels_as_bytes() -> None:
    group = folding(*SINGLES).group()
    assert group is not None
    again = GroupSum.from_bytes(group.to_bytes())
    assert again.to_bytes() == group.to_bytes()
    held = Contributions(DIM)
    held.merge_group(again)
    assert bits(held) == bits(replica(*SINGLES))


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), tail=st.binary(max_size=50))
def test_a_damaged_group_is_refused_or_can_be_summed(position: int, bit: int, tail: bytes) -> None:
    group = folding(*SINGLES[:3]).group()
    assert group is not None
    data = bytearray(group.to_bytes())
    data[position % len(data)] ^= 1 << bit
    for damaged in (bytes(data), tail):
        try:
            stats = GroupSum.from_bytes(damaged).total.statistics()
        except UnsafeStatistics:
            continue
        assert torch.isfinite(stats.scatter).all()


def changed(group: GroupSum, moment: int, members: Iterable[object] | None = None) -> bytes:
    tensors, config = unpack(group.to_bytes(), {"moment": torch.int64, "weighted": torch.int64})
    tensors["moment"][0, 0] = moment if moment else tensors["moment"][0, 0]
    if members is not None:
        config["members"] = list(members)
    return pack(tensors, config)


@pytest.mark.parametrize("moment", [2**62, -(2**63), -(2**20)])
def test_groups_of_impossible_numbers_are_refused(moment: int) -> None:
    group = folding(*SINGLES[:3]).group()
    assert group is not None
    GroupSum.from_bytes(changed(group, 0))
    with pytest.raises(UnsafeStatistics):
        GroupSum.from_bytes(changed(group, moment))


GOOD = ["P", "boots", 1, "a" * 64, 0.0]


@pytest.mark.parametrize(
    "members",
    [
        [],
        [GOOD, GOOD],
        [["P", "boots", 0, "a" * 64, 0.0]],
        [["P", "boots", True, "a" * 64, 0.0]],
        [["P", "boots", 1, "short", 0.0]],
        [["P", "boots", 1, "a" * 64, None]],
        [["P", "boots", 1, "a" * 64, 10**400]],
        [["P", "boots", 10**400, "a" * 64, 0.0]],
        [["P", "boots", 1, "a" * 64, float("nan")]],
        [["P\ud800", "boots", 1, "a" * 64, 0.0]],
        [["P", "", 1, "a" * 64, 0.0]],
        [["P", ["boots"], 1, "a" * 64, 0.0]],
        [["P", "boots", 1, "a" * 64]],
        [3],
    ],
)
def test_groups_of_impossible_members_are_refused(members: list[object]) -> None:
    group = folding(SINGLES[0]).group()
    assert group is not None
    GroupSum.from_bytes(changed(group, 0, [GOOD]))
    with pytest.raises(UnsafeStatistics):
        GroupSum.from_bytes(changed(group, 0, members))


def test_contributions_may_come_in_eight_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [ClassStatistics.from_features(torch.randn(30, DIM, generator=generator), ["a", "b"] * 15) for _ in PEERS]
    reference = WhiteningReference.from_statistics(parts[0])
    held = Contributions(DIM, max_bytes=0, decode=partial(decode8, reference=reference))
    for peer, part in zip(PEERS, parts, strict=True):
        held.add((peer, "t"), 1, encode8(part, reference))
    group = held.group()
    assert group is not None
    assert GroupSum.from_bytes(group.to_bytes()).total.counts == {"a": 60, "b": 60}
    torch.testing.assert_close(held.sum().scatter, sum_contributions(dict(zip(PEERS, parts, strict=True))).scatter,
                               rtol=0.05, atol=2.0)  # fmt: skip
