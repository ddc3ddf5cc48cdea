"""Images that are more than memory: an array in a file, filled once and resumably, and parts of it.

ImageNet at 64 pixels is 15.7 GB, and a study reads it task by task. Mapped from a file, its pages come and go as the
machine has room.

Legend: N images.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from experts.errors import MalformedDataset

__all__ = ["STAMP_BYTES", "filled_array", "rows_of"]

STAMP_BYTES = 16
"""Of the digest that says which file an image was read from, and how that file was."""

_BLOCK = 1024
"""Images copied or written at a time: 13 MB at 64 pixels. What a killed process has to read again is no more."""


def filled_array(
    path: Path, stamps: Sequence[bytes], shape: tuple[int, ...], read: Callable[[int], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """The array in a file, after whatever is missing of it has been read.

    Images and stamps are appended to ``.partial`` files, which are renamed when whole. So whoever was interrupted, or
    stopped at a damaged image, goes on where they were; and images whose stamp has changed are read again, with all
    that follow.

    Args:
        path: Where it is kept; its folder is made. One process at a time fills it, another one waits.
        stamps: One for each of the N images, at least one, `STAMP_BYTES` long.
        shape: Of one image.
        read: Makes the image of that row.
    Returns: uint8 ``(N, *shape)``, mapped. What is written to it does not reach the file.
    Raises: MalformedDataset: If the folder cannot be written, or the disk has no room. What ``read`` raises.
    """
    wanted = _as_words(b"".join(stamps))
    stamps_path = path.with_name(f"{path.name}.stamps")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not _is_whole(path, stamps_path, wanted, shape):
                _fill(path, stamps_path, wanted, shape, read)
            return np.memmap(path, dtype=np.uint8, mode="c", shape=(len(wanted), *shape))
    except OSError as exc:
        raise MalformedDataset(str(path), reason=f"the cache cannot be written: {exc}") from exc


def rows_of(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """``images[rows]``, without bringing what is mapped from a file into memory.

    Rows that follow one another are a view of the same file; others are copied to a file beside it, whose name
    is gone at once, and its bytes with the last part of it.

    Raises: IndexError: If a row is out of range.
    """
    if not isinstance(images, np.memmap) or len(rows) == 0:
        return images[rows]
    if rows.min() < -len(images) or rows.max() >= len(images):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(images)} images")
    first, last = int(rows[0]), int(rows[-1])
    if first >= 0 and last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
        return images[first : last + 1]
    folder = None if images.filename is None else Path(images.filename).parent
    # By name, so that parts of what is mapped know the folder too: a temporary one is often memory.
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for start in range(0, len(rows), _BLOCK):
            file.write(np.ascontiguousarray(images[rows[start : start + _BLOCK]]).data)
        file.flush()
        return np.memmap(file, dtype=np.uint8, mode="c", shape=(len(rows), *images.shape[1:]))


def _is_whole(path: Path, stamps_path: Path, wanted: NDArray[np.uint64], shape: tuple[int, ...]) -> bool:
    if not (path.is_file() and stamps_path.is_file()):
        return False
    sizes = (path.stat().st_size, stamps_path.stat().st_size)
    whole = (len(wanted) * math.prod(shape), len(wanted) * STAMP_BYTES)
    return sizes == whole and _good_rows(stamps_path, wanted) == len(wanted)


def _fill(
    path: Path,
    stamps_path: Path,
    wanted: NDArray[np.uint64],
    shape: tuple[int, ...],
    read: Callable[[int], NDArray[np.uint8]],
) -> None:
    image_bytes = math.prod(shape)
    # Another process may have the whole file mapped: it is replaced, never shortened.
    partial, partial_stamps = (file.with_name(f"{file.name}.partial") for file in (path, stamps_path))
    with partial.open("ab") as images_file, partial_stamps.open("ab") as stamps_file:
        row = min(_good_rows(partial_stamps, wanted), images_file.tell() // image_bytes)
        images_file.truncate(row * image_bytes)
        stamps_file.truncate(row * STAMP_BYTES)
        while row < len(wanted):
            images_file.write(np.ascontiguousarray(read(row)).data)
            stamps_file.write(wanted[row].tobytes())
            row += 1
            if row % _BLOCK == 0:
                images_file.flush()
                stamps_file.flush()
        for file in (images_file, stamps_file):
            file.flush()
            os.fsync(file.fileno())
    stamps_path.unlink(missing_ok=True)
    partial.replace(path)
    partial_stamps.replace(stamps_path)


def _good_rows(stamps_path: Path, wanted: NDArray[np.uint64]) -> int:
    """How many images from the first one on were read from the files that are wanted now, as these are now."""
    data = stamps_path.read_bytes() if stamps_path.is_file() else b""
    kept = _as_words(data[: len(data) // STAMP_BYTES * STAMP_BYTES])
    shared = min(len(kept), len(wanted))
    different = np.flatnonzero((kept[:shared] != wanted[:shared]).any(axis=1))
    return int(different[0]) if len(different) else shared


def _as_words(stamps: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(stamps, dtype=np.uint64).reshape(-1, STAMP_BYTES // 8)
