"""What of a vector survives each codec, what a payload is, and what is refused as one."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from experts.averaging import CODECS, Codec, codec_named
from experts.errors import CorruptWeights, MalformedPayload, ShapeMismatch, UnknownCodec

LARGEST = float(np.finfo(np.float32).max)

Vector = NDArray[np.float32]

codecs = st.sampled_from(CODECS).map(codec_named)


def of_any_scale(length: int, seed: int, exponent: float) -> Vector:
    """Values of both signs around 10^exponent, some of them exactly 0."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=length) * (generator.random(length) < 0.9) * 10.0**exponent
    return np.clip(values, -LARGEST, LARGEST).astype(np.float32)


odd = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40).map(
    lambda values: np.array(values, np.float32)
)
long = st.builds(of_any_scale, st.integers(0, 1100), st.integers(0, 10**6), st.floats(-46, 38.4))
vectors = st.one_of(odd, long)


def through(codec: Codec, vector: Vector) -> Vector:
    return codec.decode(codec.encode(vector), len(vector))


def same_bits(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


@settings(deadline=None)  # a shared machine is slow at times
@given(codecs, vectors)
def test_the_header_of_a_length_is_that_of_every_payload_of_it(codec: Codec, vector: Vector) -> None:
    payload = codec.encode(vector)
    assert payload.ndim == 1
    assert (payload.dtype.name, len(payload)) == codec.payload_header(len(vector))


@settings(deadline=None)
@given(codecs, vectors)
@example(codec_named("int8"), np.array([LARGEST, -LARGEST], np.float32))
def test_what_is_decoded_is_a_finite_vector_that_loses_nothing_more_the_second_time(
    codec: Codec, vector: Vector
) -> None:
    once = through(codec, vector)
    assert once.dtype == np.float32
    assert once.shape == vector.shape
    assert np.isfinite(once).all()
    assert np.array_equal(through(codec, once), once)


@settings(deadline=None)
@given(codecs, vectors)
def test_the_same_vector_gives_the_same_bytes_and_they_the_same_bits(codec: Codec, vector: Vector) -> None:
    payload = codec.encode(vector)
    assert same_bits(codec.encode(vector.copy()), payload)
    assert same_bits(codec.decode(payload.copy(), len(vector)), codec.decode(payload, len(vector)))


@settings(deadline=None)
@given(codecs, vectors)
def test_encoding_leaves_the_vector_and_decoding_the_payload_as_they_were(codec: Codec, vector: Vector) -> None:
    before = vector.copy()
    payload = codec.encode(vector)
    sent = payload.copy()
    codec.decode(payload, len(vector))
    assert same_bits(vector, before)
    assert same_bits(payload, sent)


@settings(deadline=None)
@given(vectors)
def test_none_keeps_every_bit(vector: Vector) -> None:
    assert same_bits(through(codec_named("none"), vector), vector)


@settings(deadline=None)
@given(vectors)
def test_float16_is_off_by_half_a_unit_in_its_last_place_and_saturates(vector: Vector) -> None:
    expected = np.clip(vector.astype(np.float64), -65504, 65504)
    bound = np.maximum(np.abs(expected) * 2.0**-11, 2.0**-25)
    assert (np.abs(through(codec_named("float16"), vector) - expected) <= bound).all()


@settings(deadline=None)
@given(vectors)
def test_int8_is_off_by_half_a_level_of_the_largest_of_its_block(vector: Vector) -> None:
    decoded = through(codec_named("int8"), vector)
    for start in range(0, len(vector), 256):
        block = vector[start : start + 256].astype(np.float64)
        # The scale keeps 17 bits, and a block of less than 1.5e-36 becomes 0.
        bound = np.abs(block).max() / 254 * (1 + 2.0**-15) + 1.5e-36
        assert (np.abs(decoded[start : start + 256] - block) <= bound).all()


def test_int8_keeps_small_values_beside_a_block_of_large_ones() -> None:
    vector = np.repeat(np.array([1000.0, 0.001], np.float32), 256)
    assert through(codec_named("int8"), vector) == pytest.approx(vector, rel=1e-4)


@settings(deadline=None)
@given(vectors)
def test_topk_keeps_a_sixteenth_that_no_other_value_exceeds(vector: Vector) -> None:
    decoded = through(codec_named("topk"), vector)
    kept = math.ceil(len(vector) / 16)
    places = np.flatnonzero(decoded)
    assert len(places) <= kept
    halves = np.clip(vector[places].astype(np.float64), -65504, 65504)
    assert (np.abs(decoded[places] - halves) <= np.maximum(np.abs(halves) * 2.0**-11, 2.0**-25)).all()
    # What was left out is at most as large as what was kept, or too small for a float16.
    magnitudes = np.abs(vector)
    edge = np.sort(magnitudes)[-kept] if kept else 0.0
    left_out = np.setdiff1d(np.arange(len(vector)), places)
    assert (magnitudes[left_out] <= max(edge, 2.0**-25)).all()


def test_topk_takes_the_first_of_equal_values() -> None:
    vector = np.full(64, -1.0, np.float32)
    vector[40] = 2.0
    assert np.flatnonzero(through(codec_named("topk"), vector)).tolist() == [0, 1, 2, 40]


@pytest.mark.parametrize(
    ("name", "length", "header"),
    [
        ("none", 1000, ("float32", 1000)),
        ("float16", 1000, ("float16", 1000)),
        ("int8", 1000, ("uint8", 1000 + 4 * 4)),
        ("int8", 256, ("uint8", 256 + 4)),
        ("topk", 1000, ("uint8", 6 * 63)),
        ("topk", 1, ("uint8", 6)),
        *((name, 0, (dtype, 0)) for name, dtype in zip(CODECS, ("float32", "float16", "uint8", "uint8"), strict=True)),
    ],
)
def test_a_payload_is_as_long_as_its_codec_says(name: str, length: int, header: tuple[str, int]) -> None:
    assert codec_named(name).payload_header(length) == header


def test_payloads_are_the_bytes_that_their_layout_names() -> None:
    vector = np.zeros(32, np.float32)
    vector[[3, 20]] = [127.0, -254.0]
    int8 = codec_named("int8").encode(vector).tobytes()
    assert int8[:4] == np.array([2.0], "<f4").tobytes()
    assert np.frombuffer(int8[4:], np.int8)[[2, 3, 20]].tolist() == [0, 64, -127]
    topk = codec_named("topk").encode(vector).tobytes()
    assert topk == np.array([3, 20], "<u4").tobytes() + np.array([127.0, -254.0], "<f2").tobytes()


def test_a_codec_that_nobody_knows_is_named() -> None:
    with pytest.raises(UnknownCodec) as caught:
        codec_named("gzip")
    assert caught.value.name == "gzip"
    assert caught.value.known == tuple(sorted(CODECS))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_not_sent(name: str, value: float) -> None:
    with pytest.raises(CorruptWeights):
        codec_named(name).encode(np.array([1.0, value], np.float32))


@pytest.mark.parametrize("name", CODECS)
def test_only_one_float32_vector_is_encoded(name: str) -> None:
    with pytest.raises(CorruptWeights):
        codec_named(name).encode(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch):
        codec_named(name).encode(np.zeros((3, 1), np.float32))


@settings(deadline=None)
@given(codecs, st.integers(0, 600), st.sampled_from(["float16", "float32", "uint8", "int8", "int64"]), st.data())
def test_a_payload_of_another_type_or_size_is_refused(
    codec: Codec, length: int, dtype: str, data: st.DataObject
) -> None:
    wanted, size = codec.payload_header(length)
    got = data.draw(st.integers(0, size + 3).filter(lambda got: (dtype, got) != (wanted, size)))
    with pytest.raises(MalformedPayload) as caught:
        codec.decode(np.zeros(got, dtype), length)
    assert caught.value.codec == codec.name


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_in_rows_is_refused(name: str) -> None:
    payload = codec_named(name).encode(np.ones(32, np.float32))
    with pytest.raises(MalformedPayload):
        codec_named(name).decode(payload[np.newaxis], 32)


@settings(deadline=None)
@given(codecs, st.integers(0, 600), st.randoms(use_true_random=False))
def test_any_bytes_decode_to_a_finite_vector_or_are_refused_by_name(codec: Codec, length: int, random: object) -> None:
    dtype, size = codec.payload_header(length)
    count = size * np.dtype(dtype).itemsize
    payload = np.frombuffer(random.randbytes(count), dtype)  # type: ignore[attr-defined]
    try:
        decoded = codec.decode(payload, length)
    except MalformedPayload:
        return
    assert decoded.shape == (length,)
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("name", ["none", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_payload_with_a_value_that_is_not_finite_is_refused(name: str, value: float) -> None:
    payload = codec_named(name).encode(np.ones(8, np.float32)).copy()
    payload[5] = value
    with pytest.raises(MalformedPayload):
        codec_named(name).decode(payload, 8)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, LARGEST / 126])
def test_a_scale_that_no_finite_block_has_is_refused(scale: float) -> None:
    payload = codec_named("int8").encode(np.ones(300, np.float32))
    payload[4:8] = np.array([scale], "<f4").view(np.uint8)
    with pytest.raises(MalformedPayload):
        codec_named("int8").decode(payload, 300)


def test_a_level_beyond_the_symmetric_ones_is_refused() -> None:
    payload = codec_named("int8").encode(np.ones(8, np.float32))
    payload[6] = 128  # -128 as int8
    with pytest.raises(MalformedPayload):
        codec_named("int8").decode(payload, 8)


@pytest.mark.parametrize("places", [(4, 4), (5, 4), (4, 32), (4, 2**32 - 1)])
def test_places_that_do_not_increase_or_lie_beyond_the_vector_are_refused(places: tuple[int, int]) -> None:
    payload = codec_named("topk").encode(np.ones(32, np.float32))
    payload[:8] = np.array(places, "<u4").view(np.uint8)
    with pytest.raises(MalformedPayload):
        codec_named("topk").decode(payload, 32)


def test_a_kept_value_that_is_not_finite_is_refused() -> None:
    payload = codec_named("topk").encode(np.ones(32, np.float32))
    payload[8:] = np.array([1.0, math.inf], "<f2").view(np.uint8)
    with pytest.raises(MalformedPayload):
        codec_named("topk").decode(payload, 32)
