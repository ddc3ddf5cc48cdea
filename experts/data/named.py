"""The data sets that have a name of their own."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from experts.data.cifar100 import load_cifar_100
from experts.data.dataset import ImageDataset
from experts.data.decathlon import DECATHLON_SETS, load_decathlon
from experts.data.digits import load_digits
from experts.data.domains import DOMAINNET_DOMAINS, OFFICE_HOME_DOMAINS, load_domainnet, load_office_home
from experts.data.homes import HOMES
from experts.data.idx import load_fashion_mnist
from experts.data.image_files import ReadingConfig
from experts.data.imagenet import load_imagenet
from experts.data.mnist5k import load_mnist_5k
from experts.errors import DatasetAbsent, MalformedDataset, UnknownDataset

__all__ = ["DATASET_NAMES", "load_named"]

Parts = tuple[ImageDataset, ImageDataset]


def load_named(name: str, directory: Path | None = None, reading: ReadingConfig | None = None) -> Parts:
    """Training and test part of a named data set.

    Args:
        name: One of `DATASET_NAMES`.
        directory: Where its files are; None only for a data set that has none ("digits", "mnist-5k").
        reading: How image files become arrays, for the sets that are image files; None for the defaults.
    Raises:
        UnknownDataset: If there is no such name.
        DatasetAbsent: If the files of a set that everybody has to get for themselves are not there.
        MalformedDataset: If files are missing, damaged or nowhere to be looked for.
        TooLargeForMemory: If they would take more memory than ``reading`` allows.
    """
    if name not in _READERS:
        raise UnknownDataset(name, known=DATASET_NAMES)
    return _READERS[name](directory, reading or ReadingConfig())


def _digits(_: Path | None, __: ReadingConfig) -> Parts:
    return load_digits()


def _fashion_mnist(directory: Path | None, _: ReadingConfig) -> Parts:
    if directory is None:
        raise MalformedDataset("fashion-mnist", reason="needs the directory of its idx files")
    return load_fashion_mnist(directory)


def _mnist_5k(_: Path | None, __: ReadingConfig) -> Parts:
    return load_mnist_5k()


def _cifar_100(directory: Path | None, _: ReadingConfig) -> Parts:
    return load_cifar_100(_needed("cifar-100", directory))


def _imagenet(directory: Path | None, reading: ReadingConfig) -> Parts:
    return load_imagenet(_needed("imagenet", directory), reading)


def _domainnet(domain: str, directory: Path | None, reading: ReadingConfig) -> Parts:
    return load_domainnet(_needed("domainnet", directory), domain, reading)


def _office_home(domain: str, directory: Path | None, reading: ReadingConfig) -> Parts:
    return load_office_home(_needed("office-home", directory), domain, reading)


def _decathlon(part: str, directory: Path | None, reading: ReadingConfig) -> Parts:
    return load_decathlon(_needed("visual-decathlon", directory), part, reading)


def _needed(name: str, directory: Path | None) -> Path:
    if directory is None:
        home = HOMES[name]
        raise DatasetAbsent(name, "folder given", layout=home.layout, home=f"{home.url} ({home.size})")
    return directory


_READERS: Mapping[str, Callable[[Path | None, ReadingConfig], Parts]] = {
    "cifar-100": _cifar_100,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "imagenet": _imagenet,
    "mnist-5k": _mnist_5k,
    **{f"domainnet/{domain}": partial(_domainnet, domain) for domain in DOMAINNET_DOMAINS},
    **{f"office-home/{domain}": partial(_office_home, domain) for domain in OFFICE_HOME_DOMAINS},
    **{f"visual-decathlon/{part}": partial(_decathlon, part) for part in DECATHLON_SETS},
}

DATASET_NAMES = tuple(sorted(_READERS))
"""Every name that `load_named` knows; one with a "/" is a domain or set of what is before it."""
