"""Streams without boundaries: a run begins a task, an odd batch does not, and nothing waits without bound."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.continual.batches import Batch, batches_from_tensors, batches_to_tensors, joined
from experts.continual.stream import BoundaryFinder, Found, StreamConfig
from experts.errors import CorruptState, MalformedDataset, NothingToLearnFrom, SettingOutOfRange

VERDICTS = {"k": "known", "n": "new", "u": "undecided"}


def batch(number: int, label: str | None = None) -> Batch:
    """Four bytes of pixels."""
    return Batch.of(np.full((1, 2, 2), number, dtype=np.uint8), [label])


def numbers(found: Found) -> list[int]:
    return [int(each.images[0, 0, 0]) for each in found.batches]


def fed(finder: BoundaryFinder, verdicts: str, start: int = 0) -> list[tuple[str, list[int]]]:
    found = [finder.feed(batch(start + n), VERDICTS[v]) for n, v in enumerate(verdicts)]  # type: ignore[arg-type]
    return [(each.kind, numbers(each)) for each in found]


def test_a_run_of_new_batches_begins_a_task_with_all_of_them() -> None:
    assert fed(BoundaryFinder(StreamConfig()), "knnnk") == [
        ("continues", [0]),
        ("waits", []),
        ("waits", []),
        ("begins", [1, 2, 3]),
        ("continues", [4]),
    ]


def test_odd_batches_begin_no_task_however_many_there_are_apart() -> None:
    finder = BoundaryFinder(StreamConfig(begin_after=2))
    assert all(kind != "begins" for kind, _ in fed(finder, "nknknkkn"))
    assert len(finder.waiting) == 4


def test_undecided_batches_neither_make_a_run_nor_end_one() -> None:
    finder = BoundaryFinder(StreamConfig())
    assert fed(finder, "nununu")[-2:] == [("begins", [0, 2, 4]), ("waits", [])]
    assert [int(each.images[0, 0, 0]) for each in finder.waiting] == [1, 3, 5]


def test_what_waited_is_let_go_once_it_is_known_but_not_a_run_that_is_under_way() -> None:
    finder = BoundaryFinder(StreamConfig())
    fed(finder, "nkunn")
    judged: list[int] = []

    def verdict_of(each: Batch) -> str:
        judged.append(int(each.images[0, 0, 0]))
        return "known" if judged[-1] == 0 else "new"

    assert [int(each.images[0, 0, 0]) for each in finder.reconsider(verdict_of)] == [0]  # type: ignore[arg-type]
    assert judged == [0, 2]
    assert [int(each.images[0, 0, 0]) for each in finder.waiting] == [2, 3, 4]
    assert fed(finder, "n", start=5) == [("begins", [3, 4, 5])]


def test_more_than_may_wait_is_given_up_oldest_first_and_counted() -> None:
    finder = BoundaryFinder(StreamConfig(max_waiting_bytes=12))
    fed(finder, "uuuuu")
    assert [int(each.images[0, 0, 0]) for each in finder.waiting] == [2, 3, 4]
    assert (finder.num_dropped, finder.num_bytes) == (2, 12)


def test_a_beginning_waits_until_it_may_or_bytes_run_out() -> None:
    finder = BoundaryFinder(StreamConfig(begin_after=1, max_waiting_bytes=12))
    kinds = [finder.feed(batch(n), "new", may_begin=False) for n in range(4)]
    assert [each.kind for each in kinds] == ["waits", "waits", "waits", "begins"]
    assert numbers(kinds[-1]) == [0, 1, 2, 3]
    assert finder.feed(batch(9), "new", may_begin=True).kind == "begins"


def test_a_run_that_was_held_back_can_be_let_go_and_one_that_is_too_short_cannot() -> None:
    finder = BoundaryFinder(StreamConfig(begin_after=2))
    finder.feed(batch(0), "new", may_begin=False)
    assert finder.release() == ()
    finder.feed(batch(1), "new", may_begin=False)
    assert [int(each.images[0, 0, 0]) for each in finder.release()] == [0, 1]
    assert (finder.waiting, finder.run_length) == ((), 0)


@settings(deadline=None, max_examples=60)
@given(before=st.text("knu", max_size=12), after=st.text("knu", max_size=12))
def test_a_restart_finds_the_same_boundaries(before: str, after: str) -> None:
    config = StreamConfig(begin_after=3, max_waiting_bytes=24)
    finder = BoundaryFinder(config)
    fed(finder, before)
    restarted = BoundaryFinder.from_tensors(finder.to_tensors(), config)
    assert fed(restarted, after, start=50) == fed(finder, after, start=50)
    assert (restarted.num_dropped, restarted.run_length) == (finder.num_dropped, finder.run_length)


@settings(deadline=None, max_examples=60)
@given(verdicts=st.text("knu", max_size=40))
def test_every_batch_goes_on_begins_waits_or_is_counted_as_given_up(verdicts: str) -> None:
    finder = BoundaryFinder(StreamConfig(max_waiting_bytes=20))
    out = [number for _, batches in fed(finder, verdicts) for number in batches]
    waiting = [int(each.images[0, 0, 0]) for each in finder.waiting]
    assert len(set(out + waiting)) == len(out + waiting) == len(verdicts) - finder.num_dropped
    assert finder.num_bytes <= 20


def test_damaged_state_is_refused() -> None:
    finder = BoundaryFinder(StreamConfig())
    fed(finder, "nn")
    tensors = finder.to_tensors()
    for damaged in (
        {},
        {**tensors, "stream": torch.zeros(3, dtype=torch.uint8)},
        {name: value for name, value in tensors.items() if name != "waiting/1"},
    ):
        with pytest.raises(CorruptState):
            BoundaryFinder.from_tensors(damaged, StreamConfig())


def test_batches_keep_labels_and_their_absence() -> None:
    batches = [batch(1, "a"), batch(2)]
    back = batches_from_tensors(batches_to_tensors(batches, "x"), "x")
    assert [each.labels for each in back] == [("a",), (None,)]
    whole = joined(back)
    assert (whole.labels, whole.classes, whole.num_bytes) == (("a", None), ("a",), 9)
    assert whole.images[1, 0, 0] == 2


def test_what_is_no_batch_is_refused() -> None:
    images = np.zeros((2, 2, 2), dtype=np.uint8)
    for labels in (["a"], ["a", ""]):
        with pytest.raises(MalformedDataset):
            Batch.of(images, labels)
    with pytest.raises(MalformedDataset):
        Batch.of(images.astype(np.float32), None)  # type: ignore[arg-type]
    with pytest.raises(NothingToLearnFrom):
        Batch.of(images[:0], None)
    with pytest.raises(MalformedDataset):
        joined([batch(1), Batch.of(images[:, :1], None)])


@pytest.mark.parametrize("field", [{"begin_after": 0}, {"max_waiting_bytes": 0}])
def test_settings_out_of_range_are_refused(field: dict[str, int]) -> None:
    with pytest.raises(SettingOutOfRange):
        StreamConfig(**field)
