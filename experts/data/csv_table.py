"""A table of labelled images in a csv file: a path a row, or the pixels themselves.

The first row names the columns. ``path,label`` (in either order, among others) means image files, relative to the csv's
folder. A ``label`` and nothing but pixels beside it, whatever these are named, means square images row by row, grey or
red, green, blue a pixel, as Fashion-MNIST is commonly passed on.
"""

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.data.image_files import FileList, ReadingConfig, read_files
from experts.errors import MalformedDataset

__all__ = ["load_csv"]


def load_csv(path: Path, reading: ReadingConfig) -> ImageDataset:
    """The images of a csv file, in the order of its rows.

    Args:
        path: The csv file, in UTF-8.
        reading: How image files are read; pixels that stand in the table are taken as they are.
    Returns: uint8 ``(N, P, P, 3)`` out of files; ``(N, H, H)`` or ``(N, H, H, 3)`` out of pixels.
    Raises:
        MalformedDataset: If the file is missing or not of that form; the line is named. As `read_files`.
        TooLargeForMemory: As `read_files`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as exc:
        raise MalformedDataset(str(path), reason=f"cannot be read as a table: {exc}") from exc
    header, rows = (table[0], table[1:]) if table else ([], [])
    if header.count("label") != 1 or header.count("path") > 1:
        reason = (
            f"its first row, {', '.join(header[:4]) or 'nothing'}, does not name one column label, and path or pixels"
        )
        raise MalformedDataset(str(path), reason=reason)
    if not rows:
        raise MalformedDataset(str(path), reason="no row below the names of the columns")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            reason = f"row {number} has {len(row)} entries, where {len(header)} columns are named"
            raise MalformedDataset(str(path), reason=reason)
    label_column = header.index("label")
    labels = tuple(row[label_column] for row in rows)
    if "" in labels:
        raise MalformedDataset(str(path), reason=f"row {labels.index('') + 2} has no label")
    if "path" in header:
        path_column = header.index("path")
        paths = tuple(row[path_column] for row in rows)
        return read_files(FileList(path.name, path.parent, paths, labels), reading)
    return ImageDataset(_pixels(path, header, rows, label_column), labels)


def _pixels(path: Path, header: list[str], rows: list[list[str]], label_column: int) -> NDArray[np.uint8]:
    number = len(rows[0]) - 1
    grey, colour = math.isqrt(number), math.isqrt(number // 3)
    if number and grey**2 == number:
        shape: tuple[int, ...] = (grey, grey)
    elif number and 3 * colour**2 == number:
        shape = (colour, colour, 3)
    else:
        raise MalformedDataset(str(path), reason=f"{number} columns of pixels are no square, grey or in three colours")
    images = np.empty((len(rows), number), dtype=np.uint8)
    columns = [column for column in range(len(header)) if column != label_column]
    for row_number, row in enumerate(rows):
        pixels = [_pixel(row[column]) for column in columns]
        if -1 in pixels:
            column = columns[pixels.index(-1)]
            reason = (
                f"row {row_number + 2}: {row[column]!r} in column {header[column]!r} is no pixel, 0 to 255; "
                "names of image files stand in a column path"
            )
            raise MalformedDataset(str(path), reason=reason)
        images[row_number] = pixels
    return images.reshape(-1, *shape)


def _pixel(text: str) -> int:
    """-1 of what is none."""
    try:
        value = int(text)
    except ValueError:
        return -1
    return value if 0 <= value <= 255 else -1
