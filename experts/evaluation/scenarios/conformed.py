"""Images of several sources made alike, since those of a scenario have one size.

Legend: N images, P pixels of a side.
"""

from collections.abc import Mapping

import numpy as np
import torch

from experts.data.dataset import ImageDataset
from experts.evaluation.scenarios.split import Parts
from experts.trunk.images import prepare_images

__all__ = ["conformed"]

_BATCH = 1000
"""Images at a time; bounds memory."""


def conformed(parts: Mapping[str, Parts], pixels: int | None) -> dict[str, Parts]:
    """All in colour if some are, and all of one size if that is given.

    Args:
        parts: By the names of their tasks.
        pixels: P; None leaves the sizes as they are.
    Returns: The same images, ``(N, P, P)`` or ``(N, P, P, 3)``; those that are so already are not copied.
    """
    channels = max(part.channels for both in parts.values() for part in both)
    return {
        name: (_conformed(train, channels, pixels), _conformed(test, channels, pixels))
        for name, (train, test) in parts.items()
    }


def _conformed(part: ImageDataset, channels: int, pixels: int | None) -> ImageDataset:
    images = part.images
    if pixels is not None and images.shape[1:3] != (pixels, pixels):
        prepared = [
            prepare_images(images[row : row + _BATCH], channels, pixels) for row in range(0, len(images), _BATCH)
        ]
        pixels_NCPP = (255 * torch.cat(prepared)).round().to(torch.uint8).numpy()
        images = pixels_NCPP.transpose(0, 2, 3, 1) if channels == 3 else pixels_NCPP[:, 0]
    elif part.channels < channels:
        images = np.repeat(images[..., None], 3, axis=3)
    return part if images is part.images else ImageDataset(np.ascontiguousarray(images), part.labels)
