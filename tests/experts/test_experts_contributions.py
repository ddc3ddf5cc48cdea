"""Contributions: a state that merges in any order to the same bits, within its budget."""

from hashlib import sha256

import pytest
import torch
from contribution_examples import (
    DIM,
    PEERS,
    SINGLES,
    SUM_BYTES,
    TASKS,
    Item,
    bits,
    contribution,
    copy_of,
    folding,
    histories,
    items,
    keys_of,
    merged,
    replica,
    state,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import FingerprintMismatch, UnsafeStatistics
from experts.router.contributions import Contributions
from experts.router.fingerprint import statistics_fingerprint
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions

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
