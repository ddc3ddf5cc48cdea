"""What is remembered of the past survives restarts, and no task is remembered twice."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from mesh_in_memory import digits
from replay_memories import replay_memory

from experts.continual.replay import ReservoirBuffer
from experts.continual.replay_kinds import Kind
from experts.data.dataset import ImageDataset
from experts.errors import CorruptState
from experts.generators import torch_generator
from meshnode.trainer.memory import ReplayMemory

TASK = digits("0", "1").select(range(40))
NEXT = digits("2").select(range(20))


KINDS: tuple[Kind, ...] = ("balanced", "herding", "reservoir")


def memory(folder: Path, *, capacity: int = 30, kind: Kind = "reservoir") -> ReplayMemory:
    return replay_memory(folder / "replay.msgpack", capacity=capacity, seed=3, kind=kind)


def test_it_keeps_real_images_of_what_it_was_shown_up_to_its_capacity(tmp_path: Path) -> None:
    kept = memory(tmp_path)
    assert len(kept) == 0
    assert len(kept.images_of(("0", "1"))) == 0
    kept.add(TASK, "first", "task")
    assert len(kept) == 30
    zeros, ones = kept.images_of(("0",)), kept.images_of(("1",))
    assert len(zeros) + len(ones) == len(kept.images_of(("0", "1", "7"))) == 30
    shown = {image.tobytes() for image in TASK.of_classes(("0",)).images}
    assert {image.tobytes() for image in zeros} <= shown
    assert len(kept.images_of(("7",))) == 0


def test_a_restart_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    for folder in ("steady", "restarted"):
        (tmp_path / folder).mkdir()
    steady, restarted = memory(tmp_path / "steady"), memory(tmp_path / "restarted")
    steady.add(TASK, "first", "task")
    restarted.add(TASK, "first", "task")
    restarted = memory(tmp_path / "restarted")
    assert len(restarted) == 30
    steady.add(NEXT, "second", "task")
    restarted.add(NEXT, "second", "task")
    for classes in (("0",), ("1",), ("2",)):
        assert np.array_equal(steady.images_of(classes), restarted.images_of(classes))
    assert 0 < len(restarted.images_of(("2",))) < 20


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_other_settings_keep_what_is_remembered_as_far_as_they_have_room(
    tmp_path: Path, before: Kind, after: Kind
) -> None:
    memory(tmp_path, kind=before).add(TASK, "first", "task")
    kept = {image.tobytes() for image in memory(tmp_path, kind=before).images_of(("0", "1"))}
    changed = memory(tmp_path, kind=after, capacity=20)
    assert len(changed) == 20
    assert {image.tobytes() for image in changed.images_of(("0", "1"))} <= kept
    assert changed.tasks_of(("0", "1")) == ("task",)
    changed.add(NEXT, "second", "next")
    again = memory(tmp_path, kind=after, capacity=20)
    assert len(again) == 20
    again.forget("task", (), ())
    assert again.tasks_of(("0", "1", "2")) == ("next",)
    assert len(again.images_of(("0", "1"))) == 0


def test_a_task_that_is_learned_again_after_a_kill_is_not_remembered_twice(tmp_path: Path) -> None:
    kept = memory(tmp_path, capacity=200)
    kept.add(TASK, "digest", "task")
    kept.add(TASK, "digest", "task")
    assert len(kept) == 40
    kept = memory(tmp_path, capacity=200)
    kept.add(TASK, "digest", "task")
    assert len(kept) == 40
    kept.add(TASK, "another version of the file", "task")
    assert len(kept) == 80


def pixels(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


ALL = ("0", "1", "2")


def test_a_forgotten_tasks_images_and_no_others_are_gone_after_a_restart_too(tmp_path: Path) -> None:
    kept = memory(tmp_path, capacity=50)
    kept.add(TASK, "first", "a")
    kept.add(NEXT, "second", "b")
    before = pixels(kept.images_of(ALL))
    assert kept.tasks_of(("0", "1")) == ("a",)
    assert kept.tasks_of(ALL) == ("a", "b")
    would = kept.leaving("a", (), ("0", "1"))
    assert (len(kept), would.unsure) == (50, 0)
    assert kept.forget("a", (), ("0", "1")) == would
    for after in (kept, memory(tmp_path)):
        assert len(after) == 50 - len(would.rows)
        assert pixels(after.images_of(ALL)) == before & pixels(NEXT.images)
        assert after.tasks_of(ALL) == ("b",)
        assert after.forget("a", (), ("0", "1")).rows == ()
    assert not any(image in (tmp_path / "replay.msgpack").read_bytes() for image in pixels(TASK.images))


def test_every_version_of_a_tasks_file_is_forgotten_and_an_image_of_two_tasks_goes_with_either(tmp_path: Path) -> None:
    kept = memory(tmp_path, capacity=200)
    kept.add(TASK.select(range(20)), "first", "a")
    kept.add(TASK.select(range(10, 30)), "second", "a")
    kept.add(TASK.select(range(25, 40)), "third", "b")
    kept.forget("a", (), ("0", "1"))
    assert pixels(kept.images_of(ALL)) == pixels(TASK.select(range(30, 40)).images)


def test_a_forgotten_task_can_be_remembered_again(tmp_path: Path) -> None:
    kept = memory(tmp_path, capacity=200)
    kept.add(TASK, "first", "a")
    kept.forget("a", (), ("0", "1"))
    assert len(kept) == 0
    kept.add(TASK, "first", "a")
    assert len(kept) == 40


def of_before(folder: Path, *tasks: tuple[str, ImageDataset]) -> ReplayMemory:
    """A memory as earlier versions of this program wrote it."""
    buffer = ReservoirBuffer(200, torch_generator(3, "replay"))
    for _, task in tasks:
        buffer.add(task.images, task.labels)
    saved = {"tasks": [digest for digest, _ in tasks], "buffer": buffer.to_bytes()}
    (folder / "replay.msgpack").write_bytes(msgspec.msgpack.encode(saved))
    return memory(folder, capacity=200)


def test_an_earlier_versions_memory_of_one_task_is_all_of_it(tmp_path: Path) -> None:
    kept = of_before(tmp_path, ("first", TASK))
    assert len(kept) == 40
    assert kept.tasks_of(("0",)) is None, "it has no name"
    kept.add(NEXT, "second", "b")
    assert kept.forget("a", ("first",), ()).unsure == 0
    assert pixels(kept.images_of(ALL)) == pixels(NEXT.images)


def test_of_an_earlier_versions_memory_of_several_tasks_what_may_be_of_one_goes_with_it(tmp_path: Path) -> None:
    kept = of_before(tmp_path, ("first", TASK), ("second", NEXT))
    assert kept.tasks_of(("2",)) is None
    left = kept.forget("b", ("second",), ("2",))
    assert (len(left.rows), left.unsure) == (20, 20)
    assert pixels(memory(tmp_path, capacity=200).images_of(ALL)) == pixels(TASK.images)


@pytest.mark.parametrize("damaged", [b"", b"garbage", b"\x82\xa5tasks\x90\xa6buffer\xc4\x03abc"])
def test_a_damaged_file_is_named_as_such(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "replay.msgpack").write_bytes(damaged)
    with pytest.raises(CorruptState):
        memory(tmp_path)


def test_the_file_is_for_its_owners_eyes_only(tmp_path: Path) -> None:
    memory(tmp_path).add(TASK, "first", "task")
    assert [(file.name, oct(file.stat().st_mode & 0o777)) for file in tmp_path.iterdir()] == [
        ("replay.msgpack", "0o600")
    ]
