"""Images that come as files of many sizes: a list of them, and how they become squares of one size.

Legend: N images, P pixels of a side.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experts.data.dataset import ImageDataset, split_rows
from experts.data.on_disk import STAMP_BYTES, filled_array
from experts.errors import MalformedDataset, SettingOutOfRange, TooLargeForMemory

__all__ = ["FileList", "ReadingConfig", "ReadingProgress", "images_below", "read_files", "square_image"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
"""In lower case. Other files in a folder of images are no images: lists, thumbnails' databases, licences."""

_DAMAGED = (OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError)
"""What Pillow raises on damaged files; ``SyntaxError`` is how its PNG reader says that a chunk is broken."""

_PROGRESS_EVERY = 1000
"""Images between two reports: some seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingProgress:
    """Where the reading of one part of a data set stands."""

    source: str
    """What is read, such as "imagenet train"."""
    done: int
    """Images read; those that a cache held from an earlier run are not counted again."""
    total: int
    """Images of the part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingConfig:
    """How image files are read."""

    pixels: int = 64
    """P, what the shorter side becomes; the middle square of P x P remains. 64 is what the default trunk takes."""

    images_per_class: int | None = None
    """At most so many images of each class in each part, those that come first; None for all."""

    cache: Path | None = None
    """A folder where images are kept as they were read, and mapped from there; None for memory alone."""

    max_memory_bytes: int = 4 << 30
    """What one part may take without a cache: about half of what a laptop has."""

    on_progress: Callable[[ReadingProgress], None] | None = None
    """Called now and then while files are read, and at the end; None for nobody."""

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise SettingOutOfRange("pixels", self.pixels, allowed="1 or more")
        if self.images_per_class is not None and self.images_per_class < 1:
            raise SettingOutOfRange("images_per_class", self.images_per_class, allowed="1 or more, or None")


@dataclass(frozen=True, slots=True)
class FileList:
    """N image files with their classes, before any of them is opened."""

    source: str
    """What they are a part of, for messages; a cache tells lists of one folder apart by it."""
    folder: Path
    """What the paths are relative to."""
    paths: tuple[str, ...]
    labels: tuple[str, ...]

    def select(self, rows: Sequence[int]) -> Self:
        """The files of these rows, in that order."""
        paths, labels = ([column[row] for row in rows] for column in (self.paths, self.labels))
        return type(self)(self.source, self.folder, tuple(paths), tuple(labels))

    def split(self, held_out_ratio: float, *, seed: int) -> tuple[Self, Self]:
        """The kept and the held-out files, as `ImageDataset.split` would part the images; "train" and "test"."""
        kept, held_out = (self.select(rows) for rows in split_rows(self.labels, held_out_ratio, seed=seed))
        return replace(kept, source=f"{self.source} train"), replace(held_out, source=f"{self.source} test")

    def first_of_each(self, images_per_class: int | None) -> Self:
        """At most so many files of each class, those that come first; None for all."""
        if images_per_class is None:
            return self
        seen: Counter[str] = Counter()
        rows = []
        for row, label in enumerate(self.labels):
            seen[label] += 1
            if seen[label] <= images_per_class:
                rows.append(row)
        return self.select(rows)


def images_below(source: str, folder: Path) -> FileList:
    """Files of ``folder/<class>/``, classes and files in the order of their names.

    Raises:
        MalformedDataset: If there is no such folder, it has no folder of a class, or one without an image.
    """
    try:
        classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        paths: list[str] = []
        labels: list[str] = []
        for name in classes:
            files = sorted(child.name for child in (folder / name).iterdir() if _is_image(child))
            if not files:
                raise MalformedDataset(str(folder / name), reason="no image file in the folder of a class")
            paths += [f"{name}/{file}" for file in files]
            labels += [name] * len(files)
    except OSError as exc:
        raise MalformedDataset(str(folder), reason=f"cannot be read: {exc.strerror}") from exc
    if not classes:
        raise MalformedDataset(str(folder), reason="no folder of a class; expected are <class>/<image>.jpg or the like")
    return FileList(source, folder, tuple(paths), tuple(labels))


def read_files(files: FileList, reading: ReadingConfig) -> ImageDataset:
    """The images of a list, each as `square_image` makes it.

    Returns: uint8 ``(N, P, P, 3)``; mapped from a file if there is a cache.
    Raises:
        MalformedDataset: If the list is empty, or a file is missing or damaged; it is named. With a cache, what was
            read before it is kept.
        TooLargeForMemory: If there is no cache and they would take more than they may.
    """
    files = files.first_of_each(reading.images_per_class)
    number, shape = len(files.paths), (reading.pixels, reading.pixels, 3)
    if number == 0:
        raise MalformedDataset(str(files.folder), reason=f"{files.source} has no image")
    done = 0

    def read(row: int) -> NDArray[np.uint8]:
        nonlocal done
        image = square_image(files.folder / files.paths[row], reading.pixels)
        done += 1
        if reading.on_progress is not None and (done % _PROGRESS_EVERY == 0 or row == number - 1):
            reading.on_progress(ReadingProgress(source=files.source, done=done, total=number))
        return image

    if reading.cache is not None:
        name = hashlib.sha256(repr((files.source, str(files.folder.resolve()), reading.pixels)).encode()).hexdigest()
        stamps = [_stamp(files.folder, path) for path in files.paths]
        suffix = "" if reading.images_per_class is None else f"-{reading.images_per_class}"
        return ImageDataset(
            filled_array(reading.cache / f"{name[:32]}{suffix}.images", stamps, shape, read), files.labels
        )
    needed_bytes = number * int(np.prod(shape))
    if needed_bytes > reading.max_memory_bytes:
        raise TooLargeForMemory(
            files.source, images=number, needed_bytes=needed_bytes, allowed_bytes=reading.max_memory_bytes
        )
    images = np.empty((number, *shape), dtype=np.uint8)
    for row in range(number):
        images[row] = read(row)
    return ImageDataset(images, files.labels)


def square_image(path: Path, pixels: int) -> NDArray[np.uint8]:
    """The middle square of an image in colour, resized bilinearly over all pixels that fall together.

    It is what is cut out of the middle of the whole image, resized until its shorter side is P.

    Grey becomes colour, transparency is dropped. Orientation that a camera noted is not applied, as public data sets
    were labelled and measured without it.

    Returns: uint8 ``(P, P, 3)``.
    Raises: MalformedDataset: If the file is missing, or no image, or a damaged one.
    """
    try:
        with Image.open(path) as opened:
            # A JPEG decodes at a half, a quarter or an eighth in a fraction of the time; twice P loses nothing visible.
            opened.draft("RGB", (2 * pixels, 2 * pixels))
            image = opened.convert("RGB")
    except _DAMAGED as exc:
        raise MalformedDataset(str(path), reason=f"cannot be read as an image: {exc}") from exc
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = image.resize((pixels, pixels), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(square, dtype=np.uint8)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _stamp(folder: Path, path: str) -> bytes:
    try:
        status = (folder / path).stat()
    except OSError as exc:
        raise MalformedDataset(str(folder / path), reason=f"cannot be read: {exc.strerror}") from exc
    told = repr((path, status.st_size, status.st_mtime_ns)).encode()
    return hashlib.blake2b(told, digest_size=STAMP_BYTES).digest()
