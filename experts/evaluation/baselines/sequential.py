"""The lower reference: one network fine-tuned by plain SGD, task after task.

Cross-entropy runs over all classes, so on a task without the old ones their logits are only ever pushed down:
forgetting is near total, as in the literature (SGD in Buzzega et al. 2020, "Dark experience for general continual
learning", arXiv:2004.07211, table 2).
"""

from torch import Tensor

from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.training import Objective, TrainingConfig, train

__all__ = ["SequentialBaseline"]


class SequentialBaseline(NetworkBaseline):
    """Fine-tuning on the newest task alone."""

    def __init__(self, setup: NetworkSetup, config: TrainingConfig, *, seed: int) -> None:
        """
        Args:
            setup: The network.
            config: Of the training on each task.
            seed: Of the initial weights and the order of images.
        """
        super().__init__("sequential", setup, config, seed=seed)

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        objective = Objective(self._heads)
        return train(self._network, (inputs_N, columns_N), self._config, self._generator, objective)
