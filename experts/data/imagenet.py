"""ImageNet-1K (ILSVRC2012; Russakovsky et al. 2015, arXiv:1409.0575) in the layouts that people have it in.

The training images lie in a folder for each of the 1,000 synsets, once the tars within the tar are unpacked. The
validation images, which everybody tests on since the labels of the test images are not public, lie in such folders
where a script has moved them; as they come, they lie flat, and their labels are in Kaggle's ``LOC_val_solution.csv`` or
in the development kit (``ILSVRC2012_validation_ground_truth.txt``, numbers that ``meta.mat`` explains).

Classes are named by their synset ("n01440764"): names in words are not unique, "crane" is a bird and a machine.
"""

import csv
import re
from pathlib import Path

from experts.data.dataset import ImageDataset
from experts.data.homes import existing
from experts.data.image_files import FileList, ReadingConfig, images_below, read_files
from experts.errors import MalformedDataset

__all__ = ["imagenet_files", "load_imagenet"]

_NAME = "imagenet"
_KAGGLE = "ILSVRC/Data/CLS-LOC"
_SOLUTION = "LOC_val_solution.csv"
_DEVKIT = "ILSVRC2012_devkit_t12/data"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SYNSET = re.compile(r"n\d{8}")
_VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def load_imagenet(directory: Path, reading: ReadingConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation part, 1,281,167 and 50,000 images ``(N, P, P, 3)`` when all is there.

    At 64 pixels the first is 15.7 GB: give `ReadingConfig.cache` a folder, or a limit of images per class.

    Raises: As `imagenet_files` and `read_files`.
    """
    train, val = imagenet_files(directory)
    return read_files(train, reading), read_files(val, reading)


def imagenet_files(directory: Path) -> tuple[FileList, FileList]:
    """The files of both parts.

    Args:
        directory: The folder of ``train`` and ``val``, or that of Kaggle's archive.
    Raises:
        DatasetAbsent: If a folder or the labels of the validation images are not there.
        MalformedDataset: If a folder is no synset's, tars are still packed, or labels and files do not fit.
    """
    images = directory / _KAGGLE if (directory / _KAGGLE).is_dir() else directory
    train_folder, val_folder = (existing(_NAME, images, part) for part in ("train", "val"))
    if packed := sorted(train_folder.glob("n*.tar")):
        reason = f"{packed[0].name} is still packed: unpack each tar into a folder of its name"
        raise MalformedDataset(str(train_folder), reason=reason)
    train = _of_synsets("imagenet train", train_folder)
    if any(child.is_dir() for child in val_folder.iterdir()):
        return train, _of_synsets("imagenet val", val_folder)
    return train, _flat(val_folder, _labels(directory))


def _of_synsets(source: str, folder: Path) -> FileList:
    files = images_below(source, folder)
    if wrong := sorted(name for name in set(files.labels) if not _SYNSET.fullmatch(name)):
        raise MalformedDataset(str(folder), reason=f"folder {wrong[0]!r} is not named for a synset, such as n01440764")
    return files


def _labels(directory: Path) -> dict[int, str]:
    """The synset of each validation image, by its number from 1."""
    found = existing(_NAME, directory, _SOLUTION, f"{_DEVKIT}/{_GROUND_TRUTH}")
    return _of_solution(found) if found.name == _SOLUTION else _of_devkit(found.parent)


def _of_solution(path: Path) -> dict[int, str]:
    """Lines such as "ILSVRC2012_val_00048981,n03995372 85 1 499 272": the synset, and boxes that are not needed."""
    labels = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 and row[:1] == ["ImageId"]:
                continue
            named = re.fullmatch(r"ILSVRC2012_val_(\d{8})", row[0]) if len(row) == 2 else None
            synset = row[1].partition(" ")[0] if named else ""
            if named is None or not _SYNSET.fullmatch(synset):
                raise MalformedDataset(str(path), reason=f"line {number} is not an image and its synset")
            labels[int(named[1])] = synset
    return labels


def _of_devkit(folder: Path) -> dict[int, str]:
    path = folder / _GROUND_TRUTH
    synset_of = _synsets(existing(_NAME, folder, "meta.mat"))
    labels = {}
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").split(), start=1):
        synset = synset_of.get(int(line)) if line.isascii() and line.isdigit() else None
        if synset is None:
            raise MalformedDataset(str(path), reason=f"line {number}: {line!r} is not one of {len(synset_of)} classes")
        labels[number] = synset
    return labels


def _synsets(path: Path) -> dict[int, str]:
    """From the number in the ground truth to the synset; synsets above those of the classes have further numbers."""
    # Imported here: only this layout needs it.
    from scipy.io import loadmat  # noqa: PLC0415

    try:
        table = loadmat(path, squeeze_me=True)["synsets"]
        pairs = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_children"])) for row in table]
    except Exception as exc:  # of a damaged file, scipy's reader raises whatever it stumbles over
        raise MalformedDataset(str(path), reason=f"not the devkit's table of synsets: {exc}") from exc
    return {number: synset for number, synset, num_children in pairs if num_children == 0}


def _flat(folder: Path, label_of: dict[int, str]) -> FileList:
    found = {}
    for child in folder.iterdir():
        if named := _VAL_FILE.fullmatch(child.name):
            found[int(named[1])] = child.name
    if missing := sorted(label_of.keys() - found.keys()):
        reason = f"no ILSVRC2012_val_{missing[0]:08d}.JPEG, nor {len(missing) - 1} others that have a label"
        raise MalformedDataset(str(folder), reason=reason)
    if unlabelled := sorted(found.keys() - label_of.keys()):
        raise MalformedDataset(str(folder), reason=f"no label for {found[unlabelled[0]]}")
    # By class, as folders would be: the images of a class then follow one another.
    numbers = sorted(found, key=lambda number: (label_of[number], number))
    paths, labels = (tuple(column[number] for number in numbers) for column in (found, label_of))
    return FileList("imagenet val", folder, paths, labels)
