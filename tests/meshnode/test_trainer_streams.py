"""Streams at a node: cut into batches, tasks found in them, nothing lost or read twice whatever is killed when."""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from learning_nodes import learning
from mesh_in_memory import MESH, digits, memory_network, memory_node, tiny_trunk
from replay_memories import replay_memory
from training_nodes import until

from experts.continual.batches import Batch
from experts.continual.stream import StreamConfig
from experts.data.npz import load_partly_labelled, save_partly_labelled
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig
from experts.errors import MalformedDataset
from meshnode.logs import configure_logs
from meshnode.trainer import streams as module
from meshnode.trainer import task_folder
from meshnode.trainer.assessing import Assessor
from meshnode.trainer.held_back import HeldBack
from meshnode.trainer.messages import PrivacyTerms
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.stream_folder import Position, StreamFolder
from meshnode.trainer.stream_messages import ReadStreams
from meshnode.trainer.streams import Streams
from meshnode.trainer.task_folder import TaskFolder

ZEROS_ONES, TWOS_THREES = digits("0", "1"), digits("2", "3")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "s.stream").mkdir(parents=True)
    return tmp_path / "data"


def pour(data: Path, name: str, images: np.ndarray, labels: Sequence[str | None] | None = None) -> None:
    labels = (None,) * len(images) if labels is None else tuple(labels)
    save_partly_labelled(data / "s.stream" / f"{name}.npz", PartlyLabelled(images, tuple(labels)))


def streams(tmp_path: Path, config: StreamConfig | None = None) -> Streams:
    memory = replay_memory(tmp_path / "replay", capacity=50, seed=0)
    publisher = Publisher(tmp_path / "published", PrivacyTerms(), MESH.fingerprint)
    held = HeldBack(tiny_trunk(), memory, lambda file: None)
    assessor = Assessor(tiny_trunk(), memory, held, publisher, DistillationConfig(), 0)
    folder = TaskFolder(tmp_path / "data", tmp_path / "found")
    return Streams(folder, tmp_path / "streams", tiny_trunk(), assessor, config or StreamConfig())


def knowing(*classes: str) -> ReadStreams:
    return ReadStreams(statistics=None, known=classes, learned=())


def found(tmp_path: Path, name: str) -> PartlyLabelled:
    return load_partly_labelled(tmp_path / "found" / f"{name}.npz")


# --- files into batches ---


def all_of(folder: StreamFolder, size: int) -> Iterator[Batch]:
    position = Position()
    while (step := folder.next_batch(position, size, None)) is not None:
        batch, position = step
        yield batch


@pytest.mark.parametrize("cuts", [(100,), (10, 90), (64, 36), (1, 0, 62, 1, 36)])
def test_batches_are_the_same_however_the_images_lie_in_files(data: Path, cuts: tuple[int, ...]) -> None:
    task, start = ZEROS_ONES.select(range(100)), 0
    for number, cut in enumerate(cuts):
        pour(data, f"{number}", task.images[start : start + cut], task.labels[start : start + cut])
        start += cut
    batches = list(all_of(StreamFolder(data / "s.stream"), 32))
    assert [len(batch) for batch in batches] == [32, 32, 32], "four images wait for others"
    assert np.array_equal(np.concatenate([batch.images for batch in batches]), task.images[:96])
    assert tuple(label for batch in batches for label in batch.labels) == task.labels[:96]


def test_a_file_that_cannot_be_read_holds_the_stream_up_until_it_is_mended(tmp_path: Path, data: Path) -> None:
    pour(data, "1", ZEROS_ONES.images[:30], ZEROS_ONES.labels[:30])
    (data / "s.stream" / "2.npz").write_bytes(b"half a fi")
    here = streams(tmp_path)
    ((state,), troubles) = here.look()
    assert (state.ready, troubles) == (False, {"s.stream/2.npz": "it is no .npz file"})
    pour(data, "2", ZEROS_ONES.images[30:64], ZEROS_ONES.labels[30:64])
    assert here.look()[0][0].ready
    with pytest.raises(MalformedDataset, match=r"1\.npz"):
        StreamFolder(data / "s.stream").next_batch(Position(), 1, (9, 9))


# --- batches into tasks ---


