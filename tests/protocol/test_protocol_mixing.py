"""How replicas mix: everybody works out the same groups, and all of them come to one mean."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.identifiers import peer_id_of
from protocol.mixing import cycle_of, grid_of, group_in_round, rounds_to_mean

METHODS = ("group", "hypercube", "random")


def peers(number: int) -> tuple[str, ...]:
    return tuple(sorted(peer_id_of(bytes([0, i // 256, i % 256])) for i in range(number)))


def groups(replicas, number, **how) -> set[tuple[str, ...]]:
    return {group_in_round(me, replicas, number, **how) for me in replicas}


def mixed(values: np.ndarray, rounds: int, *, first: int = 0, **how) -> np.ndarray:
    """What each replica holds after so many rounds in each of which every group takes its mean."""
    replicas = peers(len(values))
    held = dict(zip(replicas, values, strict=True))
    for number in range(first, first + rounds):
        for group in groups(replicas, number, **how):
            mean = np.mean([held[peer] for peer in group])
            held |= dict.fromkeys(group, mean)
    return np.array([held[peer] for peer in replicas])


@given(st.integers(1, 80), st.sampled_from(METHODS), st.integers(2, 16), st.integers(0, 10_000))
def test_the_groups_of_a_round_part_the_replicas(size, method, most, number):
    replicas = peers(size)
    found = groups(replicas, number, method=method, most=most)
    assert sorted(peer for group in found for peer in group) == list(replicas)
    assert max(map(len, found)) <= (most if method == "group" else 2)
    assert all(group == tuple(sorted(group)) for group in found)


@given(st.integers(2, 300), st.integers(2, 16))
def test_a_grid_holds_all_replicas_with_as_few_axes_as_can_be(size, most):
    shape = grid_of(size, most)
    assert all(2 <= side <= most for side in shape)
    assert math.prod(shape) >= size
    assert most ** (len(shape) - 1) < size


def test_up_to_the_groups_size_all_average_at_once():
    assert grid_of(1, 16) == ()
    assert [grid_of(size, 16) for size in (2, 7, 16)] == [(2,), (7,), (16,)]
    assert group_in_round(peers(7)[3], peers(7), 12, method="group", most=16) == peers(7)


def test_of_grids_with_as_many_axes_the_fullest_is_taken():
    assert grid_of(18, 16) == (3, 6)
    assert grid_of(34, 16) == (5, 7)
    assert grid_of(1000, 16) == (10, 10, 10)


@pytest.mark.parametrize(
    ("size", "method", "most"),
    [(5, "group", 16), (16, "group", 16), (48, "group", 16), (100, "group", 16), (27, "group", 3), (8, "hypercube", 2),
     (64, "hypercube", 2), (2, "random", 2)],
)  # fmt: skip
@pytest.mark.parametrize("first", [0, 1, 7])
def test_full_grids_come_to_the_mean_in_the_rounds_they_say(size, method, most, first):
    values = np.random.default_rng(1).normal(size=size)
    rounds = rounds_to_mean(size, method=method, most=most)
    assert rounds == cycle_of(size, method=method, most=most) or method == "random"
    held = mixed(values, rounds, first=first, method=method, most=most)
    assert np.allclose(held, values.mean(), atol=1e-12)
    if rounds > 1:
        assert not np.allclose(mixed(values, rounds - 1, first=first, method=method, most=most), values.mean())


@pytest.mark.parametrize(("size", "method"), [(17, "group"), (47, "group"), (6, "hypercube"), (8, "random")])
def test_others_come_close_to_it(size, method):
    assert rounds_to_mean(size, method=method, most=16) is None
    values = np.random.default_rng(1).normal(size=size)
    spreads = [mixed(values, rounds, method=method, most=16).std() for rounds in (0, 12, 40)]
    assert spreads[1] < spreads[0] / 30
    assert spreads[2] < spreads[0] / 1e4


def test_random_pairs_differ_from_round_to_round():
    assert len({frozenset(groups(peers(8), number, method="random", most=2)) for number in range(50)}) > 30
