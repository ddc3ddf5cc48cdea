"""Public data sets in their authors' layouts, a few tiny images each.

Every image is of one colour, so that a test can tell which file was read.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from experts.data.decathlon import DECATHLON_SETS
from experts.data.domains import DOMAINNET_DOMAINS, OFFICE_HOME_DOMAINS

CIFAR_NAMES = tuple(f"class{number:02d}" for number in range(100))
SYNSETS = ("n01440764", "n01443537", "n02012849")
"""Three real ones: tench, goldfish, crane (the bird)."""


def write_image(path: Path, shade: int, *, size: tuple[int, int] = (12, 10)) -> None:
    """A grey image of that shade, in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


# CIFAR-100


def python_2_pickle(value: object) -> bytes:
    """A pickle of protocol 2 as cPickle of Python 2 wrote it, in which text is bytes, and an array numpy 1's."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: object) -> bytes:
    match value:
        case dict():
            return b"}(" + b"".join(_pickled(key) + _pickled(of_key) for key, of_key in value.items()) + b"u"
        case list():
            return b"](" + b"".join(_pickled(item) for item in value) + b"e"
        case str():
            return b"U" + bytes([len(value)]) + value.encode()
        case int():
            return b"J" + struct.pack("<i", value)
        case np.ndarray():
            new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            shape = _pickled(value.shape[0]) + _pickled(value.shape[1]) + b"\x86"
            kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            content = b"T" + struct.pack("<i", value.size) + value.tobytes()
            return new + b"(K\x01" + shape + kind + b"\x89" + content + b"tb"
    raise AssertionError(type(value))


def cifar_rows(labels: Sequence[int]) -> np.ndarray:
    """uint8 ``(N, 3072)``: red, green and blue planes of 1, 2 and 3, and the label in the first pixel's red."""
    rows = np.repeat(np.array([1, 2, 3], np.uint8), 1024)[None].repeat(len(labels), axis=0)
    rows[:, 0] = labels
    return rows