def test_a_run_of_new_labels_begins_a_task_and_known_ones_are_gathered(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INCREMENT_IMAGES", 128)
    pour(data, "1", ZEROS_ONES.images[:256], ZEROS_ONES.labels[:256])
    here = streams(tmp_path)
    assert here.read(knowing()).found == "s-0001"
    assert found(tmp_path, "s-0001").labels == ZEROS_ONES.labels[:192], "three batches"
    pour(data, "2", TWOS_THREES.images[:192], TWOS_THREES.labels[:192])
    pour(data, "3", ZEROS_ONES.images[:64], ZEROS_ONES.labels[:64])
    read = here.read(knowing("0", "1"))
    assert read.found == "s-0002"
    assert found(tmp_path, "s-0002").labels == TWOS_THREES.labels[:192]
    assert (read.streams[0].batches, read.streams[0].gathered) == (7, 64)
    read = here.read(knowing("0", "1", "2", "3"))
    assert read.found == "s-0003"
    assert found(tmp_path, "s-0003").labels == ZEROS_ONES.labels[192:256] + ZEROS_ONES.labels[:64]
    (state,) = read.streams
    assert (state.batches, state.tasks, state.waiting, state.gathered, state.ready) == (8, 3, 0, 0, False)


def test_what_is_new_waits_for_a_label_and_then_the_task_has_all_of_it(tmp_path: Path, data: Path) -> None:
    pour(data, "1", ZEROS_ONES.images[:256])
    here = streams(tmp_path)
    read = here.read(knowing())
    assert (read.found, read.streams[0].waiting) == (None, 4)
    pour(data, "2", ZEROS_ONES.images[256:], [*ZEROS_ONES.labels[256:270], *[None] * (len(ZEROS_ONES) - 270)])
    assert len(ZEROS_ONES) < 320  # so that the batch needs more
    pour(data, "3", TWOS_THREES.images[:64])
    assert here.read(knowing()).found == "s-0001"
    task = found(tmp_path, "s-0001")
    assert len(task) == 320
    assert [label for label in task.labels if label is not None] == list(ZEROS_ONES.labels[256:270])


def test_beyond_its_bytes_what_waits_is_given_up_and_counted(tmp_path: Path, data: Path) -> None:
    size = 64 * ZEROS_ONES.images[0].nbytes
    pour(data, "1", ZEROS_ONES.images[:256])
    (state,) = streams(tmp_path, StreamConfig(max_waiting_bytes=3 * size)).read(knowing()).streams
    assert (state.batches, state.waiting + state.dropped, state.tasks) == (4, 4, 0)
    assert state.waiting <= 3


@pytest.mark.parametrize("moment", ["before the state", "before the file", "after the file"])
def test_a_kill_at_any_moment_loses_and_repeats_nothing(
    tmp_path: Path, data: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pour(data, "1", ZEROS_ONES.images[:256], ZEROS_ONES.labels[:256])

    class Killed(Exception):
        """Not one that anybody catches."""

    def kill(*_: object) -> None:
        raise Killed

    here, save = streams(tmp_path), Streams._save
    with monkeypatch.context() as patch:
        if moment == "before the state":
            patch.setattr(Streams, "_save", kill)
        elif moment == "before the file":
            patch.setattr(TaskFolder, "add_found", kill)
        else:
            patch.setattr(Streams, "_save", lambda me, one: save(me, one) if one.found else kill())
        with pytest.raises(Killed):
            here.read(knowing())
    again = streams(tmp_path)
    assert again.look()[0][0].ready
    # Whatever is known by then: a task that was found stays one.
    assert again.read(knowing("0", "1") if moment != "before the state" else knowing()).found == "s-0001"
    assert found(tmp_path, "s-0001").labels == ZEROS_ONES.labels[:192]
    (state,) = streams(tmp_path).read(knowing("0", "1")).streams
    assert (state.batches, state.tasks, state.gathered) == (4, 1, 64)


def test_streams_take_turns(tmp_path: Path, data: Path) -> None:
    for name, task in (("s", ZEROS_ONES), ("t", TWOS_THREES)):
        (data / f"{name}.stream").mkdir(exist_ok=True)
        save_partly_labelled(data / f"{name}.stream" / "1.npz", PartlyLabelled.of(task.select(range(256))))
    here = streams(tmp_path)
    assert here.read(knowing()).found == "s-0001"
    assert here.read(knowing("0", "1")).found == "t-0001", "the other one first, though both have more"
    last = here.read(knowing(*"0123"))
    assert (last.found, [(state.batches, state.gathered) for state in last.streams]) == (None, [(4, 64), (4, 64)])


def test_a_damaged_state_is_named_and_other_streams_go_on(tmp_path: Path, data: Path) -> None:
    pour(data, "1", ZEROS_ONES.images[:64], ZEROS_ONES.labels[:64])
    streams(tmp_path).read(knowing())
    (data / "t.stream").mkdir()
    path = tmp_path / "streams" / "s.state"
    path.write_bytes(path.read_bytes()[:-1])
    states, troubles = streams(tmp_path).look()
    assert [state.name for state in states] == ["t"]
    assert str(path) in troubles["s.stream"]


def test_people_s_files_keep_their_names_and_found_ones_have_a_bound(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "s-0001.npz").write_bytes(b"theirs")
    pour(data, "1", ZEROS_ONES.images[:192], ZEROS_ONES.labels[:192])
    assert streams(tmp_path).read(knowing()).found == "s-0002"
    folder = TaskFolder(data, tmp_path / "found")
    size = (tmp_path / "found" / "s-0002.npz").stat().st_size
    monkeypatch.setattr(task_folder, "FOUND_BYTES", 2 * size + 1)
    for number in range(3, 6):
        folder.add_found(f"s-{number:04}", found(tmp_path, f"s-{number - 1:04}"))
        os.utime(tmp_path / "found" / f"s-{number:04}.npz", (number, number))
    assert {path.stem for path in (tmp_path / "found").glob("*.npz")} >= {"s-0005"}
    assert len(list((tmp_path / "found").glob("*.npz"))) == 2


# --- in a node ---


async def test_a_node_learns_what_its_streams_bring_and_a_killed_worker_goes_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logs("info", "json")
    pour(data, "1", ZEROS_ONES.images[:256], ZEROS_ONES.labels[:256])
    pour(data, "2", TWOS_THREES.images[:256], TWOS_THREES.labels[:256])
    async with (
        memory_node(memory_network(), "a", tmp_path) as node,
        learning(node, tmp_path, data) as trainer,
    ):
        await until(lambda: trainer.history)
        assert trainer.status.pid is not None
        os.kill(trainer.status.pid, signal.SIGKILL)
        await until(lambda: len(trainer.history) == 2 and trainer.status.state == "idle")
        assert [(entry["task"], entry["outcome"]) for entry in trainer.history] == [
            ("s-0001", "learned"),
            ("s-0002", "learned"),
        ]
        assert {expert.classes for expert in node.host.experts.values()} == {("0", "1"), ("2", "3")}
        (state,) = trainer.streams
        assert (state.batches, state.tasks, state.waiting, state.gathered) == (8, 2, 0, 128)
        await asyncio.sleep(0)
