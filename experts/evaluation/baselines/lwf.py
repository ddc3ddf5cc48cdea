"""Learning without forgetting: on the new task's images the network goes on saying what it said of the old classes.

    L = CE(f(x), y) + lambda_o T^2 KL(p_old || p)

with p the softmax at temperature T of the logits of the classes learned before, and p_old the same of the network as it
was when the task began (Li and Hoiem 2016, arXiv:1606.09282, eqs. 2 to 4). The T^2 keeps the gradient's size
independent of T (Hinton et al. 2015, arXiv:1503.02531); the cross-entropy is over the classes seen so far. Before the
joint steps the columns of new classes are warmed up alone, on the cross-entropy among themselves (sec. 3).

A network with a head for each task remembers head by head, and the terms add up; its cross-entropy is the new head's.

Nothing is kept of past data: the old network is the one that the task begins with, asked once of every image.

Legend: B batch, N items of the task, C class.
"""

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor, nn

from experts.distillation.loss import distillation_loss
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup, outputs_of
from experts.evaluation.cost import count_flops
from experts.evaluation.heads import Heads
from experts.evaluation.networks import without_classifier
from experts.evaluation.training import Objective, TrainingConfig, train

__all__ = ["LwfBaseline", "Remembered"]


class LwfBaseline(NetworkBaseline):
    """LwF."""

    def __init__(
        self, setup: NetworkSetup, config: TrainingConfig, *, strength: float = 1.0, temperature: float = 2.0, seed: int
    ) -> None:
        """
        Args:
            setup: The network.
            config: Of the training on each task.
            strength: lambda_o, at least 0.
            temperature: T, above 0.
            seed: Of the initial weights and the order of images.

        Raises:
            SettingOutOfRange: If a number is outside its range.
        """
        super().__init__("LwF", setup, config, seed=seed)
        if not strength >= 0.0:
            raise SettingOutOfRange("strength", strength, allowed="at least 0")
        if not temperature > 0.0:
            raise SettingOutOfRange("temperature", temperature, allowed="above 0")
        self._strength = strength
        self._temperature = temperature
        self._old: set[int] = set()  # columns

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        said_NC, flops = count_flops(lambda: outputs_of(self._network, inputs_N))
        seen = self._old | set(columns_N.tolist())
        flops += self._warm_up(inputs_N, columns_N, seen - self._old)
        objective = Remembered(self._old, seen, self._strength, self._temperature, self._heads)
        flops += train(self._network, (inputs_N, columns_N, said_NC), self._config, self._generator, objective)
        self._old = seen
        return flops

    def _warm_up(self, inputs_N: Tensor, columns_N: Tensor, fresh: set[int]) -> int:
        if not (self._old and fresh):
            return 0
        assert isinstance(self._network, nn.Sequential), "the network is no sequence of layers"
        features_ND, flops = count_flops(lambda: outputs_of(without_classifier(self._network), inputs_N))
        of_fresh = torch.isin(columns_N, torch.tensor(sorted(fresh)))
        # Other columns get no gradient, and are not to decay either.
        config = dataclasses.replace(self._config, weight_decay=0.0)
        data = (features_ND[of_fresh], columns_N[of_fresh])
        return flops + train(self._network[-1], data, config, self._generator, Remembered((), fresh, 0.0, 1.0))


class Remembered(Objective):
    """The loss above; its data has the old network's logits as third part, where there are old classes."""

    def __init__(
        self,
        old: Collection[int],
        seen: Collection[int],
        strength: float,
        temperature: float,
        heads: Heads | None = None,
    ) -> None:
        """
        Args:
            old: Columns of the classes learned before; none before the first task.
            seen: These and the task's.
            strength: lambda_o.
            temperature: T.
            heads: Of the network, each of which goes on saying what it said.
        """
        super().__init__(heads)
        self._old_heads = ([sorted(old)] if old else []) if heads is None else heads.parted(old)
        self._seen = sorted(seen)
        self._strength = strength
        self._temperature = temperature

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Both terms, in nats."""
        logits_BC = network(batch[0])
        masked_BC = torch.full_like(logits_BC, -torch.inf)
        masked_BC[:, self._seen] = logits_BC[:, self._seen]
        loss = self.cross_entropy(masked_BC, batch[1])
        for own in self._old_heads:
            kept = distillation_loss(logits_BC[:, own], batch[2][:, own], None, 0.0, self._temperature)
            loss = loss + self._strength * kept
        return loss
