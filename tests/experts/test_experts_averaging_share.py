"""A butterfly exchange by hand: everybody comes to one mean, and nothing that a code cannot say is lost."""

import equations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.averaging import CODECS, Averaged, Share, codec_named
from experts.errors import MalformedPayload

LOSSY = tuple(name for name in CODECS if name != "none")


def exchange(vectors, codec: str, *, reference=None, weights=None) -> list[Averaged]:
    """What each member comes to."""
    weights = weights or [1.0] * len(vectors)
    shares = [Share(vector, reference, codec_named(codec), weights, index) for index, vector in enumerate(vectors)]
    means = [
        share.reduce({other: shares[other].part_for(index) for other in range(len(shares)) if other != index})
        for index, share in enumerate(shares)
    ]
    return [share.conclude(means) for share in shares]


def vectors_of(members: int, length: int, seed: int, *, spread: float = 1.0) -> tuple[np.ndarray, list[np.ndarray]]:
    """A common reference, and a replica of each member around it."""
    random = np.random.default_rng(seed)
    reference = random.normal(size=length).astype(np.float32)
    return reference, [(reference + spread * random.normal(size=length)).astype(np.float32) for _ in range(members)]


@given(st.integers(2, 6), st.integers(1, 700), st.integers(0, 999))
@settings(deadline=None)
def test_without_compression_all_come_to_the_mean(members, length, seed):
    _, vectors = vectors_of(members, length, seed)
    mean = np.array(equations.mean_of([vector.tolist() for vector in vectors]))
    for vector, averaged in zip(vectors, exchange(vectors, "none"), strict=True):
        assert np.allclose(averaged.mean, mean, atol=1e-6)
        assert np.allclose(vector + averaged.delta, mean, atol=1e-6)


def test_weights_count_as_they_say():
    _, vectors = vectors_of(3, 50, 1)
    weights = [1.0, 5.0, 2.5]
    for averaged in exchange(vectors, "none", weights=weights):
        assert np.allclose(averaged.mean, np.average(vectors, axis=0, weights=weights), atol=1e-6)


@given(st.integers(2, 6), st.integers(1, 700), st.integers(0, 999), st.sampled_from(CODECS), st.booleans())
@settings(deadline=None)
def test_all_hold_the_same_mean_and_the_weighted_sum_stays_what_it_was(members, length, seed, codec, is_weighted):
    reference, vectors = vectors_of(members, length, seed)
    weights = [1.0 + index for index in range(members)] if is_weighted else [1.0] * members
    results = exchange(vectors, codec, reference=reference, weights=weights)
    for averaged in results[1:]:
        assert np.array_equal(averaged.mean, results[0].mean)
    before = np.average(vectors, axis=0, weights=weights)
    after = [vector + averaged.delta for vector, averaged in zip(vectors, results, strict=True)]
    assert np.allclose(np.average(after, axis=0, weights=weights), before, atol=2e-6 * max(1, np.abs(vectors).max()))


@pytest.mark.parametrize("codec", LOSSY)
def test_what_was_kept_back_is_sent_later_until_all_are_one(codec):
    reference, vectors = vectors_of(4, 600, 3)
    mean = np.mean(vectors, axis=0)
    spreads = []
    for _ in range(60):
        results = exchange(vectors, codec, reference=reference)
        vectors = [vector + averaged.delta for vector, averaged in zip(vectors, results, strict=True)]
        reference = results[0].mean
        spreads.append(float(np.abs(np.subtract(vectors, mean)).max()))
    assert np.allclose(np.mean(vectors, axis=0), mean, atol=1e-5)
    assert spreads[-1] < 1e-5 < spreads[0]


@pytest.mark.parametrize(("codec", "error"), [("float16", 1e-3), ("int8", 2e-2)])
def test_a_code_is_of_the_difference_and_not_of_the_parameters(codec, error):
    reference, vectors = vectors_of(3, 500, 4, spread=1e-3)
    far = [(vector + 1000).astype(np.float32) for vector in vectors]
    (averaged, *_) = exchange(far, codec, reference=(reference + 1000).astype(np.float32))
    assert np.abs(averaged.mean - np.mean(far, axis=0)).max() < 1e-3 * error + 1e-4


def test_a_part_that_cannot_be_decoded_is_refused():
    reference, vectors = vectors_of(2, 10, 5)
    share = Share(vectors[0], reference, codec_named("int8"), [1.0, 1.0], 0)
    assert share.part_header == ("uint8", 4 + 5)
    with pytest.raises(MalformedPayload):
        share.reduce({1: np.zeros(3, np.uint8)})
    with pytest.raises(MalformedPayload):
        share.conclude([np.zeros(3, np.uint8), np.zeros(3, np.uint8)])
