"""Statistics: the definition, merging, summing of contributions, and the wire form."""

import itertools

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experts.checkpoint import tensors_to_bytes
from experts.errors import FingerprintMismatch, ShapeMismatch, UnsafeStatistics
from experts.router.fingerprint import statistics_fingerprint
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, merge, sum_contributions
from experts.router.symmetric import mirror, packed_triangle, unpacked_triangle

Sample = tuple[Tensor, list[str]]


def sample(seed: int, *, size: int = 30, dim: int = 5, classes: str = "abc") -> Sample:
    generator = torch.Generator().manual_seed(seed)
    labels = [classes[i] for i in torch.randint(len(classes), (size,), generator=generator).tolist()]
    offset = torch.tensor([float(ord(label) - ord("a")) for label in labels])[:, None]
    return torch.randn(size, dim, generator=generator) * 2 + offset, labels


def statistics(seed: int, **form: object) -> ClassStatistics:
    return ClassStatistics.from_features(*sample(seed, **form))  # type: ignore[arg-type]


def assert_close(got: ClassStatistics, wanted: ClassStatistics, relative: float) -> None:
    assert got.counts == wanted.counts
    assert got.means.keys() == wanted.means.keys()
    for name, mean in wanted.means.items():
        assert torch.linalg.norm(got.means[name] - mean) <= relative * torch.linalg.norm(mean)
    assert torch.linalg.norm(got.scatter - wanted.scatter) <= relative * torch.linalg.norm(wanted.scatter)


def assert_bit_equal(got: ClassStatistics, wanted: ClassStatistics) -> None:
    assert got.counts == wanted.counts
    assert all(torch.equal(got.means[name], mean) for name, mean in wanted.means.items())
    assert torch.equal(got.scatter, wanted.scatter)


def test_statistics_are_those_of_the_definition() -> None:
    features, labels = sample(0)
    got = ClassStatistics.from_features(features, labels)
    counts, means, scatter = equations.class_statistics(features.tolist(), labels)
    assert dict(got.counts) == counts
    assert got.classes == ("a", "b", "c")
    for name, mean in means.items():
        np.testing.assert_allclose(got.means[name], mean, rtol=1e-12)
    np.testing.assert_allclose(got.scatter, scatter, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 39), max_size=4, unique=True), permute=st.data())
def test_merging_any_parts_in_any_order_equals_the_central_computation(
    seed: int, cuts: list[int], permute: st.DataObject
) -> None:
    features, labels = sample(seed, size=40)
    bounds = itertools.pairwise([0, *sorted(cuts), 40])
    parts = [ClassStatistics.from_features(features[a:b], labels[a:b]) for a, b in bounds]
    shuffled = permute.draw(st.permutations(parts))
    merged = shuffled[0]
    for part in shuffled[1:]:
        merged = merge(merged, part)
    assert_close(merged, ClassStatistics.from_features(features, labels), 1e-12)


def test_merging_does_not_change_what_is_merged() -> None:
    first, second = statistics(1), statistics(2)
    scatter, mean = first.scatter.clone(), first.means["a"].clone()
    merge(first, second)
    assert torch.equal(first.scatter, scatter)
    assert torch.equal(first.means["a"], mean)


def test_a_class_known_to_one_part_only_is_taken_over_as_it_is() -> None:
    first, second = statistics(1, classes="ab"), statistics(2, classes="bz")
    merged = merge(first, second)
    assert merged.classes == ("a", "b", "z")
    assert merged.counts["z"] == second.counts["z"]
    assert torch.equal(merged.means["z"], second.means["z"])


@settings(deadline=None)
@given(order=st.permutations(range(5)), dropped=st.integers(0, 4))
def test_sums_are_bit_equal_whatever_came_first_and_whatever_was_dropped(order: list[int], dropped: int) -> None:
    parts = {("peer", "task", i): statistics(i, classes="abcd"[: 2 + i % 3]) for i in range(5)}
    assert_bit_equal(sum_contributions({key: parts[key] for key in [("peer", "task", i) for i in order]}),
                     sum_contributions(parts))  # fmt: skip
    held = {("peer", "task", i): parts["peer", "task", i] for i in order}
    sum_contributions(held)
    del held["peer", "task", dropped]
    never = {key: part for key, part in parts.items() if key[2] != dropped}
    assert_bit_equal(sum_contributions(held), sum_contributions(never))


