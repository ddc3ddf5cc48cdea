"""When the requests of a run are due, and what they ask about."""

import numpy as np
import pytest

from meshnode.bench.images import Batches, digits_test_images
from meshnode.bench.load import Load, poisson_arrivals


def test_arrivals_are_those_of_their_seed() -> None:
    first = poisson_arrivals(50, 20, seed=7)
    np.testing.assert_array_equal(first, poisson_arrivals(50, 20, seed=7))
    assert not np.array_equal(first[:100], poisson_arrivals(50, 20, seed=8)[:100])


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    longer = poisson_arrivals(1000, 20, seed=0)  # several blocks
    shorter = poisson_arrivals(1000, 9, seed=0)
    np.testing.assert_array_equal(longer[: len(shorter)], shorter)
    assert longer[len(shorter)] >= 9


@pytest.mark.parametrize("rate", [0.5, 50.0, 3000.0])
def test_arrivals_ascend_within_the_span(rate: float) -> None:
    due_s = poisson_arrivals(rate, 12, seed=1)
    assert (np.diff(due_s) > 0).all()
    assert due_s[0] >= 0
    assert due_s[-1] < 12


def test_gaps_are_exponential_with_the_rates_mean() -> None:
    rate = 200.0
    gaps_s = np.diff(poisson_arrivals(rate, 500, seed=3))
    assert len(gaps_s) == pytest.approx(rate * 500, rel=0.01)  # 3 deviations of sqrt(100,000)
    assert gaps_s.mean() == pytest.approx(1 / rate, rel=0.02)
    assert gaps_s.std() == pytest.approx(1 / rate, rel=0.03)  # a steady rate would have 0
    for share in (0.1, 0.5, 0.9):  # P(gap <= t) = 1 - exp(-rate t)
        assert np.quantile(gaps_s, share) == pytest.approx(-np.log(1 - share) / rate, rel=0.05)
    # Without memory: a long gap says nothing of the next.
    assert abs(np.corrcoef(gaps_s[:-1], gaps_s[1:])[0, 1]) < 0.02


def test_a_span_of_nothing_has_no_arrival() -> None:
    assert len(poisson_arrivals(100, 0, seed=0)) == 0


def test_a_load_spans_its_warm_up_and_what_is_measured() -> None:
    assert Load(rate_per_s=1, warm_up_s=2, duration_s=10).span_s == 12


def test_batches_go_round_all_images_in_the_order_of_the_seed() -> None:
    images = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    batches = Batches(images, 3, seed=5)
    asked = [int(row) for number in range(7) for row in batches(number)[:, 0, 0]]
    assert sorted(asked[:7]) == list(range(7))
    assert asked == asked[:7] * 3
    assert list(Batches(images, 3, seed=5)(4)[:, 0, 0]) == asked[12:15], "whatever was asked before"
    assert list(Batches(images, 7, seed=6)(0)[:, 0, 0]) != asked[:7]


def test_one_image_fills_a_batch() -> None:
    assert Batches(np.ones((1, 4, 4, 3), np.uint8), 5, seed=0)(9).shape == (5, 4, 4, 3)


def test_the_images_that_are_here_without_a_file_are_the_digits_test_part() -> None:
    images = digits_test_images()
    assert images.shape == (359, 8, 8)
    assert images.dtype == np.uint8
