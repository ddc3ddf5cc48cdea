"""The Visual Domain Decathlon: ten data sets at 72 pixels (Rebuffi, Bilen and Vedaldi 2017, arXiv:1705.08045).

Its development kit says in a json for each set and part, as those of COCO, which image is of which category. The test
labels were never published, so its ``val`` is what is tested on here, and nobody learns from it.

Classes are named with their set ("svhn/digit 3"), since two sets mean different images by one name.
"""

import json
from collections import Counter
from pathlib import Path, PurePosixPath

from experts.data.dataset import ImageDataset
from experts.data.homes import existing
from experts.data.image_files import FileList, ReadingConfig, read_files
from experts.errors import MalformedDataset

__all__ = ["DECATHLON_SETS", "decathlon_files", "load_decathlon"]

DECATHLON_SETS = (
    "imagenet12",
    "cifar100",
    "aircraft",
    "daimlerpedcls",
    "dtd",
    "gtsrb",
    "omniglot",
    "svhn",
    "ucf101",
    "vgg-flowers",
)
"""In the order of the challenge's page."""

_NAME = "visual-decathlon"


def load_decathlon(directory: Path, name: str, reading: ReadingConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation part of one set, ``(N, P, P, 3)``.

    Args:
        directory: The folder of ``annotations`` and ``data``.
        name: One of `DECATHLON_SETS`.
        reading: How the files are read.
    Raises: As `decathlon_files` and `read_files`.
    """
    train, val = (decathlon_files(directory, name, part) for part in ("train", "val"))
    return read_files(train, reading), read_files(val, reading)


def decathlon_files(directory: Path, name: str, part: str) -> FileList:
    """The files of ``annotations/<name>_<part>.json``, by category and then by path.

    Raises:
        DatasetAbsent: If the json or the set's folder is not there.
        MalformedDataset: If the json is not of that form, or an image is of no category, or of two.
    """
    path = existing(_NAME, directory, f"annotations/{name}_{part}.json")
    existing(_NAME, directory, f"data/{name}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        category_names = {int(category["id"]): str(category["name"]) for category in document["categories"]}
        file_names = {int(image["id"]): str(image["file_name"]) for image in document["images"]}
        pairs = [(int(entry["image_id"]), int(entry["category_id"])) for entry in document["annotations"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        reason = f"not images, categories and annotations as COCO has them: {exc!r}"
        raise MalformedDataset(str(path), reason=reason) from exc
    twice = {known for known, times in Counter(category_names.values()).items() if times > 1}
    files: dict[str, str] = {}
    for image, category in pairs:
        if image not in file_names or category not in category_names:
            raise MalformedDataset(str(path), reason=f"image {image} or category {category} is not listed")
        file, label = file_names[image], category_names[category]
        if label in twice:
            label = f"{label} ({category})"
        parts = PurePosixPath(file).parts
        if parts[:3] != ("data", name, part) or ".." in parts:
            raise MalformedDataset(str(path), reason=f"{file!r} is not in data/{name}/{part}")
        if files.setdefault(file, f"{name}/{label}") != f"{name}/{label}":
            raise MalformedDataset(str(path), reason=f"{file} is of two categories")
    if unlabelled := sorted(set(file_names.values()) - files.keys()):
        raise MalformedDataset(str(path), reason=f"no category for {unlabelled[0]}")
    ordered = sorted(files, key=lambda file: (files[file], file))
    return FileList(f"{_NAME} {name} {part}", directory, tuple(ordered), tuple(files[file] for file in ordered))
