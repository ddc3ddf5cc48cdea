"""What experts are carried over on: Fashion-MNIST as pixels and as features of a trunk, and MNIST-5k as pixels.

The pool is what is learned from and what buffers are drawn from. Learning rates are chosen on the validation images,
which are training images too; nothing but accuracies is taken from the test images. Pixels are given the mean of each
over the pool and one deviation for all.

Legend: N images, D feature, C channel, H height, W width.
"""

from typing import NamedTuple

import torch
from bench_experts_data import Ground
from torch import Tensor

from experts.data.dataset import ImageDataset, class_columns
from experts.data.mnist5k import load_mnist_5k
from experts.trunk.images import prepare_images

__all__ = ["Items", "Part", "digits", "fashion_features", "fashion_pixels"]

TAP = "E5"


class Part(NamedTuple):
    """Some of the items."""

    images: ImageDataset
    features_ND: Tensor
    columns_N: Tensor
    """int64."""

    def prepared(self) -> Tensor:
        """As the reference CNN sees them, ``(N, C, H, W)`` in [0, 1]."""
        return prepare_images(self.images.images, self.images.channels, self.images.images.shape[1])

    def of(self, rows: Tensor) -> "Part":
        """These rows alone."""
        return Part(self.images.select(rows.numpy()), self.features_ND[rows], self.columns_N[rows])


class Items(NamedTuple):
    """A data set as experts see it."""

    told: str
    classes: tuple[str, ...]
    """Sorted: what columns stand for."""
    pool: Part
    validation: Part
    test: Part


def fashion_pixels(ground: Ground) -> Items:
    """784 pixels."""
    return _pixels("Fashion-MNIST, pixels", ground.classes, ground.pool, ground.validation, ground.test)


def fashion_features(ground: Ground) -> Items:
    """2,160 features of the trunk."""
    of = ground.features(TAP)
    images, features = (ground.pool, ground.validation, ground.test), (of.pool, of.validation, of.test)
    pool, validation, test = (
        Part(part, features_ND, ground.columns(part)) for part, features_ND in zip(images, features, strict=True)
    )
    told = f"Fashion-MNIST, efficientnet-lite0 tap {TAP} at {of.trunk.input_pixels} px"
    return Items(told, ground.classes, pool, validation, test)


def digits(validation_ratio: float = 0.125) -> Items:
    """MNIST-5k: 784 pixels.

    Args:
        validation_ratio: Share of its training images that are kept for the choice of rates.
    """
    train, test = load_mnist_5k()
    pool, validation = train.split(validation_ratio, seed=0)
    return _pixels("MNIST-5k, pixels", train.classes, pool, validation, test)


def _pixels(told: str, classes: tuple[str, ...], *parts: ImageDataset) -> Items:
    raw = [torch.from_numpy(part.images).flatten(1).float() for part in parts]
    mean_D, deviation = raw[0].mean(dim=0), raw[0].std()
    pool, validation, test = (
        Part(part, (raw_ND - mean_D) / deviation, class_columns(part.labels, classes))
        for part, raw_ND in zip(parts, raw, strict=True)
    )
    return Items(told, classes, pool, validation, test)
