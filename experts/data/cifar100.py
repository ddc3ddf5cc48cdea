"""CIFAR-100 from its authors' files: 60,000 colour images of 32 x 32 in 100 fine classes (Krizhevsky 2009).

Both forms are read: the one "for Python", whose pickles are read as data alone (`plain_pickle`), and the binary one.
Format: https://www.cs.toronto.edu/~kriz/cifar.html.

Legend: N images.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.data.homes import existing
from experts.data.plain_pickle import PlainArray, read_plain_pickle
from experts.errors import MalformedDataset

__all__ = ["load_cifar_100"]

_NAME = "cifar-100"
_PYTHON, _BINARY = "cifar-100-python", "cifar-100-binary"
_PIXELS = 32
_IMAGE_BYTES = 3 * _PIXELS * _PIXELS
_ROW_BYTES = 2 + _IMAGE_BYTES
"""Of the binary form: the coarse label, the fine label, then red, green and blue, each row by row."""


def load_cifar_100(directory: Path) -> tuple[ImageDataset, ImageDataset]:
    """Its training and test part, 50,000 and 10,000 images ``(N, 32, 32, 3)``, by the names of the fine classes.

    Args:
        directory: That of the unpacked archive, or the one above it.
    Raises:
        DatasetAbsent: If a file of neither form is there.
        MalformedDataset: If a file is not what its name says, or a label is no class's.
    """
    folder = directory if directory.name in (_PYTHON, _BINARY) else existing(_NAME, directory, _PYTHON, _BINARY)
    if folder.name == _PYTHON:
        names = _names_of_meta(existing(_NAME, folder, "meta"))
        train, test = (_read_pickled(existing(_NAME, folder, part), names) for part in ("train", "test"))
    else:
        names_path = existing(_NAME, folder, "fine_label_names.txt")
        names = tuple(names_path.read_text(encoding="utf-8", errors="replace").split())
        train, test = (_read_rows(existing(_NAME, folder, f"{part}.bin"), names) for part in ("train", "test"))
    return train, test


def _names_of_meta(path: Path) -> tuple[str, ...]:
    names = _table(path).get("fine_label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise MalformedDataset(str(path), reason="no list of fine_label_names")
    return tuple(names)


def _read_pickled(path: Path, names: tuple[str, ...]) -> ImageDataset:
    table = _table(path)
    labels, data = table.get("fine_labels"), table.get("data")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise MalformedDataset(str(path), reason="no list of fine_labels")
    if not isinstance(data, PlainArray) or data.shape != (len(labels), _IMAGE_BYTES):
        raise MalformedDataset(str(path), reason=f"no array named data of {len(labels)} x {_IMAGE_BYTES} bytes")
    return _dataset(path, np.frombuffer(data.content, dtype=np.uint8), labels, names)


def _table(path: Path) -> dict[object, object]:
    table = read_plain_pickle(path)
    if not isinstance(table, dict):
        raise MalformedDataset(str(path), reason="not a table")
    return table


def _read_rows(path: Path, names: tuple[str, ...]) -> ImageDataset:
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(content) == 0 or len(content) % _ROW_BYTES:
        raise MalformedDataset(str(path), reason=f"its {len(content)} bytes are not rows of {_ROW_BYTES}")
    rows = content.reshape(-1, _ROW_BYTES)
    return _dataset(path, rows[:, 2:], [int(label) for label in rows[:, 1]], names)


def _dataset(path: Path, pixels: NDArray[np.uint8], labels: list[int], names: tuple[str, ...]) -> ImageDataset:
    if wrong := sorted({label for label in labels if not 0 <= label < len(names)}):
        raise MalformedDataset(str(path), reason=f"label {wrong[0]} where there are {len(names)} classes")
    images = pixels.reshape(-1, 3, _PIXELS, _PIXELS).transpose(0, 2, 3, 1)
    return ImageDataset(np.ascontiguousarray(images), tuple(names[label] for label in labels))
