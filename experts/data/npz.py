"""Task files: one data set in one ``.npz`` with the arrays ``images`` (uint8) and ``labels`` (text, or integers).

numpy's container of plain arrays (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html);
arrays of objects, which numpy stores as pickles, are refused. Where images need no label, ``labels`` may be left out,
and an empty one is that of an image without.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.data.partly import PartlyLabelled
from experts.errors import MalformedDataset

__all__ = ["load_partly_labelled", "load_task", "save_partly_labelled", "save_task"]


def save_task(path: Path, dataset: ImageDataset) -> None:
    """Writes ``dataset`` to ``path``, which must end in ``.npz``; a reader sees the whole file or none.

    Raises: MalformedDataset: If the name does not end in ``.npz``, or a class name ends in a NUL character,
        which numpy's text arrays cannot keep. OSError: If the folder cannot be written.
    """
    save_partly_labelled(path, PartlyLabelled.of(dataset))


def save_partly_labelled(path: Path, dataset: PartlyLabelled) -> None:
    """As `save_task`; if no image has a label, the file has no array of them."""
    if path.suffix != ".npz":
        raise MalformedDataset(str(path), reason="a task file's name ends in .npz")
    labels = [label or "" for label in dataset.labels]
    if any(label.endswith("\0") for label in labels):
        raise MalformedDataset("labels", reason="a class name ends in a NUL character")
    # Not ending in .npz until it is complete: a trainer may be watching the folder.
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        if any(labels) or not labels:
            np.savez_compressed(file, images=dataset.images, labels=np.array(labels, dtype=np.str_))
        else:
            np.savez_compressed(file, images=dataset.images)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_task(path: Path) -> ImageDataset:
    """Reads a task file of which every image has a label, by `save_task` or by anyone's
    ``numpy.savez(path, images=..., labels=...)``.

    Raises: MalformedDataset: If the file cannot be read, lacks an array, or the arrays do not fit each other.
    """
    images, labels, _ = _read(path)
    missing = [name for name, array in (("images", images), ("labels", labels)) if array is None]
    if images is None or labels is None:
        raise MalformedDataset(str(path), reason=f"it has no array {' and no array '.join(missing)}")
    names = _names(path, labels)
    try:
        return ImageDataset(images, names)
    except MalformedDataset as exc:
        raise MalformedDataset(str(path), reason=str(exc)) from exc


def load_partly_labelled(path: Path) -> PartlyLabelled:
    """Reads a task file whose images may be without labels: some, with an empty text, or all, without the array.

    Raises: MalformedDataset: If the file cannot be read, has no images, has arrays of another name where labels would
        be expected, or the arrays do not fit each other.
    """
    images, labels, others = _read(path)
    if images is None:
        raise MalformedDataset(str(path), reason="it has no array images")
    if labels is None:
        if others:
            reason = f"it has no array labels, but {', '.join(others)}: name it labels, or leave it out"
            raise MalformedDataset(str(path), reason=reason)
        return PartlyLabelled(images, (None,) * len(images))
    return PartlyLabelled(images, tuple(name or None for name in _names(path, labels)))


def _read(path: Path) -> tuple[NDArray[np.uint8] | None, NDArray[np.str_] | None, list[str]]:
    """Images, labels and the names of other arrays."""
    # Looked at first: of anything else numpy says that it might be loaded unsafely, which nobody should try.
    if path.is_file() and not zipfile.is_zipfile(path):
        raise MalformedDataset(str(path), reason="it is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("images", "labels") if name in file.files}
            others = sorted(set(file.files) - found.keys())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise MalformedDataset(str(path), reason=f"not a task file: {exc}") from exc
    return found.get("images"), found.get("labels"), others


def _names(path: Path, labels: NDArray[np.str_]) -> tuple[str, ...]:
    if labels.dtype.kind not in "Uiu" or labels.ndim != 1:
        raise MalformedDataset(str(path), reason="labels are not a list of text or integers, one for each image")
    return tuple(str(label) for label in labels)
