"""The one training loop of all networks of the evaluation: passes over a task; what a step descends, a method says.

Legend: B batch, N items of the task, C class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.errors import NothingToLearnFrom, SettingOutOfRange
from experts.evaluation.cost import count_flops
from experts.evaluation.heads import Heads

__all__ = ["Objective", "TrainingConfig", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How a network is trained on one task, or on the union of several.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    epochs: int = 1
    """Passes, at least 1."""

    batch_size: int = 10
    """New items a step, at least 1."""

    lr: float = 0.03
    """Learning rate, above 0."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` without momentum, which would carry one task into the next; ``adam`` with the rate falling to 0 along
    half a cosine, for networks that are trained once to the end."""

    weight_decay: float = 0.0
    """Times theta it is added to the gradient, at least 0."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not 0.0 < self.lr < math.inf:
            raise SettingOutOfRange("lr", self.lr, allowed="finite and above 0")
        if not 0.0 <= self.weight_decay < math.inf:
            raise SettingOutOfRange("weight_decay", self.weight_decay, allowed="finite and at least 0")
        if self.optimizer not in ("sgd", "adam"):
            raise SettingOutOfRange("optimizer", self.optimizer, allowed="sgd or adam")


class Objective:
    """What a step descends: by itself the mean cross-entropy of the batch; methods say what they do otherwise."""

    def __init__(self, heads: Heads | None = None) -> None:
        """
        Args:
            heads: Of the network; None for one of all columns.
        """
        self._heads = heads

    @property
    def num_replayed(self) -> int:
        """Items that the next step takes beside its batch: what it costs depends on them."""
        return 0

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """A scalar with its graph, once a step.

        Args:
            network: Maps inputs ``(B, ...)`` to logits ``(B, C)``.
            batch: Rows of the data: inputs, columns, and what else the data has.
        """
        return self.cross_entropy(network(batch[0]), batch[1])

    def cross_entropy(self, logits_BC: Tensor, columns_B: Tensor) -> Tensor:
        """The mean, in nats, among the classes of each label's head."""
        return functional.cross_entropy(self.of_own_head(logits_BC, columns_B), columns_B)

    def of_own_head(self, logits_BC: Tensor, columns_B: Tensor) -> Tensor:
        """Logits ``(B, ..., C)``, as low as can be outside the head of each label."""
        return logits_BC if self._heads is None else self._heads.own(logits_BC, columns_B)

    def learned(self, batch: tuple[Tensor, ...]) -> None:
        """Told of each batch after its step, and not again in a further epoch."""


def train(
    network: nn.Module,
    data: tuple[Tensor, ...],
    config: TrainingConfig,
    generator: torch.Generator,
    objective: Objective | None = None,
    *,
    on_epoch: Callable[[int], None] | None = None,
) -> int:
    """Train the network in place.

    Args:
        network: Maps inputs ``(B, ...)`` to what the objective takes, mostly logits ``(B, C)``.
        data: Inputs ``(N, ...)``, columns, int64 ``(N,)``, and what else of N rows the objective takes.
        config: How.
        generator: Of the order of items; a fresh one each epoch.
        objective: What is descended; None for the cross-entropy alone.
        on_epoch: Called after each epoch with its number, from 1; None for nobody.

    Returns: FLOPs spent, backward passes included.

    Raises:
        NothingToLearnFrom: If there is no item.
    """
    num_items = len(data[0])
    if num_items == 0:
        raise NothingToLearnFrom("task")
    objective = objective or Objective()
    optimizer, schedule = _optimizer(network, config, math.ceil(num_items / config.batch_size))
    flops_by_size: dict[tuple[int, int], int] = {}
    flops = 0
    for epoch in range(config.epochs):
        for rows_B in torch.split(torch.randperm(num_items, generator=generator), config.batch_size):
            batch = tuple(part[rows_B] for part in data)
            flops += _counted_step(network, optimizer, objective, batch, flops_by_size)
            if schedule is not None:
                schedule.step()
            if epoch == 0:
                objective.learned(batch)
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return flops


def _optimizer(
    network: nn.Module, config: TrainingConfig, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=config.lr, weight_decay=config.weight_decay), None
    adam = torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, config.epochs * steps_per_epoch)


def _counted_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: tuple[Tensor, ...],
    flops_by_size: dict[tuple[int, int], int],
) -> int:
    """One step, and its FLOPs: the first of each size is counted, since counting takes longer than the step."""

    def step() -> None:
        loss = objective.loss(network, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    size = len(batch[0]), objective.num_replayed
    if size in flops_by_size:
        step()
    else:
        _, flops_by_size[size] = count_flops(step)
    return flops_by_size[size]
