"""Permuted Fashion-MNIST: one label space, the pixels of each domain in an order of its own.

After Goodfellow et al. 2013, "An empirical investigation of catastrophic forgetting" (arXiv:1312.6211). The first
domain's pixels stand where they were. A permutation leaves nothing that a trunk of convolutions was trained for: it
shows how much of a method's success was the trunk's.

Legend: B images, H height, W width.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from experts.data.idx import FASHION_MNIST_CLASSES
from experts.errors import SettingOutOfRange
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.dealt import dealt_domains
from experts.evaluation.scenarios.split import Parts
from experts.generators import portable_uniform

__all__ = ["permuted_fashion_mnist", "permuted_images"]


def permuted_fashion_mnist(
    parts: Parts, *, order: int = 0, num_domains: int = 5, images_per_domain: int = 4_000
) -> Scenario:
    """One task a permutation, each with all test images.

    Args:
        parts: Fashion-MNIST's.
        order: Another number gives other permutations, and deals the training images out otherwise; 0 deals them out as
            they come.
        num_domains: At least 1; the first is not permuted.
        images_per_domain: Training images of each, at least 1. Domains share an image only if there are too few.

    Raises:
        SettingOutOfRange: If there is no domain, or ``images_per_domain`` is below 1, or more than there are.
    """
    if num_domains < 1:
        raise SettingOutOfRange("num_domains", num_domains, allowed="1 or more")
    size = int(np.prod(parts[0].images.shape[1:3]))
    rows = [np.arange(size)]
    for number in range(1, num_domains):
        keys = portable_uniform(f"scenario/{order}", f"permuted-fashion-mnist/pixels/{number}", (size,)).numpy()
        rows.append(np.argsort(keys, kind="stable"))
    names = ["as they are", *(f"permutation {number}" for number in range(1, num_domains))]
    domains = [(name, functools.partial(permuted_images, pixels=row)) for name, row in zip(names, rows, strict=True)]
    return dealt_domains(
        "permuted-fashion-mnist",
        parts,
        domains,
        classes=FASHION_MNIST_CLASSES,
        order=order,
        images_per_domain=images_per_domain,
    )


def permuted_images(images: NDArray[np.uint8], pixels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images whose pixel number i, row by row, is the one that was number ``pixels[i]``.

    Args:
        images: uint8 ``(B, H, W)``.
        pixels: int64 ``(H * W,)``, a permutation.
    Returns: uint8 of the same shape.
    """
    return np.ascontiguousarray(images.reshape(len(images), -1)[:, pixels].reshape(images.shape))
