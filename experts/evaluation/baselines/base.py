"""What every method is: something that learns one task after another and is then asked about all of them.

Methods see raw images and names of classes, and are never told which task an image is from: what may be told is which
classes an answer may name, all seen in class-incremental learning, those of the task in task-incremental learning.
Each draws from a generator of its own name, so that no method changes another's data or initial weights.

Legend: B batch, A classes that may be named.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.data.dataset import ImageDataset
from experts.errors import NothingToLearnFrom
from experts.evaluation.cost import Holdings

__all__ = ["Baseline", "named_answers"]


class Baseline(ABC):
    """One method of continual learning."""

    name: str
    """The method in tables, and the name of its generator."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of the classes of all tasks learned, sorted."""
        return tuple(sorted(self._seen))

    def learn(self, task: ImageDataset) -> None:
        """Learn the next task; its classes may be new, known or both.

        Raises:
            NothingToLearnFrom: If the task has no image.
        """
        if len(task) == 0:
            raise NothingToLearnFrom("task")
        self._seen.update(task.classes)
        self._learn(task)

    @abstractmethod
    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """How likely each class is, in any unit that grows with it, among those an answer may name.

        Args:
            images: uint8 ``(B, H, W)`` or ``(B, H, W, 3)``.
            allowed: Class names, the columns.

        Returns: ``(B, A)``, -inf in the column of a class that the method has nothing to say about.

        Raises:
            MalformedDataset: If the images are not such an array.
        """

    @abstractmethod
    def holdings(self) -> Holdings:
        """What it has and has done so far."""

    def predict(self, images: NDArray[np.uint8]) -> tuple[str, ...]:
        """The likeliest of all classes seen so far for each image, after at least one task.

        Raises:
            MalformedDataset: If the images are not an array of them.
        """
        assert self._seen, "predict before learn"
        answers = named_answers(self.scores(images, self.seen), self.seen)
        assert answers is not None, "a class was learned and has no score"
        return answers

    @abstractmethod
    def _learn(self, task: ImageDataset) -> None:
        """Learn a task that has an image."""


def named_answers(scores_BA: Tensor, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """The class with the highest score of each row; None if there is a row without any: that is no answer."""
    if len(allowed) == 0 or bool(torch.isneginf(scores_BA).all(dim=1).any()):
        return None
    return tuple(allowed[column] for column in scores_BA.argmax(dim=1).tolist())
