"""The upper reference: the reference CNN trained from scratch on everything seen, after every task anew.

It keeps all data, which continual learning may not: what it loses on old tasks is the price of more classes
to tell apart, not of forgetting.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.errors import NothingToLearnFrom
from experts.evaluation.baselines.base import Baseline, classify
from experts.generators import torch_generator
from experts.teachers.cnn import CnnTeacher, TeacherConfig, train_teacher
from experts.trunk.images import prepare_images

__all__ = ["JointBaseline"]


class JointBaseline(Baseline):
    """Retraining on the union of all tasks so far."""

    name: ClassVar[str] = "joint"

    def __init__(self, config: TeacherConfig, *, channels: int, pixels: int, seed: int) -> None:
        """
        Args:
            config: Of each training; epochs count the union.
            channels: 1 or 3, of the images as the network takes them.
            pixels: Their height and width.
            seed: Of the initial weights and the order of images, the same at every training.
        """
        self._config = config
        self._channels = channels
        self._pixels = pixels
        self._seed = seed
        self._tasks: list[ImageDataset] = []
        self._network: CnnTeacher | None = None

    def learn(self, task: ImageDataset) -> None:
        """Keep the task's images, and train a new network on all that are kept."""
        if len(task) == 0:
            raise NothingToLearnFrom("task")
        self._tasks.append(task)
        images = [prepare_images(kept.images, self._channels, self._pixels) for kept in self._tasks]
        labels = [label for kept in self._tasks for label in kept.labels]
        generator = torch_generator(self._seed, self.name)
        self._network = train_teacher(torch.cat(images), labels, self._config, generator)

    def predict(self, images: NDArray[np.uint8]) -> tuple[str, ...]:
        """The class with the highest logit; every class seen has one."""
        assert self._network is not None, "predict before learn"
        return classify(self._network, images)
