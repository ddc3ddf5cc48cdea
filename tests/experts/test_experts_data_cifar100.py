"""CIFAR-100 in both its forms, and pickles that are more than data."""

import contextlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_layouts import CIFAR_NAMES, python_2_pickle, write_cifar_binary, write_cifar_python

from experts.data.named import load_named
from experts.data.plain_pickle import PlainArray, read_plain_pickle
from experts.errors import DatasetAbsent, MalformedDataset, PickleRefused

TRAIN, TEST = [99, 0, 41, 0], [7, 99]


@pytest.mark.parametrize("write", [write_cifar_python, write_cifar_binary])
@pytest.mark.parametrize("inside", [False, True])
def test_both_forms_give_named_images_whose_planes_are_their_colours(tmp_path: Path, write, inside: bool) -> None:  # type: ignore[no-untyped-def]
    made = write(tmp_path, TRAIN, TEST)
    train, test = load_named("cifar-100", made if inside else tmp_path)
    assert train.labels == tuple(CIFAR_NAMES[label] for label in TRAIN)
    assert test.labels == tuple(CIFAR_NAMES[label] for label in TEST)
    assert train.images.shape == (4, 32, 32, 3)
    assert train.images[0, 0, 0].tolist() == [99, 2, 3]
    assert (train.images[:, 1:] == np.array([1, 2, 3])).all()


def test_a_pickle_of_python_3_and_numpy_2_is_read_too(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "p").write_bytes(pickle.dumps({"data": array, "labels": [1, 2]}, protocol=4))
    table = read_plain_pickle(tmp_path / "p")
    assert isinstance(table, dict)
    data = table["data"]
    assert isinstance(data, PlainArray)
    assert (data.shape, data.content) == ((2, 3), array.tobytes())


class Touch:
    """What a program in a pickle might do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("part", ["train", "meta"])
def test_a_pickle_that_is_a_program_is_refused_and_not_run(tmp_path: Path, part: str) -> None:
    made = write_cifar_python(tmp_path, TRAIN, TEST)
    (made / part).write_bytes(pickle.dumps({"data": Touch(tmp_path / "touched")}, protocol=2))
    with pytest.raises(PickleRefused, match="mkdir") as caught:
        load_named("cifar-100", tmp_path)
    assert caught.value.source == str(made / part)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(U\x011tR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cexperts.data.plain_pickle\nread_plain_pickle\n.",
        b"ios\ngetcwd\n(.",
        b"\x80\x04\x8c\x02os\x8c\x06getcwd\x93)R.",
    ],
)
def test_no_name_but_those_of_plain_arrays_is_known(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "p").write_bytes(program)
    with pytest.raises((PickleRefused, MalformedDataset)):
        read_plain_pickle(tmp_path / "p")


@pytest.mark.parametrize("name", [b"numpy.core.multiarray\n_reconstruct", b"numpy\nndarray", b"numpy\ndtype"])
def test_a_pickle_cannot_change_what_stands_for_an_array(tmp_path: Path, name: bytes) -> None:
    # BUILD with a class for an object and a pair for its state sets attributes of the class, unless it is guarded.
    (tmp_path / "p").write_bytes(b"c" + name + b"\n(N}U\x05shapeU\x01xstb.")
    with pytest.raises(MalformedDataset):
        read_plain_pickle(tmp_path / "p")
    assert PlainArray.shape == ()


def test_a_damaged_pickle_is_malformed_whatever_byte_it_is(tmp_path: Path) -> None:
    whole = python_2_pickle({"fine_labels": [1, 2], "data": np.zeros((2, 3), np.uint8)})
    path = tmp_path / "p"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises((MalformedDataset, PickleRefused)):
            read_plain_pickle(path)
    draw = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[draw.integers(len(whole))] ^= int(draw.integers(1, 256))
        path.write_bytes(damaged)
        # Some bytes may be others, such as those of a label.
        with contextlib.suppress(MalformedDataset, PickleRefused):
            read_plain_pickle(path)


def test_a_number_of_things_to_remember_sets_no_memory_aside(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"Nr\xff\xff\xff\xff.")
    assert read_plain_pickle(tmp_path / "p") is None


def damaged(made: Path, part: str, table: dict[str, object]) -> None:
    whole = {"fine_labels": [1], "data": np.zeros((1, 3072), np.uint8)}
    (made / part).write_bytes(python_2_pickle(whole | table))


@pytest.mark.parametrize(
    "table",
    [
        {"fine_labels": [100]},
        {"fine_labels": [-1]},
        {"fine_labels": ["1"]},
        {"fine_labels": [1, 2]},
        {"fine_labels": "x"},
        {"data": np.zeros((1, 3071), np.uint8)},
        {"data": "x"},
    ],
)
def test_labels_and_pixels_that_do_not_fit_are_refused(tmp_path: Path, table: dict[str, object]) -> None:
    made = write_cifar_python(tmp_path, TRAIN, TEST)
    damaged(made, "test", table)
    with pytest.raises(MalformedDataset) as caught:
        load_named("cifar-100", tmp_path)
    assert caught.value.source == str(made / "test")


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    made = write_cifar_binary(tmp_path, TRAIN, TEST)
    (made / "train.bin").write_bytes((made / "train.bin").read_bytes()[:-1])
    with pytest.raises(MalformedDataset, match="rows"):
        load_named("cifar-100", tmp_path)
    row = bytearray(3074)
    row[1] = 100
    (made / "train.bin").write_bytes(row)
    with pytest.raises(MalformedDataset, match="label 100"):
        load_named("cifar-100", tmp_path)


def test_what_is_missing_is_named_with_where_it_is_had(tmp_path: Path) -> None:
    with pytest.raises(DatasetAbsent, match=r"cifar-100-python.*www\.cs\.toronto\.edu"):
        load_named("cifar-100", tmp_path)
    with pytest.raises(DatasetAbsent):
        load_named("cifar-100")
    made = write_cifar_python(tmp_path, TRAIN, TEST)
    (made / "meta").unlink()
    with pytest.raises(DatasetAbsent) as caught:
        load_named("cifar-100", tmp_path)
    assert caught.value.missing == str(made / "meta")


def test_the_fixture_is_what_python_itself_reads() -> None:
    table = pickle.load(io.BytesIO(python_2_pickle({"data": np.eye(2, dtype=np.uint8)})), encoding="latin1")
    assert np.array_equal(table["data"], np.eye(2))
