"""The reservoir: uniform, independent of batching, and exactly itself after a restart."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from experts.continual.replay import ReservoirBuffer
from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange
from experts.generators import torch_generator


def stream(length: int, start: int = 0) -> tuple[NDArray[np.uint8], list[str]]:
    """Images whose first pixel is their number, with the number as label."""
    images = np.zeros((length, 2, 3), dtype=np.uint8)
    images[:, 0, 0] = np.arange(start, start + length)
    return images, [str(number) for number in range(start, start + length)]


def filled(length: int, capacity: int = 10, seed: int = 0) -> ReservoirBuffer:
    buffer = ReservoirBuffer(capacity, torch_generator(seed, "replay"))
    buffer.add(*stream(length))
    return buffer


def test_a_buffer_that_is_not_full_keeps_everything_in_order() -> None:
    buffer = filled(7)
    assert len(buffer) == 7
    assert buffer.labels == tuple("0123456")
    assert np.array_equal(buffer.images, stream(7)[0])


def test_images_and_labels_stay_together_at_capacity() -> None:
    buffer = filled(200)
    assert (len(buffer), buffer.num_seen) == (10, 200)
    assert [str(pixel) for pixel in buffer.images[:, 0, 0]] == list(buffer.labels)
    assert len(set(buffer.labels)) == 10


def test_every_item_of_the_stream_is_kept_with_equal_probability() -> None:
    kept = np.zeros(12)
    for seed in range(3000):
        for label in filled(12, capacity=3, seed=seed).labels:
            kept[int(label)] += 1
    # 3000 draws at probability 1/4 have a deviation of 23.7; five of them leave chance no room.
    assert np.abs(kept - 750).max() < 5 * 23.7


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=6))
def test_how_the_stream_is_cut_into_batches_does_not_matter(cuts: list[int]) -> None:
    buffer = ReservoirBuffer(10, torch_generator(0, "replay"))
    for start, end in itertools.pairwise([0, *sorted(cuts), 60]):
        buffer.add(*stream(end - start, start))
    assert buffer.labels == filled(60).labels


@pytest.mark.parametrize("seen", [0, 4, 10, 50])
def test_a_restarted_buffer_continues_exactly(seen: int) -> None:
    buffer = filled(seen)
    restarted = ReservoirBuffer.from_bytes(buffer.to_bytes())
    assert (restarted.capacity, restarted.num_seen, len(restarted)) == (10, seen, min(seen, 10))
    assert np.array_equal(restarted.images, buffer.images) or seen == 0
    for either in (buffer, restarted):
        either.add(*stream(100, 100))
    assert restarted.labels == buffer.labels
    assert np.array_equal(restarted.images, buffer.images)


def without(buffer: ReservoirBuffer, start: int, end: int) -> ReservoirBuffer:
    """The buffer once the items with these numbers have left its stream."""
    rows = [row for row, label in enumerate(buffer.labels) if start <= int(label) < end]
    buffer.drop(rows, {str(number): 1 for number in range(start, end)})
    return buffer


def test_what_left_is_nowhere_in_the_buffer_and_the_rest_stays() -> None:
    buffer = filled(30)
    before = {label: image for label, image in zip(buffer.labels, buffer.images, strict=True) if int(label) >= 12}
    without(buffer, 0, 12)
    assert buffer.num_seen == 18
    assert buffer.labels == tuple(before)
    assert np.array_equal(buffer.images, np.stack(list(before.values())))
    assert buffer._images is not None
    assert not buffer._images[len(buffer) :].any()
    assert bytes(range(1, 12)) not in buffer.to_bytes()


def test_after_some_have_left_every_remaining_and_later_item_is_kept_with_equal_probability() -> None:
    kept = np.zeros(12)
    for seed in range(3000):
        buffer = without(filled(8, capacity=3, seed=seed), 2, 6)
        buffer.add(*stream(4, 8))
        for label in buffer.labels:
            kept[int(label)] += 1
    assert not kept[2:6].any()
    # Of 8 items that are left or came later 3 are kept: probability 3/8, deviation 26.5.
    assert np.abs(kept[[0, 1, *range(6, 12)]] - 1125).max() < 5 * 26.5


@pytest.mark.parametrize(("seen", "start", "end"), [(50, 0, 20), (6, 2, 4), (50, 0, 50), (3, 0, 3)])
def test_a_buffer_that_some_have_left_goes_on_the_same_after_a_restart(seen: int, start: int, end: int) -> None:
    buffer = without(filled(seen), start, end)
    restarted = ReservoirBuffer.from_bytes(buffer.to_bytes())
    for either in (buffer, restarted):
        assert either.num_seen == seen - (end - start)
        either.add(*stream(100, 100))
    assert restarted.labels == buffer.labels
    assert np.array_equal(restarted.images, buffer.images)
    assert len(buffer) == 10


def test_a_buffer_that_nothing_has_left_has_the_bytes_it_always_had() -> None:
    assert b"left" not in filled(20).to_bytes()


def test_colour_images_are_kept_as_they_are() -> None:
    buffer = ReservoirBuffer(2, torch_generator(0, "replay"))
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    buffer.add(images, ["a", "b"])
    assert np.array_equal(ReservoirBuffer.from_bytes(buffer.to_bytes()).images, images)


def test_what_is_read_from_a_buffer_cannot_change_it() -> None:
    buffer = filled(5)
    buffer.images[:] = 255
    assert buffer.images[1, 0, 0] == 1


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((1, 2, 3), dtype=np.float32), ["a"]),
        (np.zeros((1, 2, 3), dtype=np.uint8), ["a", "b"]),
        (np.zeros((1, 3, 2), dtype=np.uint8), ["a"]),
        (np.zeros((2, 3), dtype=np.uint8), ["a", "b"]),
    ],
)
def test_items_of_another_form_are_refused_and_change_nothing(images: NDArray[np.uint8], labels: list[str]) -> None:
    buffer = filled(3)
    with pytest.raises(MalformedDataset):
        buffer.add(images, labels)
    assert (len(buffer), buffer.num_seen) == (3, 3)


def test_damaged_bytes_are_refused_by_name() -> None:
    data = filled(20).to_bytes()
    for damaged in (b"", data[:-1], data[:50], b"\x00" * 100):
        with pytest.raises(CorruptState):
            ReservoirBuffer.from_bytes(damaged)


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(SettingOutOfRange):
        ReservoirBuffer(0, torch.Generator())
