"""Rotated Fashion-MNIST: one label space, seen from five angles (after Lopez-Paz and Ranzato 2017, arXiv:1706.08840).

Which domain an image is from is known when its task is learned, as its angle comes with the data, and never when it is
tested.

Legend: B batch, H height, W width.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experts.data.idx import FASHION_MNIST_CLASSES
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.dealt import dealt_domains
from experts.evaluation.scenarios.split import Parts
from experts.generators import portable_uniform

__all__ = ["ANGLES", "drawn_angles", "rotated_fashion_mnist", "rotated_images"]

ANGLES = (0.0, 36.0, 72.0, 108.0, 144.0)
"""In degrees, counter-clockwise."""

_BATCH = 1000
"""Images at a time; bounds memory."""


def rotated_fashion_mnist(
    parts: Parts, *, order: int = 0, angles: Sequence[float] = ANGLES, images_per_domain: int = 4_000
) -> Scenario:
    """One task an angle, each with all test images.

    Args:
        parts: Fashion-MNIST's.
        order: Of the training images before they are dealt out: 0 as they come, another number another one.
        angles: One domain each, in degrees.
        images_per_domain: Training images of each, at least 1. Domains share an image only if there are too few.

    Raises:
        SettingOutOfRange: If ``images_per_domain`` is below 1, or more than there are.
    """
    domains = [(f"{angle:g} degrees", functools.partial(rotated_images, degrees=angle)) for angle in angles]
    return dealt_domains(
        "rotated-fashion-mnist",
        parts,
        domains,
        classes=FASHION_MNIST_CLASSES,
        order=order,
        images_per_domain=images_per_domain,
    )


def drawn_angles(order: int, num_domains: int = len(ANGLES)) -> tuple[float, ...]:
    """Angles at random in [0, 180) degrees, as Buzzega et al. 2020 (arXiv:2004.07211, sec. 4.1) have them.

    How much there is to forget depends on the draw: a method is to be measured on several.

    Args:
        order: Which draw; the same number gives the same angles everywhere.
        num_domains: How many.
    """
    uniform = portable_uniform(f"rotated-fashion-mnist/{order}", "angles", (num_domains,))
    return tuple(180.0 * share for share in uniform.tolist())


def rotated_images(images: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Images turned about their centre, bilinearly, black where nothing comes from inside.

    Args:
        images: uint8 ``(B, H, W)``.
        degrees: Counter-clockwise.
    Returns: uint8 of the same shape.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = images.shape[1:]
    # Where each output pixel comes from, in coordinates that run from -1 to 1 on either axis.
    source = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    turned = np.empty_like(images)
    for start in range(0, len(images), _BATCH):
        pixels_B1HW = torch.from_numpy(images[start : start + _BATCH].astype(np.float32))[:, None]
        grid_BHW2 = functional.affine_grid(
            source.expand(len(pixels_B1HW), 2, 3), list(pixels_B1HW.shape), align_corners=False
        )
        turned_B1HW = functional.grid_sample(pixels_B1HW, grid_BHW2, mode="bilinear", align_corners=False)
        turned[start : start + _BATCH] = turned_B1HW[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    return turned
