"""DomainNet and Office-Home: the same classes seen in several domains, a folder each.

DomainNet (Peng et al. 2019, arXiv:1812.01754), 345 classes in 6 domains, comes with lists of what is for training and
what for testing; the cleaned lists, which its authors recommend, are those without the duplicates. Of its class
"t_shirt" the painting list for training has no image.

Office-Home (Venkateswara et al. 2017, arXiv:1706.07522), 65 classes in 4 domains, comes without a split, and no paper's
is everybody's: one image in five of each class and domain is tested on, drawn from a portable stream.
"""

from pathlib import Path, PurePosixPath

from experts.data.dataset import ImageDataset
from experts.data.homes import existing
from experts.data.image_files import FileList, ReadingConfig, images_below, read_files
from experts.errors import MalformedDataset

__all__ = ["DOMAINNET_DOMAINS", "OFFICE_HOME_DOMAINS", "domainnet_files", "load_domainnet", "load_office_home"]

DOMAINNET_DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
OFFICE_HOME_DOMAINS = ("Art", "Clipart", "Product", "Real World")

_DOMAINNET_CLASSES = 345
_OFFICE_HOME_ARCHIVE = "OfficeHomeDataset_10072016"
"""The folder that the archive unpacks to."""
_HELD_OUT_RATIO = 0.2
_SPLIT_SEED = 0
"""Everybody must test on the same held-out images, so the split is not a setting."""


def load_domainnet(directory: Path, domain: str, reading: ReadingConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part of one domain, ``(N, P, P, 3)``.

    Args:
        directory: The folder of the domains and the lists.
        domain: One of `DOMAINNET_DOMAINS`.
        reading: How the files are read.
    Raises: As `domainnet_files` and `read_files`.
    """
    train, test = (domainnet_files(directory, domain, part) for part in ("train", "test"))
    return read_files(train, reading), read_files(test, reading)


def domainnet_files(directory: Path, domain: str, part: str) -> FileList:
    """The files of "clipart_train.txt" and the like: lines of a path and the number of its class.

    Classes are named by their folders ("aircraft_carrier").

    Raises:
        DatasetAbsent: If the list or the domain's folder is not there.
        MalformedDataset: If a line is not of that form, its number is not of 345, or numbers and folders do not fit.
    """
    path = existing("domainnet", directory, f"{domain}_{part}.txt")
    existing("domainnet", directory, domain)
    paths, labels = [], []
    number_of: dict[str, int] = {}
    for line_number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        file, _, number = line.rpartition(" ")
        parts = PurePosixPath(file).parts
        if len(parts) != 3 or parts[0] != domain or ".." in parts or not (number.isascii() and number.isdigit()):
            raise MalformedDataset(
                str(path), reason=f"line {line_number} is not {domain}/<class>/<image> and the number of the class"
            )
        if int(number) >= _DOMAINNET_CLASSES:
            reason = f"line {line_number}: class {number} where there are {_DOMAINNET_CLASSES}"
            raise MalformedDataset(str(path), reason=reason)
        if number_of.setdefault(parts[1], int(number)) != int(number):
            reason = f"line {line_number}: {parts[1]} is class {number} here and {number_of[parts[1]]} above"
            raise MalformedDataset(str(path), reason=reason)
        paths.append(file)
        labels.append(parts[1])
    return FileList(f"domainnet {domain} {part}", directory, tuple(paths), tuple(labels))


def load_office_home(directory: Path, domain: str, reading: ReadingConfig) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part of one domain, ``(N, P, P, 3)``, four images and one in five.

    Args:
        directory: The folder of the domains, or the one above it.
        domain: One of `OFFICE_HOME_DOMAINS`; its folder may have an underscore for the space, or none at all.
        reading: How the files are read.
    Raises:
        DatasetAbsent: If the domain's folder is not there.
        MalformedDataset: As `images_below` and `read_files`.
        TooLargeForMemory: As `read_files`.
    """
    spellings = dict.fromkeys((domain, domain.replace(" ", "_"), domain.replace(" ", "")))
    above = directory / _OFFICE_HOME_ARCHIVE
    folder = existing("office-home", above if above.is_dir() else directory, *spellings)
    files = images_below(f"office-home {domain}", folder)
    train, test = files.split(_HELD_OUT_RATIO, seed=_SPLIT_SEED)
    return read_files(train, reading), read_files(test, reading)
