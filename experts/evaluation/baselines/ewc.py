"""Online elastic weight consolidation: weights are held near those of the task before, each as much as it matters.

    L = CE(f(x), y) + lambda / 2 sum_w F_w (w - w*)^2
    F <- gamma F + I(theta*)          after each task, theta* the weights it ends with

(Schwarz et al. 2018, arXiv:1805.06370, eq. 9; Kirkpatrick et al. 2017, arXiv:1612.00796). I is the diagonal of the
Fisher information, of each sample's own gradient: the square of a batch's mean gradient is another number. Between
tasks F alone is kept: theta* are the weights that the network then has.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.cost import count_flops
from experts.evaluation.heads import Heads, OneHead
from experts.evaluation.training import Objective, TrainingConfig, train
from experts.preservation.fisher import fisher_diagonal

__all__ = ["Consolidated", "EwcBaseline"]


class EwcBaseline(NetworkBaseline):
    """EWC, online."""

    def __init__(
        self, setup: NetworkSetup, config: TrainingConfig, *, strength: float, gamma: float = 1.0, seed: int
    ) -> None:
        """
        Args:
            setup: The network.
            config: Of the training on each task.
            strength: lambda, at least 0.
            gamma: What earlier tasks count for against the last one, in [0, 1].
            seed: Of the initial weights and the order of images.

        Raises:
            SettingOutOfRange: If a number is outside its range.
        """
        super().__init__("EWC", setup, config, seed=seed)
        if not strength >= 0.0:
            raise SettingOutOfRange("strength", strength, allowed="at least 0")
        if not 0.0 <= gamma <= 1.0:
            raise SettingOutOfRange("gamma", gamma, allowed="in [0, 1]")
        self._strength = strength
        self._gamma = gamma
        self._fisher: dict[str, Tensor] = {}

    def _beside_bytes(self) -> int:
        return sum(value.nbytes for value in self._fisher.values())

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        objective = Consolidated(self._network, self._fisher, self._strength, self._heads)
        flops = train(self._network, (inputs_N, columns_N), self._config, self._generator, objective)
        of_task, of_fisher = count_flops(lambda: self._information(inputs_N, columns_N))
        self._fisher = {
            name: self._gamma * self._fisher[name] + value if name in self._fisher else value
            for name, value in of_task.items()
        }
        return flops + of_fisher

    def _information(self, inputs_N: Tensor, columns_N: Tensor) -> dict[str, Tensor]:
        """I by the names of the network's parameters; where it has heads, of the task's own."""
        if self._heads is None:
            return fisher_diagonal(self._network, inputs_N, columns_N)
        head = OneHead(self._network, set(columns_N.tolist()))
        of_head = fisher_diagonal(head, inputs_N, columns_N)
        return {name.removeprefix("network."): value for name, value in of_head.items()}


class Consolidated(Objective):
    """Cross-entropy and the penalty, which begins at 0."""

    def __init__(
        self, network: nn.Module, fisher: Mapping[str, Tensor], strength: float, heads: Heads | None = None
    ) -> None:
        """
        Args:
            network: Whose weights, as they are now, are theta*.
            fisher: F by the names of `named_parameters`; empty before the first task.
            strength: lambda.
            heads: Of the network.
        """
        super().__init__(heads)
        self._held = {name: value.detach().clone() for name, value in network.named_parameters() if name in fisher}
        self._fisher = fisher
        self._strength = strength

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Both terms, in nats."""
        loss = super().loss(network, batch)
        for name, value in network.named_parameters():
            if name in self._held:
                off = value - self._held[name]
                loss = loss + self._strength / 2 * torch.sum(self._fisher[name] * off.square())
        return loss
