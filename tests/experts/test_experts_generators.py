"""Portable and named randomness."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.generators import portable_uniform, torch_generator


def philox_words(key: int, count: int) -> list[int]:
    """Philox-4x64-10 as in Salmon et al. 2011, sec. 4.3, in plain integers.

    The counter's first block is 1: numpy increments before it draws.
    """
    mask = (1 << 64) - 1
    words: list[int] = []
    block = 0
    while len(words) < count:
        block += 1
        c0, c1, c2, c3 = block, 0, 0, 0
        k0, k1 = key & mask, key >> 64
        for _ in range(10):
            high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 1 << 64)
            high1, low1 = divmod(0xCA5A826395121157 * c2, 1 << 64)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words.extend((c0, c1, c2, c3))
    return words[:count]


@settings(deadline=None)  # a shared machine is slow at times
@given(st.binary(max_size=40), st.text(max_size=20), st.integers(1, 30))
def test_a_portable_stream_follows_its_definition(seed: bytes, label: str, count: int) -> None:
    digest = hashlib.sha256(len(seed).to_bytes(8, "little") + seed + label.encode()).digest()
    expected = [(word >> 40) / 2**24 for word in philox_words(int.from_bytes(digest[:16], "little"), count)]
    drawn = portable_uniform(seed, label, (count,))
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


def test_a_portable_stream_never_changes() -> None:
    # Replicas of different versions would otherwise start apart: these bits are part of the protocol.
    assert (portable_uniform("expert", "hidden.weight", (2, 2)) * 2**24).tolist() == [
        [11285627, 161081],
        [15740174, 11625317],
    ]


def test_a_portable_stream_covers_the_unit_interval_evenly() -> None:
    drawn = portable_uniform("seed", "label", (40_000,)).numpy()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert abs(counts - 4_000).max() < 300


@pytest.mark.parametrize(("seed", "label"), [("a", "bc"), ("ab", "d"), ("b", "c")])
def test_seed_and_label_are_kept_apart(seed: str, label: str) -> None:
    assert not torch.equal(portable_uniform(seed, label, (4,)), portable_uniform("ab", "c", (4,)))


def test_text_and_its_utf8_bytes_are_one_seed() -> None:
    assert torch.equal(portable_uniform("é", "x", (3,)), portable_uniform("é".encode(), "x", (3,)))


def test_an_empty_shape_is_one_number_and_a_zero_dimension_none() -> None:
    assert portable_uniform("a", "b", ()).shape == ()
    assert portable_uniform("a", "b", (3, 0)).shape == (3, 0)


def test_generators_of_different_names_or_seeds_are_independent() -> None:
    streams = [
        tuple(torch.rand(3, generator=torch_generator(seed, name)).tolist())
        for seed in (0, 1, -1)
        for name in ("replay", "batches")
    ]
    assert len(set(streams)) == len(streams)
    assert streams[0] == tuple(torch.rand(3, generator=torch_generator(0, "replay")).tolist())


def test_named_generators_leave_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(0, "replay"))
    portable_uniform("a", "b", (3,))
    assert torch.equal(torch.get_rng_state(), before)
