"""Dark Experience Replay++: replay of what the network once said of an item, and of the item's class.

    L = CE(f(x), y) + alpha |f(x') - z'|^2 / C + beta CE(f(x''), y'')

with (x', z') and (x'', y'') two draws of a reservoir and z' the logits that the network had for x' when it was new
(Buzzega et al. 2020, arXiv:2004.07211, eq. 6); each term is a mean over its items. Logits are kept beside each image,
those of the first pass where a task is passed over several times, as an image is kept once (its authors' code offers
it to the reservoir in every pass).

Legend: B batch, C class.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.heads import Heads
from experts.evaluation.reservoir import Reservoir
from experts.evaluation.training import Objective, TrainingConfig, train
from experts.generators import torch_generator

__all__ = ["DarkReplay", "DarkReplayBaseline", "DarkReplayConfig", "item_bytes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DarkReplayConfig:
    """What is kept and how much it counts.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    capacity: int
    """Items kept, at least 1."""

    alpha: float
    """Weight of the logits, at least 0."""

    beta: float
    """Weight of the labels, at least 0."""

    replay_size: int = 10
    """Items of each of the two draws of a step, at least 1."""

    def __post_init__(self) -> None:
        for name in ("capacity", "replay_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        for name in ("alpha", "beta"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and at least 0")


class DarkReplayBaseline(NetworkBaseline):
    """DER++ with a stated number of items."""

    def __init__(self, setup: NetworkSetup, config: TrainingConfig, replay: DarkReplayConfig, *, seed: int) -> None:
        """
        Args:
            setup: The network.
            config: Of the training on each task.
            replay: What is kept.
            seed: Of the initial weights, the order of images and the reservoir.
        """
        super().__init__(f"DER++ {replay.capacity}", setup, config, seed=seed)
        generator = torch_generator(seed, f"{self.name}/reservoir")
        self._reservoir = Reservoir(replay.capacity, draw_size=replay.replay_size, generator=generator)
        self._objective = DarkReplay(self._reservoir, replay.alpha, replay.beta, self._heads)

    def _num_kept(self) -> int:
        return len(self._reservoir)

    def _beside_bytes(self) -> int:
        return len(self._reservoir) * item_bytes(0, len(self._setup.classes))

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        return train(self._network, (inputs_N, columns_N), self._config, self._generator, self._objective)


class DarkReplay(Objective):
    """The loss above."""

    def __init__(self, reservoir: Reservoir, alpha: float, beta: float, heads: Heads | None = None) -> None:
        """
        Args:
            reservoir: Of inputs, columns and logits.
            alpha: Weight of the logits, those of other heads too.
            beta: Weight of the labels.
            heads: Of the network.
        """
        super().__init__(heads)
        self._reservoir = reservoir
        self._alpha = alpha
        self._beta = beta
        self._logits_BC = torch.empty(0)

    @property
    def num_replayed(self) -> int:
        """Of either draw."""
        return self._reservoir.num_drawn

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The three terms; the first alone while nothing is kept."""
        logits_BC = network(batch[0])
        self._logits_BC = logits_BC.detach()
        loss = self.cross_entropy(logits_BC, batch[1])
        of_logits, of_labels = self._reservoir.draw(), self._reservoir.draw()
        if of_logits is None or of_labels is None:
            return loss
        loss = loss + self._alpha * functional.mse_loss(network(of_logits[0]), of_logits[2])
        return loss + self._beta * self.cross_entropy(network(of_labels[0]), of_labels[1])

    def learned(self, batch: tuple[Tensor, ...]) -> None:
        """The batch is kept with the logits that it had before its step."""
        self._reservoir.keep(*batch, self._logits_BC)


def item_bytes(image_bytes: int, num_classes: int) -> int:
    """Of an item that is kept: the image in uint8, its logits in float32."""
    return image_bytes + 4 * num_classes
