"""Data sets in memory: parts, splits, shards, columns."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.data.dataset import ImageDataset, class_columns
from experts.errors import MalformedDataset, SettingOutOfRange, UnknownClasses

label_lists = st.lists(st.sampled_from(["cat", "dog", "eel"]), max_size=60)


def dataset(labels: list[str]) -> ImageDataset:
    """Images whose only pixel is their row, so that a part shows what it was taken from."""
    return ImageDataset(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1), tuple(labels))


def rows(part: ImageDataset) -> list[int]:
    return [int(pixel) for pixel in part.images.ravel()]


@settings(deadline=None)  # a shared machine is slow at times
@given(label_lists, st.floats(0, 1), st.integers(-5, 5))
def test_a_split_is_disjoint_whole_and_stratified(labels: list[str], ratio: float, seed: int) -> None:
    whole = dataset(labels)
    kept, held_out = whole.split(ratio, seed=seed)
    assert sorted(rows(kept) + rows(held_out)) == list(range(len(labels)))
    assert rows(kept) == sorted(rows(kept))
    for name, count in whole.class_counts.items():
        assert held_out.class_counts.get(name, 0) == round(ratio * count)
    for part in (kept, held_out):
        assert part.labels == tuple(labels[row] for row in rows(part))


@settings(deadline=None)
@given(label_lists, st.integers(1, 7), st.integers(-5, 5))
def test_shards_are_disjoint_whole_and_even(labels: list[str], num_shards: int, seed: int) -> None:
    shards = dataset(labels).shard(num_shards, seed=seed)
    assert len(shards) == num_shards
    assert sorted(row for shard in shards for row in rows(shard)) == list(range(len(labels)))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for name in set(labels):
        counts = [shard.class_counts.get(name, 0) for shard in shards]
        assert max(counts) - min(counts) <= 1


def test_a_split_depends_on_its_seed_and_on_nothing_else() -> None:
    whole = dataset(["cat", "dog"] * 20)
    first = rows(whole.split(0.25, seed=1)[1])
    assert first == rows(whole.split(0.25, seed=1)[1])
    assert first != rows(whole.split(0.25, seed=2)[1])


def test_parts_of_classes_keep_their_order() -> None:
    whole = dataset(["dog", "cat", "eel", "cat"])
    assert rows(whole.of_classes({"cat", "eel"})) == [1, 2, 3]
    assert whole.classes == ("cat", "dog", "eel")
    assert whole.class_counts == {"cat": 2, "dog": 1, "eel": 1}


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(UnknownClasses) as caught:
        dataset(["dog"]).of_classes(["dog", "yak"])
    assert caught.value.classes == ("yak",)
    assert caught.value.known == ("dog",)


def test_columns_follow_the_order_of_the_names_given() -> None:
    assert class_columns(["b", "a", "b"], ["b", "a"]).tolist() == [0, 1, 0]
    with pytest.raises(UnknownClasses):
        class_columns(["c"], ["b", "a"])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((1, 2, 2)), ("a",)),
        (np.zeros((1, 2), np.uint8), ("a",)),
        (np.zeros((1, 2, 2, 2), np.uint8), ("a",)),
        (np.zeros((1, 0, 2), np.uint8), ("a",)),
        (np.zeros((2, 2, 2), np.uint8), ("a",)),
        (np.zeros((1, 2, 2), np.uint8), ("",)),
        (np.zeros((1, 2, 2), np.uint8), (3,)),
        ([[[0]]], ("a",)),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images: Any, labels: Any) -> None:
    with pytest.raises(MalformedDataset):
        ImageDataset(images, labels)


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(SettingOutOfRange):
        dataset(["a"]).split(1.5, seed=0)
    with pytest.raises(SettingOutOfRange):
        dataset(["a"]).shard(0, seed=0)
