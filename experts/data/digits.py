"""Handwritten digits, 1,797 grey images of 8 x 8: the data set that needs no file.

scikit-learn carries the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
UCI machine learning repository, doi:10.24432/C50P49); a pixel counts the 0 to 16 dark dots of a 4 x 4 cell.
"""

import numpy as np

from experts.data.dataset import ImageDataset

__all__ = ["load_digits"]

_SPLIT_SEED = 0
"""Every node must test on the same held-out images, so the split is not a setting."""


def load_digits() -> tuple[ImageDataset, ImageDataset]:
    """The digits "0" to "9" as training and test images, a stratified 80/20 split that never changes.

    Returns: 1,438 training and 359 test images ``(N, 8, 8)``, 0 to 16 scaled to 0 to 255.
    """
    # Imported here: scikit-learn takes a second to load, and most processes read other data.
    from sklearn import datasets  # noqa: PLC0415

    bundle = datasets.load_digits()
    images = np.round(np.asarray(bundle.images) * (255 / 16)).astype(np.uint8)
    labels = tuple(str(int(digit)) for digit in bundle.target)
    return ImageDataset(images, labels).split(0.2, seed=_SPLIT_SEED)
