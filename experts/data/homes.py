"""Public data sets that nobody may or can download for a user: where they are had, and how they have to lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experts.errors import DatasetAbsent

__all__ = ["HOMES", "Home", "existing"]


@dataclass(frozen=True, slots=True)
class Home:
    """Where a data set is had."""

    url: str
    """Its authors' page."""
    size: str
    """To download."""
    layout: str
    """What its folder has to hold, as the downloads unpack."""


HOMES: Mapping[str, Home] = {
    "cifar-100": Home(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "169 MB",
        "cifar-100-python/train, test and meta, or cifar-100-binary/train.bin, test.bin and fine_label_names.txt",
    ),
    "imagenet": Home(
        "https://image-net.org/download.php, or the Kaggle competition imagenet-object-localization-challenge",
        "about 145 GB",
        "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or a flat val/*.JPEG beside ILSVRC2012_devkit_t12/ or "
        "LOC_val_solution.csv, or Kaggle's ILSVRC/Data/CLS-LOC/ beside that csv",
    ),
    "domainnet": Home(
        "https://ai.bu.edu/M3SDA/",
        "17.5 GB",
        "<domain>/<class>/*.jpg with <domain>_train.txt and <domain>_test.txt, for clipart, infograph, painting, "
        "quickdraw, real and sketch",
    ),
    "office-home": Home(
        "https://www.hemanthdv.org/officeHomeDataset.html",
        "about 1.1 GB",
        "Art/, Clipart/, Product/ and Real World/, each with <class>/*.jpg",
    ),
    "visual-decathlon": Home(
        "https://www.robots.ox.ac.uk/~vgg/decathlon/",
        "430 MB, and 6.6 GB of ImageNet from https://image-net.org/download.php",
        "annotations/<set>_train.json and <set>_val.json of the devkit, and data/<set>/train/ and val/",
    ),
}
"""By the name of the data set, before the "/" of its part."""


def existing(name: str, folder: Path, *paths: str) -> Path:
    """The first of these paths in a folder that exists.

    Args:
        name: Of `HOMES`.
        folder: The data set's.
        paths: Relative; at least one.
    Raises: DatasetAbsent: If there is none of them; it says what is expected, and where that is had.
    """
    for path in paths:
        if (folder / path).exists():
            return folder / path
    home = HOMES[name]
    missing = " or ".join(str(folder / path) for path in paths)
    raise DatasetAbsent(name, missing, layout=f"{home.layout} in {folder}", home=f"{home.url} ({home.size})")
