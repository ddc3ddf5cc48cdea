"""Task files: one data set in one ``.npz`` with the arrays ``images`` (uint8) and ``labels`` (text).

numpy's container of plain arrays (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html);
arrays of objects, which numpy stores as pickles, are refused.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from experts.data.dataset import ImageDataset
from experts.errors import MalformedDataset

__all__ = ["load_task", "save_task"]


def save_task(path: Path, dataset: ImageDataset) -> None:
    """Writes ``dataset`` to ``path``, which must end in ``.npz``; a reader sees the whole file or none.

    Raises: MalformedDataset: If the name does not end in ``.npz``, or a class name ends in a NUL character,
        which numpy's text arrays cannot keep. OSError: If the folder cannot be written.
    """
    if path.suffix != ".npz":
        raise MalformedDataset(str(path), reason="a task file's name ends in .npz")
    if any(label.endswith("\0") for label in dataset.labels):
        raise MalformedDataset("labels", reason="a class name ends in a NUL character")
    # Not ending in .npz until it is complete: a trainer may be watching the folder.
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, images=dataset.images, labels=np.array(dataset.labels, dtype=np.str_))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_task(path: Path) -> ImageDataset:
    """Reads a task file, by `save_task` or by anyone's ``numpy.savez(path, images=..., labels=...)``.

    Raises: MalformedDataset: If the file cannot be read, lacks an array, or the arrays do not fit each other.
    """
    # Looked at first: of anything else numpy says that it might be loaded unsafely, which nobody should try.
    if path.is_file() and not zipfile.is_zipfile(path):
        raise MalformedDataset(str(path), reason="it is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("images", "labels") if name not in file.files]
            if missing:
                raise MalformedDataset(str(path), reason=f"it has no array {' and no array '.join(missing)}")
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise MalformedDataset(str(path), reason=f"not a task file: {exc}") from exc
    if labels.dtype.kind != "U" or labels.ndim != 1:
        raise MalformedDataset(str(path), reason="labels are not a list of text")
    return ImageDataset(images, tuple(str(label) for label in labels))
