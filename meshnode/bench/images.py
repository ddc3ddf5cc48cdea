"""What the mesh is asked about: images in a seeded order, round and round."""

import numpy as np
from numpy.typing import NDArray

from experts.data.named import load_named
from experts.generators import portable_uniform

__all__ = ["Batches", "digits_test_images"]


def digits_test_images() -> NDArray[np.uint8]:
    """The test part of scikit-learn's digits, ``(359, 8, 8)``: real images that are here without a file.

    A mesh of any input takes them, for its trunk sets size and colours.
    """
    _, test = load_named("digits")
    return test.images


class Batches:
    """The images of each request.

    Args:
        images: uint8 ``(N, H, W)`` or ``(N, H, W, channels)``, N at least 1; fewer than a batch are repeated in it.
        batch: Images a request.
        seed: Of their order.
    """

    def __init__(self, images: NDArray[np.uint8], batch: int, *, seed: int) -> None:
        self._images = images
        self._batch = batch
        self._order = np.argsort(portable_uniform(str(seed), "images", (len(images),)).numpy(), kind="stable")

    def __call__(self, number: int) -> NDArray[np.uint8]:
        """The images of request `number`, whatever became of the others."""
        first = number * self._batch
        return self._images[self._order.take(range(first, first + self._batch), mode="wrap")]
