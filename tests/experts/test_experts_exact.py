"""Exact sums: the equation they hold, and that no order, detour or removal leaves a trace."""

from fractions import Fraction

import equations
import equations_statistics
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import FingerprintMismatch, UnsafeStatistics
from experts.router.exact import LARGEST, MAX_PARTS, ExactSum
from experts.router.fingerprint import statistics_fingerprint
from experts.router.statistics import ClassStatistics


def statistics(seed: int, *, size: int = 12, dim: int = 4, scale: float = 3.0) -> ClassStatistics:
    generator = torch.Generator().manual_seed(seed)
    labels = ["abcd"[(seed + i) % (1 + seed % 4)] for i in range(size)]
    return ClassStatistics.from_features(torch.randn(size, dim, generator=generator) * scale + 1, labels)


def sum_of(*parts: ClassStatistics) -> ExactSum:
    total = ExactSum(parts[0].feature_dim, fingerprint=None)
    for part in parts:
        total.add(part)
    return total


def bits(total: ExactSum) -> tuple[object, ...]:
    return dict(total.counts), {name: limbs.tolist() for name, limbs in total.weighted_LD.items()}, (
        total.moment_LT.tolist()
    )  # fmt: skip


def test_the_sum_is_raw_moments_and_reads_as_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(20, 3, generator=generator).double() * 2 + 1, ["a", "b", "c", "a"] * 5
    total = sum_of(*(ClassStatistics.from_features(values[i::3], labels[i::3]) for i in range(3)))
    counts, sums, moment = equations_statistics.raw_moments(values.tolist(), labels)
    assert total.counts == counts
    for name, wanted in sums.items():
        np.testing.assert_allclose(total.weighted_LD[name].double().T @ SCALES, wanted, rtol=1e-12, atol=1e-12)
    wanted_triangle = [moment[i][j] for i in range(3) for j in range(i, 3)]
    np.testing.assert_allclose(total.moment_LT.double().T @ SCALES, wanted_triangle, rtol=1e-12)
    means, scatter = equations_statistics.statistics_of_moments(counts, sums, moment)
    stats = total.statistics()
    np.testing.assert_allclose(stats.scatter, scatter, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(stats.stacked_means(), [means[name] for name in sorted(means)], rtol=1e-12)
    _, _, definition = equations.class_statistics(values.tolist(), labels)
    np.testing.assert_allclose(stats.scatter, definition, rtol=1e-10, atol=1e-10)


SCALES = torch.tensor([2.0**-10, 2.0**-60], dtype=torch.float64)

numbers = st.floats(-LARGEST, LARGEST, allow_subnormal=False)


@settings(deadline=None)
@given(values=st.lists(st.one_of(numbers, numbers.map(lambda x: x * 2.0**-45)), min_size=1, max_size=20))
def test_each_number_is_held_and_read_within_the_bound_that_is_documented(values: list[float]) -> None:
    parts = [ClassStatistics({"a": 1}, {"a": torch.zeros(1).double()}, torch.tensor([[x]], dtype=torch.float64))
             for x in values]  # fmt: skip
    total = sum_of(*parts)
    # The two limbs as exact rational numbers, and what they were to be.
    high, low = total.moment_LT[:, 0].tolist()
    held, wanted = Fraction(high, 2**10) + Fraction(low, 2**60), sum(map(Fraction, values), Fraction())
    rounded = sum(abs(x) < 2.0**-8 for x in values)
    assert abs(held - wanted) <= rounded * Fraction(1, 2**61)
    read = Fraction(total.statistics().scatter.item())
    assert abs(read - wanted) <= abs(wanted) / 2**52 + len(values) * Fraction(1, 2**60)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), offset=st.sampled_from([0.0, 1.0, 100.0]))
def test_the_scatter_loses_digits_by_the_square_of_the_mean_only(seed: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, labels = torch.randn(40, 3, generator=generator).double() + offset, ["a", "b"] * 20
    central = ClassStatistics.from_features(values, labels)
    total = sum_of(*(ClassStatistics.from_features(values[i::4], labels[i::4]) for i in range(4)))
    greatest = (values.T @ values).abs().max().item()
    assert (total.statistics().scatter - central.scatter).abs().max().item() <= 2.0**-50 * greatest


@settings(deadline=None, max_examples=50)
@given(order=st.permutations(range(6)), scale=st.sampled_from([1e-8, 1.0, 1e5]), out=st.sets(st.integers(0, 5)))
def test_order_detours_and_removal_leave_no_bit(order: list[int], scale: float, out: set[int]) -> None:
    parts = [statistics(seed, scale=scale) for seed in range(6)]
    total = sum_of(*(parts[i] for i in order))
    assert bits(total) == bits(sum_of(*parts))
    for i in out:
        total.subtract(parts[i])
    left = [parts[i] for i in range(6) if i not in out]
    assert bits(total) == bits(sum_of(*left) if left else ExactSum(4, fingerprint=None))
    assert total.num_parts == len(left)


def test_sums_of_sums_are_the_sum_and_copies_are_apart() -> None:
    first, second = sum_of(statistics(1), statistics(2)), sum_of(statistics(3))
    before = bits(first)
    both = first.copy()
    both.add_sum(second)
    assert bits(both) == bits(sum_of(statistics(1), statistics(2), statistics(3)))
    assert bits(first) == before


def test_bytes_are_sixteen_a_number() -> None:
    total = sum_of(statistics(3, dim=7))
    assert total.num_bytes == 8 * 7 * 8 + 16 * 7 * len(total.counts)


def test_the_limbs_have_room_for_the_most_there_may_be() -> None:
    number = ClassStatistics({"a": 1}, {"a": torch.tensor([0.0]).double()}, torch.tensor([[LARGEST]]).double())
    just_below = ClassStatistics({"a": 1}, {"a": torch.tensor([0.0]).double()}, torch.tensor([[2.0**-11]]).double())
    for part in (number, just_below):
        total = sum_of(part)
        one = total.moment_LT.clone()
        assert one.abs().max() <= 2**49
        total.moment_LT *= MAX_PARTS
        assert torch.equal(total.moment_LT // MAX_PARTS, one)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    total = sum_of(statistics(1))
    before = bits(total)
    huge, not_finite = statistics(2), statistics(2)
    huge.scatter[0, 0] = LARGEST * 2
    not_finite.means["a"][0] = float("nan")
    with pytest.raises(UnsafeStatistics, match="exceeds"):
        total.add(huge)
    with pytest.raises(UnsafeStatistics, match="finite"):
        total.add(not_finite)
    with pytest.raises(UnsafeStatistics, match="5 features"):
        total.add(statistics(1, dim=5))
    with pytest.raises(FingerprintMismatch):
        total.add_sum(ExactSum(4, fingerprint=statistics_fingerprint("a" * 64, b"")))
    with pytest.raises(UnsafeStatistics, match="exceeds"):
        total.replace(statistics(1), huge)
    with pytest.raises(UnsafeStatistics, match="fewer samples"):
        total.subtract(statistics(3))
    total.num_parts = MAX_PARTS
    with pytest.raises(UnsafeStatistics, match="contributions"):
        total.add(statistics(2))
    with pytest.raises(UnsafeStatistics, match="contributions"):
        total.add_sum(sum_of(statistics(2)))
    assert bits(total) == before
    with pytest.raises(UnsafeStatistics):
        ExactSum(4, fingerprint=None).statistics()