def write_cifar_python(folder: Path, train: Sequence[int], test: Sequence[int]) -> Path:
    """``cifar-100-python`` with images of these fine labels."""
    made = folder / "cifar-100-python"
    made.mkdir(parents=True)
    for part, labels in (("train", train), ("test", test)):
        table = {
            "filenames": [f"image_s_{row:06d}.png" for row in range(len(labels))],
            "batch_label": "training batch 1 of 1",
            "fine_labels": list(labels),
            "coarse_labels": [label // 5 for label in labels],
            "data": cifar_rows(labels),
        }
        (made / part).write_bytes(python_2_pickle(table))
    names = {"fine_label_names": list(CIFAR_NAMES), "coarse_label_names": [f"coarse{i}" for i in range(20)]}
    (made / "meta").write_bytes(python_2_pickle(names))
    return made


def write_cifar_binary(folder: Path, train: Sequence[int], test: Sequence[int]) -> Path:
    """``cifar-100-binary``, likewise."""
    made = folder / "cifar-100-binary"
    made.mkdir(parents=True)
    for part, labels in (("train", train), ("test", test)):
        both = np.array([[label // 5, label] for label in labels], np.uint8)
        (made / f"{part}.bin").write_bytes(np.concatenate([both, cifar_rows(labels)], axis=1).tobytes())
    (made / "fine_label_names.txt").write_text("\n".join(CIFAR_NAMES) + "\n\n")
    return made


# ImageNet


def write_imagenet_train(folder: Path, images: int = 2) -> None:
    """``train/<wnid>/*.JPEG``; shades 10, 20, 30 by synset."""
    for number, synset in enumerate(SYNSETS, start=1):
        for image in range(images):
            write_image(folder / "train" / synset / f"{synset}_{image}.JPEG", 10 * number)


def write_imagenet_val_folders(folder: Path) -> None:
    """``val/<wnid>/*.JPEG``, one image each."""
    for number, synset in enumerate(SYNSETS, start=1):
        write_image(folder / "val" / synset / f"ILSVRC2012_val_{number:08d}.JPEG", 100 + number)


VAL_ORDER = (2, 0, 1, 0)
"""Of the flat validation images: the synset of each."""


def write_imagenet_val_flat(folder: Path) -> None:
    """``val/ILSVRC2012_val_*.JPEG``; shades 100, 101, ... by number."""
    for number in range(len(VAL_ORDER)):
        write_image(folder / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG", 100 + number)


def write_devkit(folder: Path) -> Path:
    """``ILSVRC2012_devkit_t12/data`` with numbers that are not in the order of the synsets, and one above them all."""
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    synsets = np.array(
        [(3 - i, SYNSETS[i], "words, more", 0) for i in range(3)] + [(4, "n00001740", "entity", 3)], kinds
    )
    savemat(data / "meta.mat", {"synsets": synsets[:, None]})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{3 - index}\n" for index in VAL_ORDER))
    return data


def write_kaggle(folder: Path) -> Path:
    """Kaggle's archive: ``ILSVRC/Data/CLS-LOC`` beside the solution."""
    images = folder / "ILSVRC" / "Data" / "CLS-LOC"
    write_imagenet_train(images)
    write_imagenet_val_flat(images)
    lines = [f"ILSVRC2012_val_{n + 1:08d},{SYNSETS[i]} 85 1 499 272 " for n, i in enumerate(VAL_ORDER)]
    solution = folder / "LOC_val_solution.csv"
    solution.write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")
    return solution


# Domains


def write_domainnet(folder: Path, classes: Mapping[str, int] | None = None) -> None:
    """Six domains, for each class two training images and one for testing; shades by domain and class."""
    for domain_number, domain in enumerate(DOMAINNET_DOMAINS):
        for part, images in (("train", 2), ("test", 1)):
            lines = []
            for name, label in (classes or {"aircraft_carrier": 0, "zigzag": 344}).items():
                for image in range(images):
                    path = f"{domain}/{name}/{domain}_{label:03d}_{part}{image}.jpg"
                    write_image(folder / path, 40 * domain_number + 10 * (label > 0))
                    lines.append(f"{path} {label}\n")
            (folder / f"{domain}_{part}.txt").write_text("".join(lines))


def write_office_home(folder: Path, images: int = 5) -> None:
    """Four domains of two classes."""
    for number, domain in enumerate(OFFICE_HOME_DOMAINS):
        for label, name in enumerate(("Alarm_Clock", "TV")):
            for image in range(images):
                write_image(folder / domain / name / f"{image + 1:05d}.jpg", 60 * number + 10 * image + label)
    (folder / "ImageInfo.csv").write_text("what the archive has beside the domains\n")


# Decathlon


def write_decathlon(folder: Path, sets: Sequence[str] = DECATHLON_SETS) -> None:
    """Each set with two categories, "a" and "b", two training images and one for validation of each."""
    for number, name in enumerate(sets, start=1):
        for part, images in (("train", 2), ("val", 1)):
            write_decathlon_part(folder, name, part, images, number)
        write_image(folder / "data" / name / "test" / "000001.jpg", 1)


def write_decathlon_part(folder: Path, name: str, part: str, images: int, number: int) -> None:
    """One set's json of a part, with its images; ids are large and differ from set to set, as the kit's do."""
    base = 10_000_000 * number
    document: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for category in (1, 2):
        document["categories"].append({"id": base + category, "name": "ab"[category - 1], "supercategory": name})
        for image in range(images):
            file = f"data/{name}/{part}/{category:04d}/{image:06d}.jpg"
            write_image(folder / file, 20 * number + 10 * (category - 1), size=(72, 80))
            identifier = base + 1000 * (part == "val") + 10 * category + image
            document["images"].append({"id": identifier, "file_name": file, "width": 72, "height": 80})
            annotation = {"id": identifier, "image_id": identifier, "category_id": base + category}
            document["annotations"].append(annotation)
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{name}_{part}.json").write_text(json.dumps(document))
