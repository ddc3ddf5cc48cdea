"""The standard mixture of experts, task after task: gate and experts one network, one gradient, balanced load.

    L = -mean log sum_i g_i(x) E_i(x)_y + lambda_b N sum_i pi_i log pi_i,  g = softmax of the gate, pi its mean

(Jacobs et al. 1991, "Adaptive mixtures of local experts"; a load-balancing term as in Shazeer et al. 2017,
arXiv:1701.06538, here the one of `experts.router.regularisers`). Every expert scores all classes, nobody says which is
for what, and all answer every image by their gates. Gate and experts are those of `experts.mixture`; learned task after
task, nothing keeps either where it was.

Legend: B batch, C class, E expert.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.heads import Heads
from experts.evaluation.networks import NetworkForm
from experts.evaluation.training import Objective, TrainingConfig, train
from experts.mixture.config import MixtureConfig
from experts.mixture.model import Mixture
from experts.mixture.run import mixture_loss
from experts.router.regularisers import RegulariserConfig

__all__ = ["Balanced", "GatedNetwork", "MixtureBaseline", "gated_network"]


class MixtureBaseline(NetworkBaseline):
    """A mixture trained end to end."""

    def __init__(self, setup: NetworkSetup, config: TrainingConfig, *, balance: float = 0.1, seed: int) -> None:
        """
        Args:
            setup: Its form is a `gated_network`.
            config: Of the training on each task.
            balance: lambda_b, at least 0.
            seed: Of the initial weights and the order of images.

        Raises:
            SettingOutOfRange: If ``balance`` is outside its range.
        """
        super().__init__("mixture of experts", setup, config, seed=seed)
        if not 0.0 <= balance < math.inf:
            raise SettingOutOfRange("balance", balance, allowed="finite and at least 0")
        self._objective = Balanced(balance, self._heads)

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        return train(self._network, (inputs_N, columns_N), self._config, self._generator, self._objective)


class GatedNetwork(nn.Module):
    """A mixture as a network: inputs of any shape, and as logits the logarithm of what it says."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate's logits ``(B, E)`` and log E_i ``(B, E, C)`` of inputs ``(B, ...)``."""
        logits_BE, log_p_BEC = self.mixture(x.flatten(1))
        return logits_BE, log_p_BEC

    def forward(self, x: Tensor) -> Tensor:
        """log sum_i g_i E_i, ``(B, C)``."""
        return _mixed(*self.parts(x))


class Balanced(Objective):
    """The loss above."""

    def __init__(self, balance: float, heads: Heads | None = None) -> None:
        """
        Args:
            balance: lambda_b.
            heads: Of the network: the first term is then of what it says among the classes of the label's head.
        """
        super().__init__(heads)
        self._regulariser = RegulariserConfig(lambda_s=0.0, lambda_b=balance)

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Both terms, in nats."""
        assert isinstance(network, GatedNetwork), "the network is no mixture"
        logits_BE, log_p_BEC = network.parts(batch[0])
        loss = mixture_loss(logits_BE, log_p_BEC, batch[1], tau=1.0, regulariser=self._regulariser)
        if self._heads is not None:  # p(y | one of the head's classes) is p(y) by p of those
            loss = loss + self.of_own_head(_mixed(logits_BE, log_p_BEC), batch[1]).logsumexp(dim=1).mean()
        return loss


def gated_network(*, num_experts: int, expert_hidden: int, router_hidden: int, input_scale: float = 0.3) -> NetworkForm:
    """The form of such a network; settings as those of `MixtureConfig`.

    Raises:
        SettingOutOfRange: If a number is outside its range.
    """
    config = MixtureConfig(
        num_experts=num_experts, expert_hidden=expert_hidden, router_hidden=router_hidden, input_scale=input_scale
    )

    def build(shape: tuple[int, ...], classes: Sequence[str], generator: torch.Generator) -> nn.Module:
        drawn = int(torch.randint(2**62, (1,), generator=generator))
        return GatedNetwork(Mixture(config, classes, math.prod(shape), seed=f"{drawn}"))

    return build


def _mixed(logits_BE: Tensor, log_p_BEC: Tensor) -> Tensor:
    """log sum_i g_i E_i, ``(B, C)``."""
    return torch.logsumexp(logits_BE.log_softmax(dim=1)[:, :, None] + log_p_BEC, dim=1)