def test_a_sum_does_not_depend_on_the_order_inside_a_contribution() -> None:
    parts = {"p": statistics(1), "q": statistics(2)}
    backwards = {
        key: ClassStatistics(dict(reversed(part.counts.items())), dict(reversed(part.means.items())), part.scatter)
        for key, part in parts.items()
    }
    assert_bit_equal(sum_contributions(backwards), sum_contributions(parts))
    assert torch.equal(sum_contributions(backwards).stacked_means(), sum_contributions(parts).stacked_means())


def test_scatter_stays_bit_symmetric() -> None:
    merged = merge(statistics(1, dim=70), statistics(2, dim=70))
    assert torch.equal(merged.scatter, merged.scatter.T)


def test_statistics_of_different_dimensions_are_not_summed() -> None:
    with pytest.raises(UnsafeStatistics, match="4 features"):
        merge(statistics(1), statistics(2, dim=4))
    with pytest.raises(UnsafeStatistics):
        sum_contributions({})


@pytest.mark.parametrize(("shape", "num_labels"), [((3, 5), 4), ((5,), 5), ((0, 5), 0), ((4, 0), 4)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...], num_labels: int) -> None:
    with pytest.raises(ShapeMismatch):
        ClassStatistics.from_features(torch.zeros(shape), ["a"] * num_labels)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UnsafeStatistics, match="finite"):
        ClassStatistics.from_features(torch.tensor([[1.0, float("nan")]]), ["a"])


def test_merging_after_the_wire_is_central_to_float32() -> None:
    features, labels = sample(3, size=400, dim=20)
    parts = [ClassStatistics.from_features(features[i::4], labels[i::4]) for i in range(4)]
    received = {i: ClassStatistics.from_bytes(part.to_bytes()) for i, part in enumerate(parts)}
    assert_close(sum_contributions(received), ClassStatistics.from_features(features, labels), 1e-6)


