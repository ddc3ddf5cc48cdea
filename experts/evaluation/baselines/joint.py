"""The upper reference: a network trained from scratch on everything seen, after every task anew.

It keeps all data, which continual learning may not: what it loses on old tasks is the price of more classes
to tell apart, not of forgetting.
"""

import torch
from torch import Tensor

from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.training import Objective, TrainingConfig, train
from experts.generators import torch_generator

__all__ = ["JointBaseline"]


class JointBaseline(NetworkBaseline):
    """Retraining on the union of all tasks so far."""

    def __init__(self, setup: NetworkSetup, config: TrainingConfig, *, seed: int) -> None:
        """
        Args:
            setup: The network.
            config: Of each training; epochs count the union.
            seed: Of the initial weights and the order of images, the same at every training.
        """
        super().__init__("joint", setup, config, seed=seed)
        self._seed = seed
        self._tasks: list[tuple[Tensor, Tensor]] = []

    def _num_kept(self) -> int:
        return sum(len(columns_N) for _, columns_N in self._tasks)

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        self._tasks.append((inputs_N, columns_N))
        generator = torch_generator(self._seed, self.name)
        self._network = self._setup.build(generator)
        union = torch.cat([inputs for inputs, _ in self._tasks]), torch.cat([columns for _, columns in self._tasks])
        return train(self._network, union, self._config, generator, Objective(self._heads))
