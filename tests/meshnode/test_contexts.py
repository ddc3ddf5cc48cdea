"""Domains and tasks in a node: whose files, whose experts, whose answers."""

from pathlib import Path

import numpy as np
import pytest

from experts.continual.decision import Setting
from experts.continual.novelty import Assessment
from experts.data.dataset import ImageDataset
from experts.data.npz import load_partly_labelled, save_partly_labelled, save_task
from experts.data.partly import PartlyLabelled
from meshnode.inference.contexts import by_class, of_task
from meshnode.listings import ExpertListing
from meshnode.trainer.assess_messages import Assessed
from meshnode.trainer.contexts import task_context
from meshnode.trainer.deciding import decide
from meshnode.trainer.stream_folder import Position
from meshnode.trainer.task_folder import TaskFolder
from protocol.errors import MalformedMessage
from protocol.identifiers import Digest, ExpertUid
from protocol.limits import MAX_CLASS_NAME_CHARS

LABELS = ("bag", "T-shirt/top")


def images(number: int) -> np.ndarray:
    return np.arange(number * 16, dtype=np.uint8).reshape(number, 4, 4)


def task(number: int = 4) -> ImageDataset:
    return ImageDataset(images(number), [LABELS[row % 2] for row in range(number)])


def listing(*classes: str) -> tuple[ExpertUid, ExpertListing]:
    uid = ExpertUid(Digest(str(len("".join(classes))).rjust(64, "0")))
    return uid, ExpertListing(uid=uid, classes=classes, replicas=())


EXPERTS = dict([listing("photo/bag", "photo/cup"), listing("sketch/bag", "sketch/cup")])
PHOTO, SKETCH = EXPERTS


def test_a_file_says_by_its_name_of_what_it_is_and_its_labels_are_named_so(tmp_path: Path) -> None:
    for name in ("photo", "photo@2", "sketch@a@b"):
        save_task(tmp_path / f"{name}.npz", task())
    folder = TaskFolder(tmp_path, tmp_path / "found", has_contexts=True)
    files, unreadable = folder.scan()
    assert unreadable == {}
    assert {file.name: set(file.classes) for file in files} == {
        "photo": {"photo/bag", "photo/T-shirt/top"},
        "photo@2": {"photo/bag", "photo/T-shirt/top"},
        "sketch@a@b": {"sketch/bag", "sketch/T-shirt/top"},
    }
    assert [task_context(file.name) for file in files] == ["photo", "photo", "sketch"]
    digest, data = folder.open("photo@2")
    assert digest == files[1].digest
    assert data.labels == ("photo/bag", "photo/T-shirt/top") * 2


def test_where_nothing_is_told_apart_names_are_left_alone(tmp_path: Path) -> None:
    save_task(tmp_path / "photo@2.npz", task())
    (file,), _ = TaskFolder(tmp_path, tmp_path / "found").scan()
    assert set(file.classes) == set(LABELS)


def test_images_without_a_label_have_none_in_any_domain(tmp_path: Path) -> None:
    save_partly_labelled(tmp_path / "photo.npz", PartlyLabelled(images(2), ("bag", None)))
    assert TaskFolder(tmp_path, tmp_path / "found", has_contexts=True).open("photo")[1].labels == ("photo/bag", None)


def test_a_file_whose_names_are_too_long_together_is_named_and_left_out(tmp_path: Path) -> None:
    save_task(tmp_path / f"{'p' * MAX_CLASS_NAME_CHARS}@1.npz", task())
    files, unreadable = TaskFolder(tmp_path, tmp_path / "found", has_contexts=True).scan()
    assert files == ()
    assert "at most 64 characters" in unreadable[f"{'p' * MAX_CLASS_NAME_CHARS}@1"]


def test_what_a_stream_brings_is_of_the_streams_domain_and_kept_as_people_name_it(tmp_path: Path) -> None:
    stream = tmp_path / "photo.stream"
    stream.mkdir()
    save_task(stream / "1.npz", task(4))
    folder = TaskFolder(tmp_path, tmp_path / "found", has_contexts=True)
    found = folder.stream_batches(stream).next_batch(Position(), 4, None)
    assert found is not None
    assert set(found[0].classes) == {"photo/bag", "photo/T-shirt/top"}
    name = folder.found_name("photo", 1)
    assert task_context(name) == "photo"
    folder.add_found(name, PartlyLabelled(found[0].images, found[0].labels))
    assert set(load_partly_labelled(tmp_path / "found" / f"{name}.npz").labels) == set(LABELS)
    assert set(folder.open(name)[1].labels) == {"photo/bag", "photo/T-shirt/top"}
    assert folder.found_name("photo@tuesday", 2) == "photo@tuesday-0002"
    assert TaskFolder(tmp_path, tmp_path / "found").found_name("photo", 1) == "photo-0001"


@pytest.mark.parametrize("setting", ["class-incremental", "domain-incremental"])
def test_all_experts_may_answer_where_no_task_is_told(setting: Setting) -> None:
    assert of_task(setting, EXPERTS, None) == EXPERTS
    with pytest.raises(MalformedMessage, match=f"{setting}: it tells no tasks apart"):
        of_task(setting, EXPERTS, "photo")


def test_only_a_told_tasks_experts_answer() -> None:
    assert of_task("task-incremental", EXPERTS, "sketch").keys() == {SKETCH}
    with pytest.raises(MalformedMessage, match="has to be named; there are photo, sketch"):
        of_task("task-incremental", EXPERTS, None)
    with pytest.raises(MalformedMessage, match="nobody answers for a task 'poster'; there are photo, sketch"):
        of_task("task-incremental", EXPERTS, "poster")


def test_what_was_said_of_a_class_in_several_domains_is_added_up() -> None:
    labels = ("photo/bag", "photo/cup", "sketch/bag", "sketch/T-shirt/top")
    outputs = np.array([[0.5, 0.1, 0.25, 0.15], [0.0, 1.0, 0.0, 0.0]], np.float32)
    classes, sums = by_class(labels, outputs)
    assert classes == ("T-shirt/top", "bag", "cup")
    assert sums.dtype == np.float32
    assert np.allclose(sums, [[0.15, 0.75, 0.1], [0.0, 0.0, 1.0]])


def test_a_new_domain_has_an_expert_of_its_own_and_a_known_ones_learns() -> None:
    assessment = Assessment(
        verdict="undecided",
        num_rows=4,
        num_labelled=4,
        unseen_labels=(),
        distance=None,
        threshold=None,
        num_held_out=0,
    )
    known = {uid: expert.classes for uid, expert in EXPERTS.items()}

    def decided(context: str) -> tuple[str, dict[str, tuple[str, ...]], tuple[str, ...], str | None]:
        classes = (f"{context}/bag", f"{context}/cup")
        found = Assessed(assessment=assessment, batches=(), gains={})
        decision = decide(found, classes, known, fresh=(), min_gain=-1.0, context=context).decision
        return decision.action, dict(decision.update), decision.spawn, decision.context

    assert decided("poster") == ("spawn", {}, ("poster/bag", "poster/cup"), "poster")
    assert decided("photo") == ("update", {PHOTO: ("photo/bag", "photo/cup")}, (), "photo")
