"""Experience replay: fine-tuning with some items of a reservoir beside every batch.

    L = mean over the batch and the replayed items of CE(f(x), y)

Chaudhry et al. 2019, "On tiny episodic memories in continual learning" (arXiv:1902.10486), with the reservoir of Riemer
et al. 2019 (arXiv:1810.11910). On trunk features the raw images are what is kept: they are smaller, and another trunk
could read them.
"""

import torch
from torch import Tensor, nn

from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.heads import Heads
from experts.evaluation.reservoir import Reservoir
from experts.evaluation.training import Objective, TrainingConfig, train
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
        objective = _Replayed(self._reservoir, self._heads)
        return train(self._network, (inputs_N, columns_N), self._config, self._generator, objective)


class _Replayed(Objective):
    """The batch and a draw of the reservoir as one."""

    def __init__(self, reservoir: Reservoir, heads: Heads | None) -> None:
        super().__init__(heads)
        self._reservoir = reservoir

    @property
    def num_replayed(self) -> int:
        return self._reservoir.num_drawn

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        drawn = self._reservoir.draw()
        if drawn is not None:
            batch = tuple(torch.cat([new, old]) for new, old in zip(batch, drawn, strict=True))
        return super().loss(network, batch)

    def learned(self, batch: tuple[Tensor, ...]) -> None:
        self._reservoir.keep(*batch)
