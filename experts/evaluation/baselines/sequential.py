"""The lower reference: the reference CNN fine-tuned by plain SGD, task after task.

One head grows by the classes of each task. Cross-entropy runs over all classes seen, so on a task without
the old ones their logits are only ever pushed down: forgetting is near total, as in the literature (SGD in
Buzzega et al. 2020, "Dark experience for general continual learning", arXiv:2004.07211, table 2).

Legend: B batch, C class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experts.data.dataset import ImageDataset, class_columns
from experts.errors import NothingToLearnFrom, SettingOutOfRange
from experts.evaluation.baselines.base import Baseline, classify
from experts.generators import torch_generator
from experts.teachers.cnn import CnnTeacher, untrained_cnn
from experts.trunk.images import prepare_images

__all__ = ["SequentialBaseline", "SequentialConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SequentialConfig:
    """How each task is trained.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    epochs: int = 5
    """Passes over a task, at least 1; five learn two classes of the digits, 150 images each, to 97%."""

    batch_size: int = 32
    """Images per step, at least 1."""

    lr: float = 0.05
    """SGD learning rate, above 0; there is no momentum to carry one task into the next."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not 0.0 < self.lr < float("inf"):
            raise SettingOutOfRange("lr", self.lr, allowed="finite and above 0")


class SequentialBaseline(Baseline):
    """Fine-tuning on the newest task alone."""

    name: ClassVar[str] = "sequential"

    def __init__(self, config: SequentialConfig, *, channels: int, pixels: int, seed: int) -> None:
        """
        Args:
            config: Of the training on each task.
            channels: 1 or 3, of the images as the network takes them.
            pixels: Their height and width.
            seed: Of the initial weights and the order of images.
        """
        self._config = config
        self._channels = channels
        self._pixels = pixels
        self._generator = torch_generator(seed, self.name)
        self._network: CnnTeacher | None = None

    def learn(self, task: ImageDataset) -> None:
        """Grow the head by the task's new classes and train all weights on the task's images."""
        if len(task) == 0:
            raise NothingToLearnFrom("task")
        network = self._network = self._with_classes(task.classes)
        images_NCHW = prepare_images(task.images, self._channels, self._pixels)
        columns_N = class_columns(task.labels, network.classes)
        optimizer = torch.optim.SGD(network.parameters(), lr=self._config.lr)
        for _ in range(self._config.epochs):
            order = torch.randperm(len(task), generator=self._generator)
            for rows in torch.split(order, self._config.batch_size):
                loss = functional.cross_entropy(network(images_NCHW[rows]), columns_N[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def predict(self, images: NDArray[np.uint8]) -> tuple[str, ...]:
        """The class with the highest logit; every class seen has one."""
        assert self._network is not None, "predict before learn"
        return classify(self._network, images)

    def _with_classes(self, classes: Sequence[str]) -> CnnTeacher:
        """The present network if it knows these classes, else one that also does: old weights, new rows."""
        old = self._network
        known = () if old is None else old.classes
        if old is not None and set(classes) <= set(known):
            return old
        network = untrained_cnn(
            {*known, *classes}, channels=self._channels, pixels=self._pixels, generator=self._generator
        )
        if old is not None:
            _copy_known(old, network)
        return network


def _copy_known(old: CnnTeacher, network: CnnTeacher) -> None:
    """All weights of ``old``; in the head, into the rows of the same classes."""
    rows_C = class_columns(old.classes, network.classes)
    head = f"layers.{len(network.layers) - 1}."
    weights = network.state_dict()
    with torch.no_grad():
        for name, value in old.state_dict().items():
            if name.startswith(head):
                weights[name][rows_C] = value
            else:
                weights[name].copy_(value)
