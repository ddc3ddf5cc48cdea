"""Memories of past data behind one interface: bounds, balance, exemplars, restarts."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from experts.continual.balanced import BalancedBuffer
from experts.continual.buffers import ReplayBuffer
from experts.continual.herding import HerdingBuffer, herded
from experts.continual.replay import ReservoirBuffer
from experts.continual.replay_kinds import Kind, ReplayConfig, make_replay, replay_from_bytes, replay_under
from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange
from experts.generators import torch_generator

KINDS: tuple[Kind, ...] = ("balanced", "herding", "reservoir")
IMAGE_BYTES = 6


def features(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) + 1


def stream(labels: str, start: int = 0) -> tuple[NDArray[np.uint8], list[str]]:
    """Images whose first pixel is their number."""
    images = np.zeros((len(labels), 2, 3), dtype=np.uint8)
    images[:, 0, 0] = np.arange(start, start + len(labels))
    images[:, 1, 1] = [7 * ord(label) % 251 for label in labels]
    return images, list(labels)


def made(kind: str, images: int = 6, seed: int = 0) -> ReplayBuffer:
    config = ReplayConfig(kind=kind, max_bytes=images * IMAGE_BYTES + 5)  # type: ignore[arg-type]
    return make_replay(config, torch_generator(seed, "replay"), features)


def contents(buffer: ReplayBuffer) -> tuple[list[int], tuple[str, ...]]:
    return buffer.images.reshape(len(buffer), -1)[:, 0].tolist(), buffer.labels


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_at_first_changes_no_bound(kind: str) -> None:
    buffer = made(kind)
    buffer.add(*stream(""))
    buffer.add(*stream("abcab" * 20))
    assert len(buffer) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_bound_what_is_kept_and_images_stay_with_their_names(kind: str) -> None:
    buffer = made(kind)
    labels = "abcab" * 20
    buffer.add(*stream(labels))
    assert (len(buffer), buffer.num_seen, buffer.num_bytes) == (6, 100, 6 * IMAGE_BYTES)
    assert all(labels[number] == name for number, name in zip(*contents(buffer), strict=True))
    assert len(set(contents(buffer)[0])) == 6
    images, names = buffer.labelled({"b"})
    assert set(names) == {"b"}
    assert [labels[number] for number in images[:, 0, 0]] == list(names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seen", [0, 4, 6, 50])
def test_a_restart_loses_nothing(kind: str, seen: int) -> None:
    buffer = made(kind)
    if seen:
        buffer.add(*stream(("aabac" * 10)[:seen]))
    restarted = replay_from_bytes(buffer.to_bytes(), features)
    assert type(restarted) is type(buffer)
    assert restarted.num_seen == seen
    for either in (buffer, restarted):
        either.add(*stream("cabd" * 20, start=100))
    assert contents(restarted) == contents(buffer)
    assert restarted.to_bytes() == buffer.to_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_refused(kind: str) -> None:
    buffer = made(kind)
    buffer.add(*stream("abc" * 10))
    data = buffer.to_bytes()
    for damaged in (b"", data[:-1], data[:80], b"\x00" * 200):
        with pytest.raises(CorruptState):
            replay_from_bytes(damaged, features)


@pytest.mark.parametrize("kind", ["balanced", "herding"])
def test_a_flipped_bit_is_refused(kind: str) -> None:
    buffer = made(kind)
    buffer.add(*stream("abc" * 10))
    data = bytearray(buffer.to_bytes())
    data[-1] ^= 1
    with pytest.raises(CorruptState):
        replay_from_bytes(bytes(data), features)


def test_buffers_saved_before_bytes_could_be_the_bound_still_load_and_are_saved_alike() -> None:
    buffer = ReservoirBuffer(3, torch_generator(0, "replay"))
    images, labels = stream("01234567")
    images[:, 1, 1] = 0
    buffer.add(images, labels)
    data = buffer.to_bytes()
    assert hashlib.sha256(data).hexdigest() == "a98e94705300ac22b3f66074e57cd47a3f16a4a29de6b42affd951d965e4df21"
    assert replay_from_bytes(data, features).to_bytes() == data


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_bytes_for_one_image_are_refused_and_nothing_changes(kind: str) -> None:
    buffer = make_replay(ReplayConfig(kind=kind, max_bytes=5), torch_generator(0, "r"), features)  # type: ignore[arg-type]
    with pytest.raises(SettingOutOfRange):
        buffer.add(*stream("a"))
    assert (len(buffer), buffer.num_seen) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_another_shape_are_refused_and_nothing_changes(kind: str) -> None:
    buffer = made(kind)
    buffer.add(*stream("ab"))
    with pytest.raises(MalformedDataset):
        buffer.add(np.zeros((1, 3, 2), dtype=np.uint8), ["a"])
    assert buffer.labels == ("a", "b")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReplayConfig(kind="ring"),  # type: ignore[arg-type]
        lambda: ReplayConfig(max_bytes=0),
        lambda: BalancedBuffer(None, torch.Generator()),
        lambda: ReservoirBuffer(4, torch.Generator(), max_bytes=0),
    ],
)
def test_bounds_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(SettingOutOfRange):
        make()


def test_the_smaller_of_two_bounds_counts() -> None:
    buffer = ReservoirBuffer(2, torch_generator(0, "replay"), max_bytes=5 * IMAGE_BYTES)
    buffer.add(*stream("a" * 9))
    assert len(buffer) == 2
    assert len(ReservoirBuffer.from_bytes(buffer.to_bytes())) == 2


@settings(deadline=None, max_examples=40)
@given(labels=st.text("abcde", min_size=1, max_size=80), cuts=st.lists(st.integers(0, 80), max_size=5))
def test_a_balanced_buffer_does_not_depend_on_how_the_stream_was_cut(labels: str, cuts: list[int]) -> None:
    whole, parts = made("balanced"), made("balanced")
    whole.add(*stream(labels))
    for start, end in itertools.pairwise([0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]):
        parts.add(*stream(labels[start:end], start))
    assert contents(parts) == contents(whole)


def test_a_rare_class_stays_whole_in_a_balanced_buffer_and_drowns_in_a_reservoir() -> None:
    labels = "a" * 100 + "b" * 2 + "a" * 100
    kept = {}
    for kind in ("balanced", "reservoir"):
        counts: Counter[str] = Counter()
        for seed in range(20):
            buffer = made(kind, seed=seed)
            buffer.add(*stream(labels))
            counts.update(buffer.labels)
        kept[kind] = counts["b"]
    assert kept["balanced"] == 40
    assert kept["reservoir"] < 10


def test_what_a_balanced_buffer_keeps_of_a_large_class_is_a_uniform_sample_of_it() -> None:
    kept = np.zeros(24)
    for seed in range(2000):
        buffer = made("balanced", images=4, seed=seed)
        buffer.add(*stream("ab" * 12))
        for number in contents(buffer)[0]:
            kept[number] += 1
    # Of 12 items of each class two stay: 2000 draws at 1/6 have a deviation of 16.7, five of which leave no room.
    assert np.abs(kept - 2000 / 6).max() < 5 * 16.7


@given(labels=st.text("abcdefgh", min_size=1, max_size=60))
@settings(deadline=None, max_examples=40)
def test_herding_gives_every_class_its_share_in_the_order_they_came(labels: str) -> None:
    buffer = made("herding", images=6)
    for number, label in enumerate(labels):
        buffer.add(*stream(label, start=number))
    came, counts = list(dict.fromkeys(labels)), Counter(labels)
    share, left = divmod(6, len(came))
    expected = {name: min(counts[name], share + (place < left)) for place, name in enumerate(came)}
    kept = Counter(buffer.labels)
    # A class that had to give places up does not get them back from nowhere.
    assert all(kept[name] <= expected[name] for name in came)
    assert all(kept[name] >= min(counts[name], share) for name in came)


def test_herding_chooses_greedily_what_brings_the_mean_nearest() -> None:
    points = torch.nn.functional.normalize(torch.randn(9, 3, generator=torch_generator(0, "points")).double())
    mean = points.mean(dim=0)
    chosen: list[int] = []
    for _ in range(4):
        best = min(
            (row for row in range(9) if row not in chosen),
            key=lambda row: float((mean - points[[*chosen, row]].mean(dim=0)).norm()),
        )
        chosen.append(best)
    assert herded(points, mean, 4) == chosen
    assert sorted(herded(points, mean, 20)) == list(range(9))


def test_exemplars_stand_for_a_class_better_than_a_random_sample() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (60, 2, 3), dtype=np.uint8)

    def off(kept: NDArray[np.uint8]) -> float:
        units = [torch.nn.functional.normalize(features(part).double()).mean(dim=0) for part in (images, kept)]
        return float((units[0] - units[1]).norm())

    exemplars = HerdingBuffer(6, features)
    exemplars.add(images, ["a"] * 60)
    samples = []
    for seed in range(5):
        sample = ReservoirBuffer(6, torch_generator(seed, "replay"))
        sample.add(images, ["a"] * 60)
        samples.append(off(sample.images))
    assert off(exemplars.images) < min(samples)


@pytest.mark.parametrize("kind", KINDS)
def test_what_left_the_stream_is_nowhere_and_the_rest_goes_on(kind: str) -> None:
    buffer = made(kind, 12)
    labels = "ab" * 10 + "ca" * 10
    buffer.add(*stream(labels))
    rows = [row for row, number in enumerate(contents(buffer)[0]) if number < 20]
    stays = [pair for pair in zip(*contents(buffer), strict=True) if pair[0] >= 20]
    buffer.drop(rows, {"a": 10, "b": 10})
    assert list(zip(*contents(buffer), strict=True)) == stays
    assert buffer._images is not None
    assert not buffer._images[len(buffer) :].any()
    restarted = replay_from_bytes(buffer.to_bytes(), features)
    for either in (buffer, restarted):
        either.add(*stream("d" * 40, 40))
        assert len(either) <= 12
        assert "b" not in either.labels
        assert "d" in either.labels
    assert contents(restarted) == contents(buffer)


def test_a_class_that_some_have_left_holds_its_share_again_where_classes_are_balanced() -> None:
    held = Counter[str]()
    for seed in range(200):
        buffer = made("balanced", 6, seed)
        buffer.add(*stream("a" * 30 + "b" * 30))
        buffer.drop([row for row, name in enumerate(buffer.labels) if name == "b"], {"b": 30})
        assert buffer.num_seen == 30
        buffer.add(*stream("c" * 30, 60))
        held.update(buffer.labels)
    assert held == {"a": 600, "c": 600}


def test_exemplars_of_a_class_that_some_have_left_are_of_what_is_kept_of_it() -> None:
    buffer = made("herding", 6)
    buffer.add(*stream("a" * 20))
    gone = [row for row, number in enumerate(contents(buffer)[0]) if number >= 10]
    stays = buffer.images[[row for row in range(len(buffer)) if row not in gone]]
    buffer.drop(gone, {"a": 10})
    fresh = made("herding", 6)
    fresh.add(stays, ["a"] * len(stays))
    for either in (buffer, fresh):
        either.add(*stream("a" * 10, 30))
    assert contents(buffer) == contents(fresh), "nothing of those that left is in the mean"


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_make_another_memory_of_what_is_kept(kind: Kind) -> None:
    buffer = made(kind, 8)
    buffer.add(*stream("abcab" * 10))

    def under(wanted: Kind, images: int) -> ReplayBuffer:
        config = ReplayConfig(kind=wanted, capacity=images, max_bytes=1000)
        return replay_under(config, buffer, torch_generator(1, "replay"), features)

    assert under(kind, 8) is buffer
    for wanted in KINDS:
        fewer = under(wanted, 5)
        assert (fewer.kind, len(fewer)) == (wanted, 5)
        assert set(zip(*contents(fewer), strict=True)) <= set(zip(*contents(buffer), strict=True))
        more = under(wanted, 20)
        assert sorted(zip(*contents(more), strict=True)) == sorted(zip(*contents(buffer), strict=True))
        more.add(*stream("c" * 30, 50))
        assert 8 < len(more) <= 20
    with pytest.raises(SettingOutOfRange):
        replay_under(ReplayConfig(kind=kind, max_bytes=5), buffer, torch_generator(1, "replay"), features)


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_of_nothing_is_under_whatever_settings(kind: Kind) -> None:
    empty = made(kind, 8)
    assert replay_under(ReplayConfig(kind=kind, max_bytes=53), empty, torch_generator(0, "r"), features) is empty
    for wanted in KINDS:
        config = ReplayConfig(kind=wanted, capacity=3)
        made_anew = replay_under(config, empty, torch_generator(0, "r"), features)
        made_anew.add(*stream("ab" * 10))
        assert (made_anew.kind, len(made_anew)) == (wanted, 3)
