"""The data sets that have a name of their own."""

from collections.abc import Callable, Mapping
from pathlib import Path

from experts.data.dataset import ImageDataset
from experts.data.digits import load_digits
from experts.data.idx import load_fashion_mnist
from experts.data.mnist5k import load_mnist_5k
from experts.errors import MalformedDataset, UnknownDataset

__all__ = ["DATASET_NAMES", "load_named"]


def load_named(name: str, directory: Path | None = None) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part of a named data set.

    Args:
        name: One of `DATASET_NAMES`.
        directory: Where its files are; None only for a data set that has none ("digits").
    Raises: UnknownDataset: If there is no such name. MalformedDataset: If its files are missing, damaged
        or nowhere to be looked for.
    """
    if name not in _READERS:
        raise UnknownDataset(name, known=DATASET_NAMES)
    return _READERS[name](directory)


def _digits(_: Path | None) -> tuple[ImageDataset, ImageDataset]:
    return load_digits()


def _fashion_mnist(directory: Path | None) -> tuple[ImageDataset, ImageDataset]:
    if directory is None:
        raise MalformedDataset("fashion-mnist", reason="needs the directory of its idx files")
    return load_fashion_mnist(directory)


def _mnist_5k(_: Path | None) -> tuple[ImageDataset, ImageDataset]:
    return load_mnist_5k()


_READERS: Mapping[str, Callable[[Path | None], tuple[ImageDataset, ImageDataset]]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "mnist-5k": _mnist_5k,
}

DATASET_NAMES = tuple(sorted(_READERS))
"""Every name that `load_named` knows."""
