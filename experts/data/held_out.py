"""Which images only judge: one in five, by a digest of the image itself.

So an image is held out on every run, in whichever file it turns up, and no file of splits has to be kept.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["image_digest", "is_held_out"]


def image_digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 of an image's pixels in C order."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()


def is_held_out(digest: bytes) -> bool:
    """Whether the image with this digest only judges. Its last byte decides, so that an order by digest does not."""
    return digest[-1] % 5 == 0
