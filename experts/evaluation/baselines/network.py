"""What the methods that train one network share: the network, its columns, what it learned from.

The network has a column for every class from the start, as is usual for these methods: which classes will come is told
to them, and only those seen so far are ever answered with.

Legend: B batch, A classes that may be named, N images of a task.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experts.data.dataset import ImageDataset, class_columns
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.cost import Holdings
from experts.evaluation.heads import Heads
from experts.evaluation.inputs import Inputs
from experts.evaluation.networks import NetworkForm
from experts.evaluation.training import TrainingConfig
from experts.generators import torch_generator

__all__ = ["NetworkBaseline", "NetworkSetup", "outputs_of"]

_BATCH = 1000
"""Images at a time when scoring; bounds memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NetworkSetup:
    """The network of a method, before it is made."""

    inputs: Inputs
    """What it is fed."""

    form: NetworkForm
    """What it is."""

    classes: tuple[str, ...]
    """All that will come, its columns, sorted."""

    told: tuple[tuple[str, ...], ...] = ()
    """Classes of each task, where tasks are told: the network has a head for each. None where they are not."""

    @property
    def heads(self) -> Heads | None:
        """Of the network; None for one of all columns."""
        if not self.told:
            return None
        return Heads([class_columns(own, self.classes).tolist() for own in self.told], len(self.classes))

    def build(self, generator: torch.Generator) -> nn.Module:
        """The network with initial weights from the generator."""
        return self.form(self.inputs.shape, self.classes, generator)


class NetworkBaseline(Baseline):
    """One network for all tasks; how it learns, the subclass says."""

    def __init__(self, name: str, setup: NetworkSetup, config: TrainingConfig, *, seed: int) -> None:
        """
        Args:
            name: The method's.
            setup: The network.
            config: Of the training on each task.
            seed: Of the initial weights and of all that the method draws.
        """
        super().__init__()
        self.name = name
        self._setup = setup
        self._config = config
        self._generator = torch_generator(seed, name)
        self._network = setup.build(self._generator)
        self._heads = setup.heads
        self._flops = 0
        self._sent_bytes = 0
        self._image_bytes = 0

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """The network's logits; before anything was learned, those of its initial weights."""
        logits_BC = outputs_of(self._network, self._setup.inputs(images))
        known = [name for name in allowed if name in self._setup.classes]
        scores_BA = logits_BC.new_full((len(images), len(allowed)), -torch.inf)
        scores_BA[:, class_columns(known, allowed)] = logits_BC[:, class_columns(known, self._setup.classes)]
        return scores_BA

    def holdings(self) -> Holdings:
        """Every weight is updated by every task, and the images of all tasks were sent to the one network."""
        num_parameters = sum(parameter.numel() for parameter in self._network.parameters())
        return Holdings(
            num_parameters=num_parameters,
            num_updated=num_parameters,
            kept_bytes=self._num_kept() * self._image_bytes + self._beside_bytes(),
            sent_bytes=self._sent_bytes,
            flops=self._flops,
        )

    def _learn(self, task: ImageDataset) -> None:
        inputs = self._setup.inputs
        # What is kept of past tasks are images: their inputs are made again, and so are those of this task.
        self._flops += (len(task) + self._num_kept()) * inputs.flops_per_image
        self._sent_bytes += task.images.nbytes
        self._image_bytes = task.images[0].nbytes
        self._flops += self._train(inputs(task.images), class_columns(task.labels, self._setup.classes))

    def _num_kept(self) -> int:
        """Images kept of past data."""
        return 0

    def _beside_bytes(self) -> int:
        """Of what is kept beside images."""
        return 0

    @abstractmethod
    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        """Learn from a task's inputs ``(N, ...)`` and columns ``(N,)``; returns the FLOPs that took."""


@torch.no_grad()
def outputs_of(network: nn.Module, inputs_N: Tensor) -> Tensor:
    """What a network says of inputs ``(N, ...)``, without gradients: ``(N, C)``."""
    return torch.cat([network(batch) for batch in torch.split(inputs_N, _BATCH)])
