"""Experience replay: fine-tuning with some items of a reservoir beside every batch.

Chaudhry et al. 2019, "On tiny episodic memories in continual learning" (arXiv:1902.10486), with the reservoir of Riemer
et al. 2019 (arXiv:1810.11910). On trunk features the raw images are what is kept: they are smaller, and another trunk
could read them.
"""

from torch import Tensor

from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.reservoir import Reservoir
from experts.evaluation.training import TrainingConfig, train
from experts.generators import torch_generator

__all__ = ["ReplayBaseline"]


class ReplayBaseline(NetworkBaseline):
    """ER with a stated number of items."""

    def __init__(
        self, setup: NetworkSetup, config: TrainingConfig, *, capacity: int, replay_size: int = 10, seed: int
    ) -> None:
        """
        Args:
            setup: The network.
            config: Of the training on each task.
            capacity: Items kept, at least 1.
            replay_size: Items replayed a step, at least 1; a setting of its own, whatever the batch size.
            seed: Of the initial weights, the order of images and the reservoir.

        Raises:
            SettingOutOfRange: If a number is below 1.
        """
        super().__init__(f"ER {capacity}", setup, config, seed=seed)
        generator = torch_generator(seed, f"{self.name}/reservoir")
        self._reservoir = Reservoir(capacity, draw_size=replay_size, generator=generator)

    def _num_kept(self) -> int:
        return len(self._reservoir)

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        return train(self._network, (inputs_N, columns_N), self._config, self._generator, self._reservoir)
