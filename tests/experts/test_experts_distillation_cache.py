"""Cached logits: the teacher runs once, whatever is wrong with a file is said and mended, the folder is bounded."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from experts.distillation import CachedLogits, CacheOutcome, LogitCache, data_digest
from experts.errors import CorruptState, SettingOutOfRange, ShapeMismatch
from experts.generators import torch_generator
from experts.sealed import seal, unseal
from experts.teachers.cnn import untrained_cnn

DATA, OTHER_DATA, TEACHER = "a" * 64, "b" * 64, "c" * 64
PLENTY = 10**7


class CountingTeacher:
    """Two logits of an image: its sum and its first value; remembers the batches it was shown."""

    def __init__(self, classes: tuple[str, ...] = ("x", "y")) -> None:
        self.classes = classes
        self.batches: list[int] = []

    def logits(self, images_BCHW: Tensor) -> Tensor:
        self.batches.append(len(images_BCHW))
        return torch.stack([images_BCHW.flatten(1).sum(dim=1), images_BCHW[:, 0, 0, 0]], dim=1)


def images(number: int = 10) -> Tensor:
    return torch.rand(number, 1, 4, 4, generator=torch.Generator().manual_seed(number))


def ask(cache: LogitCache, teacher: CountingTeacher, data: str = DATA, number: int = 10) -> CachedLogits:
    return cache.logits(teacher, images(number), data_digest=data, teacher_digest=TEACHER)


def entry(folder: Path, data: str = DATA) -> Path:
    return folder / f"{data}-{TEACHER}.safetensors"


def test_the_teacher_runs_once_in_batches_and_its_word_is_kept_to_the_bit(tmp_path: Path) -> None:
    teacher, folder = CountingTeacher(), tmp_path / "made" / "when needed"
    cache = LogitCache(folder, max_bytes=PLENTY, batch_size=4)
    first = ask(cache, teacher)
    assert (first.outcome, first.reason, first.kept) == (CacheOutcome.ABSENT, "", True)
    assert teacher.batches == [4, 4, 2]
    assert torch.equal(first.logits_NK, CountingTeacher().logits(images()))
    again = ask(LogitCache(folder, max_bytes=PLENTY), teacher)
    assert (again.outcome, again.reason, again.kept) == (CacheOutcome.HIT, "", True)
    assert teacher.batches == [4, 4, 2]
    assert torch.equal(again.logits_NK, first.logits_NK)
    assert [path.name for path in folder.iterdir()] == [entry(folder).name]
    assert folder.stat().st_mode & 0o077 == 0


def test_a_real_teacher_is_one(tmp_path: Path) -> None:
    teacher = untrained_cnn(("x", "y"), channels=1, pixels=8, generator=torch_generator(0, "teacher"))
    shown = torch.rand(5, 1, 8, 8, generator=torch_generator(0, "images"))
    cache = LogitCache(tmp_path, max_bytes=PLENTY)
    both = [
        cache.logits(teacher, shown, data_digest=data_digest(shown), teacher_digest=TEACHER).logits_NK for _ in range(2)
    ]
    assert torch.equal(both[0], teacher.logits(shown))
    assert torch.equal(both[1], both[0])


def test_every_value_and_the_form_of_the_images_are_in_their_digest() -> None:
    changed = images()
    changed[3, 0, 2, 1] += 1e-6
    digests = [data_digest(shown) for shown in (images(), changed, images().double(), images().reshape(10, 1, 2, 8))]
    assert data_digest(images()) == digests[0]
    assert len(set(digests)) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_other_data_and_other_teachers_have_entries_of_their_own(tmp_path: Path) -> None:
    teacher, cache = CountingTeacher(), LogitCache(tmp_path, max_bytes=PLENTY)
    ask(cache, teacher)
    assert ask(cache, teacher, OTHER_DATA).outcome is CacheOutcome.ABSENT
    other = cache.logits(teacher, images(), data_digest=DATA, teacher_digest=OTHER_DATA)
    assert other.outcome is CacheOutcome.ABSENT
    assert len(list(tmp_path.iterdir())) == 3


def damaged(data: bytes, how: str) -> bytes:
    if how == "flipped":
        return data[:-1] + bytes([data[-1] ^ 1])
    if how == "pickle":
        return b"\x80\x04\x95" + data
    if how == "unsealed":
        return save({"logits": torch.zeros(10, 2)})
    if how == "huge header":
        return (2**40).to_bytes(8, "little") + data
    return data[: {"cut": len(data) - 5, "empty": 0}[how]]


@pytest.mark.parametrize("how", ["flipped", "pickle", "unsealed", "huge header", "cut", "empty"])
def test_a_damaged_file_is_named_computed_again_and_replaced(tmp_path: Path, how: str) -> None:
    teacher, cache = CountingTeacher(), LogitCache(tmp_path, max_bytes=PLENTY)
    first = ask(cache, teacher)
    entry(tmp_path).write_bytes(damaged(entry(tmp_path).read_bytes(), how))
    mended = ask(cache, teacher)
    assert mended.outcome is CacheOutcome.CORRUPT
    assert mended.reason
    assert mended.kept
    assert torch.equal(mended.logits_NK, first.logits_NK)
    assert len(teacher.batches) == 2
    assert ask(cache, teacher).outcome is CacheOutcome.HIT


def test_a_sound_file_of_something_else_is_foreign(tmp_path: Path) -> None:
    teacher, cache = CountingTeacher(), LogitCache(tmp_path, max_bytes=PLENTY)
    ask(cache, teacher, OTHER_DATA)
    entry(tmp_path, OTHER_DATA).rename(entry(tmp_path))
    moved = ask(cache, teacher)
    assert (moved.outcome, moved.reason) == (CacheOutcome.FOREIGN, "of other data")

    renamed = ask(cache, CountingTeacher(("y", "x")))
    assert (renamed.outcome, renamed.reason) == (CacheOutcome.FOREIGN, "of other classes")

    # A digest that was not of these images after all.
    ask(cache, teacher)
    longer = ask(cache, teacher, number=11)
    assert longer.outcome is CacheOutcome.FOREIGN
    assert longer.logits_NK.shape == (11, 2)


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    got = ask(LogitCache(tmp_path / "file", max_bytes=PLENTY), CountingTeacher())
    assert not got.kept
    assert got.logits_NK.shape == (10, 2)
    entry(tmp_path).mkdir()
    blocked = ask(LogitCache(tmp_path, max_bytes=PLENTY), CountingTeacher())
    assert (blocked.outcome, blocked.kept) == (CacheOutcome.CORRUPT, False)
    assert {path.name for path in tmp_path.iterdir()} == {"file", entry(tmp_path).name}


def test_an_entry_that_cannot_be_marked_as_used_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LogitCache(tmp_path, max_bytes=PLENTY)
    ask(cache, CountingTeacher())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert ask(cache, CountingTeacher()).outcome is CacheOutcome.HIT


def test_what_was_unused_for_longest_goes_first(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    ask(LogitCache(tmp_path, max_bytes=PLENTY), teacher)
    size = entry(tmp_path).stat().st_size
    cache = LogitCache(tmp_path, max_bytes=3 * size)
    names = [letter * 64 for letter in "abcd"]
    for age, name in enumerate(names[:3]):
        ask(cache, teacher, name)
        os.utime(entry(tmp_path, name), (1000 + age, 1000 + age))
    assert ask(cache, teacher, names[0]).outcome is CacheOutcome.HIT
    ask(cache, teacher, names[3])
    left = {path.name[0] for path in tmp_path.iterdir()}
    assert left == {"a", "c", "d"}
    # Replacing an entry takes no more room than it had.
    entry(tmp_path, names[2]).write_bytes(b"damaged")
    ask(cache, teacher, names[2])
    assert {path.name[0] for path in tmp_path.iterdir()} == left
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size


def test_logits_larger_than_the_cache_are_not_kept_and_drive_nothing_out(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    ask(LogitCache(tmp_path, max_bytes=PLENTY), teacher)
    cache = LogitCache(tmp_path, max_bytes=entry(tmp_path).stat().st_size)
    assert not ask(cache, teacher, OTHER_DATA, number=500).kept
    assert ask(cache, teacher).outcome is CacheOutcome.HIT


def test_files_of_others_are_left_alone_and_dead_writers_are_cleaned_up_after(tmp_path: Path) -> None:
    for name in ("notes.txt", "model.safetensors", "dead.modulemesh-part", "alive.modulemesh-part"):
        (tmp_path / name).write_bytes(b"x" * 10_000)
    for name in ("notes.txt", "model.safetensors", "dead.modulemesh-part"):
        os.utime(tmp_path / name, (1000, 1000))
    assert ask(LogitCache(tmp_path, max_bytes=2000), CountingTeacher()).kept
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.txt", "model.safetensors", "alive.modulemesh-part", entry(tmp_path).name}


@pytest.mark.parametrize("digest", ["", "../" * 22, "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65])
def test_nothing_but_a_digest_becomes_the_name_of_a_file(tmp_path: Path, digest: str) -> None:
    cache = LogitCache(tmp_path, max_bytes=PLENTY)
    with pytest.raises(SettingOutOfRange, match="data_digest"):
        cache.logits(CountingTeacher(), images(), data_digest=digest, teacher_digest=TEACHER)
    with pytest.raises(SettingOutOfRange, match="teacher_digest"):
        cache.logits(CountingTeacher(), images(), data_digest=DATA, teacher_digest=digest)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_answers_in_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatch):
        ask(LogitCache(tmp_path, max_bytes=PLENTY), CountingTeacher(("x", "y", "z")))
    for sizes in ({"max_bytes": 0}, {"max_bytes": 1, "batch_size": 0}):
        with pytest.raises(SettingOutOfRange):
            LogitCache(tmp_path, **sizes)


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    position=st.floats(0, 1, exclude_max=True),
)
def test_sealed_tensors_come_back_and_no_flipped_bit_goes_unseen(
    shape: list[int], dtype: torch.dtype, position: float
) -> None:
    tensors = {"b": torch.ones(shape, dtype=dtype), "a": torch.tensor([0.5, -torch.inf])}
    data = seal(tensors, {"number": 1, "name": "é"})
    assert seal(dict(reversed(tensors.items())), {"name": "é", "number": 1}) == data
    got, header = unseal(data, "test")
    assert header == {"number": 1, "name": "é"}
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in tensors.items())
    flipped = bytearray(data)
    flipped[int(position * len(data))] ^= 4
    with pytest.raises(CorruptState):
        unseal(bytes(flipped), "test")