def test_the_wire_form_is_packed_float32_and_stable() -> None:
    stats = statistics(4, dim=60)
    data = stats.to_bytes()
    assert len(data) < 4 * (60 * 61 // 2 + 3 * 60) + 512
    again = ClassStatistics.from_bytes(data)
    assert again.to_bytes() == data
    assert torch.equal(again.scatter, again.scatter.T)


@pytest.mark.parametrize(("size", "dim"), [(1, 4), (3, 40), (2, 1)])
def test_honest_statistics_of_few_samples_pass_the_check(size: int, dim: int) -> None:
    stats = statistics(5, size=size, dim=dim)
    assert ClassStatistics.from_bytes(stats.to_bytes()).counts == stats.counts


GOOD_MEANS, GOOD_TRIANGLE = torch.ones(2, 2), torch.tensor([2.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("means", "triangle", "counts"),
    [
        (GOOD_MEANS, GOOD_TRIANGLE, {"a": 1}),
        (GOOD_MEANS, GOOD_TRIANGLE, {"a": 0, "b": 1}),
        (GOOD_MEANS, GOOD_TRIANGLE, {"a": True, "b": 1}),
        (GOOD_MEANS, GOOD_TRIANGLE, {"a": 1.0, "b": 1}),
        (GOOD_MEANS, GOOD_TRIANGLE, {"a": 2**41, "b": 1}),
        (GOOD_MEANS, GOOD_TRIANGLE, {"": 1, "b": 1}),
        (GOOD_MEANS, GOOD_TRIANGLE, [1, 1]),
        (torch.ones(2, 3), GOOD_TRIANGLE, {"a": 1, "b": 1}),
        (torch.ones(2), GOOD_TRIANGLE, {"a": 1, "b": 1}),
        (torch.ones(2, 0), torch.ones(0), {"a": 1, "b": 1}),
        (GOOD_MEANS, torch.tensor([[2.0, 1.0, 2.0]]), {"a": 1, "b": 1}),
        (GOOD_MEANS, torch.tensor([2.0, 3.0, 2.0]), {"a": 1, "b": 1}),  # correlation above 1
        (GOOD_MEANS, torch.tensor([-1.0, 0.0, 2.0]), {"a": 1, "b": 1}),
        (GOOD_MEANS, torch.tensor([0.0, 1.0, 0.0]), {"a": 1, "b": 1}),
    ],
)
def test_statistics_of_no_samples_are_refused(means: Tensor, triangle: Tensor, counts: object) -> None:
    ClassStatistics.from_bytes(
        tensors_to_bytes({"means": GOOD_MEANS, "triangle": GOOD_TRIANGLE}, {"counts": {"a": 1, "b": 1}})
    )
    with pytest.raises(UnsafeStatistics):
        ClassStatistics.from_bytes(tensors_to_bytes({"means": means, "triangle": triangle}, {"counts": counts}))


def test_foreign_tensors_are_refused() -> None:
    with pytest.raises(UnsafeStatistics):
        ClassStatistics.from_bytes(tensors_to_bytes({"means": GOOD_MEANS}, {"counts": {"a": 1, "b": 1}}))


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(UnsafeStatistics):
        ClassStatistics.from_bytes(data)


@settings(deadline=None)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_still_solvable(position: int, bit: int) -> None:
    data = bytearray(statistics(6).to_bytes())
    data[position % len(data)] ^= 1 << bit
    try:
        stats = ClassStatistics.from_bytes(bytes(data))
    except UnsafeStatistics:
        return
    assert torch.isfinite(stats.scatter).all()
    assert all(count >= 1 for count in stats.counts.values())


def test_values_beyond_float32_are_not_sent() -> None:
    stats = statistics(7)
    huge = ClassStatistics(stats.counts, stats.means, stats.scatter * 1e40)
    with pytest.raises(UnsafeStatistics):
        huge.to_bytes()


MINE, OTHERS = (statistics_fingerprint(trunk * 64, b"") for trunk in "ab")


def test_a_fingerprint_tells_every_part_of_what_makes_a_feature() -> None:
    parts = [("a" * 64, b""), ("b" * 64, b""), ("a" * 64, b"W"), ("a" * 63, b"a"), ("", b"a" * 64)]
    assert len({statistics_fingerprint(*part) for part in parts}) == len(parts)
    assert statistics_fingerprint("a" * 64, b"W") == statistics_fingerprint("a" * 64, b"W")


@pytest.mark.parametrize("fingerprint", [OTHERS, None])
def test_statistics_of_other_features_are_never_summed(fingerprint: str | None) -> None:
    first = ClassStatistics.from_features(*sample(1), fingerprint=MINE)
    second = ClassStatistics.from_features(*sample(2), fingerprint=fingerprint)
    for add in (lambda: merge(first, second), lambda: sum_contributions({1: first, 2: second})):
        with pytest.raises(FingerprintMismatch) as caught:
            add()
        assert (caught.value.expected, caught.value.got) == (MINE, fingerprint)
    assert merge(first, first).fingerprint == MINE


def test_a_fingerprint_travels_with_its_statistics() -> None:
    stats = ClassStatistics.from_features(*sample(1), fingerprint=MINE)
    assert ClassStatistics.from_bytes(stats.to_bytes()).fingerprint == MINE
    assert ClassStatistics.from_bytes(statistics(1).to_bytes()).fingerprint is None
    for fingerprint in ("short", 3, None, "A" * 64):
        config = {"counts": {"a": 1, "b": 1}, "fingerprint": fingerprint}
        with pytest.raises(UnsafeStatistics, match="fingerprint"):
            ClassStatistics.from_bytes(tensors_to_bytes({"means": GOOD_MEANS, "triangle": GOOD_TRIANGLE}, config))


def test_an_update_touches_its_own_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = sample(8, size=120, dim=6, classes="abcde")
    central = solve_ridge(ClassStatistics.from_features(features, labels), RouterConfig()).weights
    rows: list[int] = []
    original = ClassStatistics.from_features.__func__  # type: ignore[attr-defined]

    def counting(cls: type[ClassStatistics], h_BD: Tensor, names: list[str], **more: object) -> ClassStatistics:
        rows.append(len(h_BD))
        return original(cls, h_BD, names, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(ClassStatistics, "from_features", classmethod(counting))
    stats = ClassStatistics.from_features(features[:50], labels[:50], fingerprint=MINE)
    # The rows of before are gone: what comes later cannot read them.
    features[:50] = float("nan")
    for start, end in [(50, 51), (51, 90), (90, 120)]:
        stats = stats.updated(features[start:end], labels[start:end])
        features[start:end] = float("nan")
    assert rows == [50, 1, 39, 30]
    assert stats.fingerprint == MINE
    got = solve_ridge(stats, RouterConfig()).weights
    assert torch.linalg.norm(got - central) <= 1e-6 * torch.linalg.norm(central)
    with pytest.raises(ShapeMismatch):
        stats.updated(features[:2, :5], labels[:2])


@settings(deadline=None)
@given(size=st.sampled_from([1, 2, 5, 511, 512, 513, 700]))
def test_triangles_and_mirrors_of_any_size(size: int) -> None:
    full = torch.arange(size * size, dtype=torch.float64).reshape(size, size)
    wanted = torch.triu(full) + torch.triu(full, diagonal=1).T
    packed = packed_triangle(full, torch.float64)
    assert torch.equal(packed, full[tuple(torch.triu_indices(size, size))])
    assert torch.equal(unpacked_triangle(packed, size), wanted)
    assert torch.equal(mirror(full), wanted)
