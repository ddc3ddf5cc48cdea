"""The 8-bit wire form: its equation, its size, what survives it, and what is refused."""

import json
from typing import Any

import equations_statistics
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experts.errors import FingerprintMismatch, UnsafeStatistics
from experts.router.fingerprint import statistics_fingerprint
from experts.router.packing import pack, unpack
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.router.whitening import WhiteningReference
from experts.router.wire8 import decode8, encode8, raise_eigenvalues

FINGERPRINT = statistics_fingerprint("a" * 64, b"")


def features(seed: int, *, size: int, dim: int, classes: str = "abc") -> tuple[Tensor, list[str]]:
    """Correlated features, those of a trunk in miniature, with class means apart."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    labels = [classes[i] for i in torch.randint(len(classes), (size,), generator=generator).tolist()]
    centres = torch.randn(26, dim, generator=torch.Generator().manual_seed(98))
    offsets = centres[[ord(label) - ord("a") for label in labels]]
    return torch.randn(size, dim, generator=generator) @ mixing + offsets, labels


def statistics(seed: int, *, size: int = 300, dim: int = 8, classes: str = "abc") -> ClassStatistics:
    return ClassStatistics.from_features(*features(seed, size=size, dim=dim, classes=classes), fingerprint=FINGERPRINT)


def reference_of(dim: int = 8) -> WhiteningReference:
    return WhiteningReference.from_statistics(statistics(0, dim=dim, classes="ab"))


def test_the_reference_is_the_factor_of_the_scatter_per_sample() -> None:
    stats = statistics(0)
    wanted = equations_statistics.whitening_factor(stats.scatter.tolist(), 300)
    np.testing.assert_allclose(WhiteningReference.from_statistics(stats).factor.T, wanted, rtol=1e-6, atol=1e-7)


def test_whitening_is_its_equation_and_restoring_its_inverse() -> None:
    reference, scatter = reference_of(), statistics(1).scatter
    whitened = reference.whiten(scatter)
    wanted = equations_statistics.whitened(scatter.tolist(), reference.factor.T.tolist())
    np.testing.assert_allclose(whitened, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(reference.restore(whitened), scatter, rtol=1e-9, atol=1e-9)


def test_eight_bits_are_their_equation() -> None:
    reference, stats = reference_of(), statistics(1)
    got = decode8(encode8(stats, reference), reference)
    wanted = equations_statistics.eight_bit_scatter(stats.scatter.tolist(), reference.factor.T.tolist())
    np.testing.assert_allclose(got.scatter, wanted, rtol=1e-6, atol=1e-5)
    assert dict(got.counts) == dict(stats.counts)
    assert got.fingerprint == FINGERPRINT
    for name, mean in stats.means.items():
        assert torch.equal(got.means[name], mean.half().double())


@pytest.mark.parametrize(("dim", "num_classes"), [(60, 3), (200, 26)])
def test_the_size_is_half_a_square_of_bytes_and_two_per_mean(dim: int, num_classes: int) -> None:
    classes = "abcdefghijklmnopqrstuvwxyz"[:num_classes]
    data = encode8(statistics(1, dim=dim, classes=classes), reference_of(dim))
    assert len(data) <= dim * (dim + 1) // 2 + 2 * num_classes * dim + 4 * dim + 16 * num_classes + 700


def test_equal_statistics_give_equal_bytes_and_a_sent_scatter_survives_being_sent_again() -> None:
    reference, stats = reference_of(30), statistics(1, dim=30)
    data = encode8(stats, reference)
    assert encode8(stats, WhiteningReference.from_bytes(reference.to_bytes())) == data
    once = decode8(data, reference)
    again = decode8(encode8(once, reference), reference)
    assert torch.linalg.norm(again.scatter - once.scatter) <= 1e-2 * torch.linalg.norm(once.scatter)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(1, 10_000),
    size=st.integers(1, 80),
    dim=st.integers(1, 40),
    classes=st.sampled_from(["a", "ab", "abcdefgh"]),
)
def test_honest_statistics_of_any_size_are_taken_and_solved(seed: int, size: int, dim: int, classes: str) -> None:
    reference = reference_of(dim)
    stats = decode8(encode8(statistics(seed, size=size, dim=dim, classes=classes), reference), reference)
    assert torch.equal(stats.scatter, stats.scatter.T)
    assert torch.isfinite(solve_ridge(stats, RouterConfig()).weights).all()
    assert torch.isfinite(solve_ridge(raise_eigenvalues(stats, reference), RouterConfig()).weights).all()


def test_fewer_samples_than_features_are_shrunk_until_positive() -> None:
    """Of 20 samples in 60 dimensions the correlations are singular, and rounding alone would make them indefinite."""
    reference = reference_of(60)
    data = encode8(statistics(1, size=20, dim=60), reference)
    tensors, _ = unpack(data, {"correlations": torch.int8, "deviations": torch.float32, "means": torch.float16,
                               "step": torch.float32})  # fmt: skip
    steps = torch.zeros(60, 60, dtype=torch.float64)
    steps[tuple(torch.triu_indices(60, 60, offset=1))] = tensors["correlations"].double()
    least = torch.linalg.eigvalsh(steps + steps.T)[0].item()
    assert 0 <= 1 + least * tensors["step"].item() < 1e-3


def test_features_without_variance_are_guarded() -> None:
    values, labels = features(1, size=200, dim=8)
    values[:, 3] = 1.5
    stats = ClassStatistics.from_features(values, labels, fingerprint=FINGERPRINT)
    from_constant = WhiteningReference.from_statistics(stats)
    for reference in (from_constant, reference_of()):
        got = decode8(encode8(stats, reference), reference)
        assert got.scatter[3].abs().max() <= 0.05 * stats.scatter.trace() / 8
        assert torch.isfinite(solve_ridge(raise_eigenvalues(got, reference), RouterConfig()).weights).all()


def test_one_sample_a_class_has_no_scatter() -> None:
    reference = reference_of()
    stats = ClassStatistics.from_features(torch.randn(2, 8), ["a", "b"], fingerprint=FINGERPRINT)
    assert torch.equal(decode8(encode8(stats, reference), reference).scatter, torch.zeros(8, 8, dtype=torch.float64))


def test_four_skewed_peers_keep_their_accuracy() -> None:
    values, labels = features(7, size=1600, dim=40, classes="abcdef")
    owner = [min(3, (ord(label) - ord("a")) * 4 // 6 if i % 3 else i // 3 % 4) for i, label in enumerate(labels)]
    rows = [[i for i, peer in enumerate(owner) if peer == k] for k in range(4)]
    parts = [ClassStatistics.from_features(values[of], [labels[i] for i in of], fingerprint=FINGERPRINT) for of in rows]
    reference = reference_of(40)
    sent = {k: decode8(encode8(part, reference), reference) for k, part in enumerate(parts)}
    merged = raise_eigenvalues(sum_contributions(sent), reference)
    test_values, test_labels = features(8, size=2000, dim=40, classes="abcdef")

    def accuracy(stats: ClassStatistics) -> float:
        found = solve_ridge(stats, RouterConfig()).class_argmax(test_values)
        return sum(a == b for a, b in zip(found, test_labels, strict=True)) / len(test_labels)

    assert accuracy(merged) >= accuracy(sum_contributions(dict(enumerate(parts)))) - 0.003


def test_small_eigenvalues_are_raised_and_no_others() -> None:
    reference, stats = reference_of(), statistics(1, size=5)
    raised = raise_eigenvalues(stats, reference, floor=0.05)
    before, after = (correlations(reference.whiten(s.scatter)) for s in (stats, raised))
    values, vectors = torch.linalg.eigh(before)
    assert values[0] < 0.05 < values[-1]
    wanted = vectors @ torch.diag(values.clamp(min=0.05)) @ vectors.T
    deviations = wanted.diagonal().sqrt()
    np.testing.assert_allclose(after, wanted / deviations / deviations[:, None], rtol=1e-6, atol=1e-6)
    enough = statistics(1)
    assert raise_eigenvalues(enough, reference, floor=0.05) is enough


def correlations(matrix: Tensor) -> Tensor:
    deviations = matrix.diagonal().sqrt()
    return matrix / deviations / deviations[:, None]


def test_references_travel_by_digest() -> None:
    reference = reference_of(30)
    again = WhiteningReference.from_bytes(reference.to_bytes())
    assert again.digest == reference.digest
    assert torch.equal(again.factor, reference.factor)
    assert again.fingerprint == FINGERPRINT
    assert len(reference.to_bytes()) <= 4 * 30 * 31 // 2 + 300


def test_a_calibration_set_without_variance_is_refused() -> None:
    with pytest.raises(UnsafeStatistics, match="varies"):
        WhiteningReference.from_statistics(ClassStatistics.from_features(torch.ones(5, 3), ["a"] * 5))


@pytest.mark.parametrize(
    ("factor", "config"),
    [
        (torch.tensor([1.0, 0.5]), {"fingerprint": None}),
        (torch.empty(0), {"fingerprint": None}),
        (torch.tensor([1.0, 0.5, 0.0]), {"fingerprint": None}),
        (torch.tensor([1.0, 0.5, -1.0]), {"fingerprint": None}),
        (torch.tensor([1.0, 0.5, 1e-7]), {"fingerprint": None}),
        (torch.tensor([1.0, float("nan"), 1.0]), {"fingerprint": None}),
        (torch.tensor([[1.0, 0.5, 1.0]]), {"fingerprint": None}),
        (torch.tensor([1.0, 0.5, 1.0]), {"fingerprint": "x"}),
        (torch.tensor([1.0, 0.5, 1.0]), {}),
    ],
)
def test_references_that_are_none_are_refused(factor: Tensor, config: dict[str, object]) -> None:
    WhiteningReference.from_bytes(pack({"factor": torch.tensor([1.0, 0.5, 1.0])}, {"fingerprint": None}))
    with pytest.raises(UnsafeStatistics):
        WhiteningReference.from_bytes(pack({"factor": factor}, config))


def test_other_features_and_other_references_are_refused_by_name() -> None:
    reference, stats = reference_of(), statistics(1)
    data = encode8(stats, reference)
    other = statistics_fingerprint("b" * 64, b"")
    with pytest.raises(FingerprintMismatch):
        decode8(data, WhiteningReference(reference.factor, other))
    with pytest.raises(FingerprintMismatch):
        encode8(stats, WhiteningReference(reference.factor, other))
    with pytest.raises(UnsafeStatistics, match="another reference"):
        decode8(data, WhiteningReference.from_statistics(statistics(5)))
    with pytest.raises(UnsafeStatistics):
        decode8(data, reference_of(9))
    with pytest.raises(UnsafeStatistics, match="9 features"):
        encode8(statistics(1, dim=9), reference)


def hostile(changes: dict[str, Any]) -> tuple[bytes, WhiteningReference]:
    reference = reference_of(3)
    tensors: dict[str, Tensor] = {
        "correlations": torch.tensor([10, -20, 30], dtype=torch.int8),
        "deviations": torch.tensor([1.0, 2.0, 3.0]),
        "means": torch.ones(2, 3, dtype=torch.float16),
        "step": torch.tensor([0.005]),
    }
    config = {"counts": {"a": 4, "b": 5}, "fingerprint": FINGERPRINT, "reference": reference.digest}
    for name, value in changes.items():
        if name in config:
            config[name] = value
        else:
            tensors[name] = value
    return pack(tensors, config), reference


@pytest.mark.parametrize(
    "changes",
    [
        {"correlations": torch.tensor([10, -20], dtype=torch.int8)},
        {"correlations": torch.tensor([[10, -20, 30]], dtype=torch.int8)},
        {"correlations": torch.tensor([127, 127, -127], dtype=torch.int8), "step": torch.tensor([1 / 127])},  # not PSD
        {"correlations": torch.tensor([-128, 0, 0], dtype=torch.int8), "step": torch.tensor([1 / 127])},
        {"correlations": torch.tensor([10.0, -20.0, 30.0])},
        {"deviations": torch.tensor([1.0, 2.0])},
        {"deviations": torch.tensor([1.0, -2.0, 3.0])},
        {"deviations": torch.tensor([1.0, 0.0, 3.0])},  # correlated without varying
        {"deviations": torch.tensor([1.0, float("inf"), 3.0])},
        {"deviations": torch.tensor([1.0, 1e30, 3.0])},
        {"means": torch.ones(1, 3, dtype=torch.float16)},
        {"means": torch.full((2, 3), float("nan"), dtype=torch.float16)},
        {"means": torch.ones(2, 3)},
        {"step": torch.tensor([-0.005])},
        {"step": torch.tensor([0.02])},
        {"step": torch.tensor([0.005, 0.005])},
        {"counts": {"a": 4}},
        {"counts": {"a": 4, "b": 0}},
        {"counts": {"a": 4, "b": 2**41}},
        {"counts": {"a": 4, "": 5}},
        {"counts": None},
        {"fingerprint": "short"},
        {"fingerprint": 3},
        {"reference": "c" * 64},
        {"foreign": torch.ones(1)},
    ],
)
def test_statistics_of_no_samples_are_refused(changes: dict[str, Any]) -> None:
    assert decode8(*hostile({})).feature_dim == 3
    with pytest.raises(UnsafeStatistics):
        decode8(*hostile(changes))


def test_a_header_that_promises_more_than_was_sent_allocates_nothing() -> None:
    header = {"correlations": {"dtype": "I8", "shape": [2**40], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    with pytest.raises(UnsafeStatistics):
        decode8(len(text).to_bytes(8, "little") + text, reference_of())
    with pytest.raises(UnsafeStatistics):
        decode8((2**62).to_bytes(8, "little"), reference_of())


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(UnsafeStatistics):
        decode8(data, REFERENCE)
    with pytest.raises(UnsafeStatistics):
        WhiteningReference.from_bytes(data)


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_still_solvable(position: int, bit: int) -> None:
    data = bytearray(DATA)
    data[position % len(data)] ^= 1 << bit
    try:
        stats = decode8(bytes(data), REFERENCE)
    except UnsafeStatistics:
        return
    assert torch.isfinite(solve_ridge(stats, RouterConfig()).weights).all()


def test_what_does_not_fit_the_types_is_not_sent() -> None:
    stats = statistics(1)
    far = ClassStatistics(stats.counts, {name: 1e5 * mean for name, mean in stats.means.items()}, stats.scatter,
                          FINGERPRINT)  # fmt: skip
    with pytest.raises(UnsafeStatistics, match="float16"):
        encode8(far, reference_of())


REFERENCE = reference_of()
DATA = encode8(statistics(2), REFERENCE)
