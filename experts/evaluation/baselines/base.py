"""What every baseline is: something that learns one task after another and is then asked about all of them.

Baselines see raw images and names of classes, are never told which task an image is from, and know only the
classes of tasks learned so far: class-incremental learning. Each draws from a generator of its own name, so
that no method changes another's data or initial weights.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.teachers.cnn import CnnTeacher
from experts.trunk.images import prepare_images

__all__ = ["Baseline", "classify"]


class Baseline(ABC):
    """One method of continual learning, to be compared with."""

    name: ClassVar[str]
    """The method in tables, and the name of its generator."""

    @abstractmethod
    def learn(self, task: ImageDataset) -> None:
        """Learn the next task; its classes may be new, known or both.

        Raises:
            NothingToLearnFrom: If the task has no image.
        """

    @abstractmethod
    def predict(self, images: NDArray[np.uint8]) -> tuple[str, ...]:
        """The likeliest of all classes seen so far for each image, after at least one task.

        Args:
            images: uint8 ``(B, H, W)`` or ``(B, H, W, 3)``.

        Raises:
            MalformedDataset: If the images are not such an array.
        """


def classify(network: CnnTeacher, images: NDArray[np.uint8]) -> tuple[str, ...]:
    """The class with the highest logit for each image."""
    logits_BC = network.logits(prepare_images(images, network.channels, network.pixels))
    return tuple(network.classes[column] for column in logits_BC.argmax(dim=1).tolist())
