"""What a codec leaves out of one vector goes with the next."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from experts.averaging import CODECS, codec_named, compress
from experts.errors import CorruptWeights, ShapeMismatch

Vector = NDArray[np.float32]


def draw(length: int, seed: int) -> Vector:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32)


@settings(deadline=None)  # a shared machine is slow at times
@given(st.sampled_from(CODECS), st.integers(1, 600), st.integers(1, 12), st.integers(0, 10**6))
def test_what_was_sent_and_what_is_left_over_are_all_there_was_to_send(
    name: str, length: int, rounds: int, seed: int
) -> None:
    codec = codec_named(name)
    sent, wanted, magnitude = np.zeros(length), np.zeros(length), np.zeros(length)
    residual = None
    for number in range(rounds):
        vector = draw(length, seed + number)
        payload, residual = compress(codec, vector, residual)
        sent += codec.decode(payload, length)
        wanted += vector
        magnitude += np.abs(vector)
    assert residual is not None
    assert (np.abs(sent + residual - wanted) <= 1e-5 * magnitude).all()


def test_a_round_is_the_equation() -> None:
    codec = codec_named("topk")
    vector, residual = draw(40, 1), draw(40, 2)
    payload, left = compress(codec, vector, residual)
    assert np.array_equal(payload, codec.encode(vector + residual))
    assert np.array_equal(left, vector + residual - codec.decode(payload, 40))


def test_every_value_of_a_constant_gradient_is_sent_in_the_end() -> None:
    # Without feedback topk would send the same two places for ever.
    codec = codec_named("topk")
    vector = np.linspace(1.0, 2.0, 32, dtype=np.float32)
    sent, residual = np.zeros(32), None
    for _ in range(400):
        payload, residual = compress(codec, vector, residual)
        sent += codec.decode(payload, 32)
    assert sent / 400 == pytest.approx(vector, rel=0.1)


def test_nothing_is_left_over_where_nothing_is_rounded() -> None:
    vector = draw(50, 3)
    payload, residual = compress(codec_named("none"), vector, None)
    assert np.array_equal(payload, vector)
    assert not residual.any()


@pytest.mark.parametrize("name", CODECS)
def test_a_round_that_did_not_commit_can_be_made_again_to_the_bit(name: str) -> None:
    vector, residual = draw(300, 4), draw(300, 5)
    before = vector.copy(), residual.copy()
    first = compress(codec_named(name), vector, residual)
    again = compress(codec_named(name), vector, residual)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert np.array_equal(vector, before[0])
    assert np.array_equal(residual, before[1])


def test_a_residual_of_another_length_is_refused_even_where_it_would_broadcast() -> None:
    with pytest.raises(ShapeMismatch) as caught:
        compress(codec_named("none"), draw(3, 0), draw(1, 0))
    assert caught.value.name == "residual"


def test_a_sum_that_overflows_is_refused() -> None:
    vector = np.full(3, 3e38, np.float32)
    with pytest.raises(CorruptWeights):
        compress(codec_named("int8"), vector, vector)
