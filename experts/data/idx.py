"""The idx format of MNIST's family: a magic number, big-endian dimensions, raw bytes; usually gzipped.

Format: http://yann.lecun.com/exdb/mnist/, "the IDX file format". Of its types only unsigned bytes (8) occur.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.errors import MalformedDataset

__all__ = ["FASHION_MNIST_CLASSES", "load_fashion_mnist", "read_idx"]

FASHION_MNIST_CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""By label 0 to 9 (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, table 2)."""

_MAX_BYTES = 1 << 30
"""Ten times the largest file of the family; a wrong header must not ask for more memory than that."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Raises: MalformedDataset: If the file cannot be read, is of another type, or is not as long as it says.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] == 0:
                raise MalformedDataset(str(path), reason="not an idx file of unsigned bytes")
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise MalformedDataset(str(path), reason="ends within its header")
            dims = [int(dim) for dim in np.frombuffer(header, dtype=">u4")]
            num_bytes = math.prod(dims)
            if num_bytes > _MAX_BYTES:
                raise MalformedDataset(str(path), reason=f"claims {num_bytes} bytes, {_MAX_BYTES} allowed")
            body = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise MalformedDataset(str(path), reason=f"cannot be read: {exc}") from exc
    if len(body) != num_bytes:
        raise MalformedDataset(str(path), reason=f"its length is not the {num_bytes} bytes it claims")
    return np.frombuffer(body, dtype=np.uint8).reshape(dims)


def load_fashion_mnist(directory: Path) -> tuple[ImageDataset, ImageDataset]:
    """Fashion-MNIST from the four files under their usual names, ``train-images-idx3-ubyte.gz`` and so on.

    Returns: 60,000 training and 10,000 test images ``(N, 28, 28)`` with the names of `FASHION_MNIST_CLASSES`.
    Raises: MalformedDataset: If a file is missing or not what its name says.
    """
    return _read_part(directory, "train"), _read_part(directory, "t10k")


def _read_part(directory: Path, part: str) -> ImageDataset:
    images = read_idx(directory / f"{part}-images-idx3-ubyte.gz")
    labels_path = directory / f"{part}-labels-idx1-ubyte.gz"
    labels = read_idx(labels_path)
    if labels.ndim != 1 or labels.max(initial=0) >= len(FASHION_MNIST_CLASSES):
        raise MalformedDataset(str(labels_path), reason="not a list of labels from 0 to 9")
    return ImageDataset(images, tuple(FASHION_MNIST_CLASSES[label] for label in labels))
