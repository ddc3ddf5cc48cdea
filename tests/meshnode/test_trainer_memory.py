"""What is remembered of the past survives restarts, and no task is remembered twice."""

from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import digits

from experts.errors import CorruptState
from meshnode.trainer.memory import ReplayMemory

TASK = digits("0", "1").select(range(40))
NEXT = digits("2").select(range(20))


def memory(folder: Path, *, capacity: int = 30) -> ReplayMemory:
    return ReplayMemory(folder / "replay.msgpack", capacity=capacity, seed=3)


def test_it_keeps_real_images_of_what_it_was_shown_up_to_its_capacity(tmp_path: Path) -> None:
    kept = memory(tmp_path)
    assert len(kept) == 0
    assert len(kept.images_of(("0", "1"))) == 0
    kept.add(TASK, "first")
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
    steady.add(TASK, "first")
    restarted.add(TASK, "first")
    restarted = memory(tmp_path / "restarted", capacity=99)
    assert len(restarted) == 30
    steady.add(NEXT, "second")
    restarted.add(NEXT, "second")
    for classes in (("0",), ("1",), ("2",)):
        assert np.array_equal(steady.images_of(classes), restarted.images_of(classes))
    assert 0 < len(restarted.images_of(("2",))) < 20


def test_a_task_that_is_learned_again_after_a_kill_is_not_remembered_twice(tmp_path: Path) -> None:
    kept = memory(tmp_path, capacity=200)
    kept.add(TASK, "digest")
    kept.add(TASK, "digest")
    assert len(kept) == 40
    kept = memory(tmp_path, capacity=200)
    kept.add(TASK, "digest")
    assert len(kept) == 40
    kept.add(TASK, "another version of the file")
    assert len(kept) == 80


@pytest.mark.parametrize("damaged", [b"", b"garbage", b"\x82\xa5tasks\x90\xa6buffer\xc4\x03abc"])
def test_a_damaged_file_is_named_as_such(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "replay.msgpack").write_bytes(damaged)
    with pytest.raises(CorruptState):
        memory(tmp_path)


def test_the_file_is_for_its_owners_eyes_only(tmp_path: Path) -> None:
    memory(tmp_path).add(TASK, "first")
    assert [(file.name, oct(file.stat().st_mode & 0o777)) for file in tmp_path.iterdir()] == [
        ("replay.msgpack", "0o600")
    ]
