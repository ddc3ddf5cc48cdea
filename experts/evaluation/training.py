"""The one training loop of all networks of the evaluation: passes over a task, with what is replayed beside it.

    L = mean over the batch and the replayed items of CE(f(x), y)        (Chaudhry et al. 2019, arXiv:1902.10486)

Legend: B batch, N items of the task, C class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.errors import NothingToLearnFrom, SettingOutOfRange
from experts.evaluation.cost import count_flops

__all__ = ["Memory", "TrainingConfig", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How a network is trained on one task, or on the union of several.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    epochs: int = 1
    """Passes, at least 1; one, where data is a stream."""

    batch_size: int = 10
    """New items a step, at least 1."""

    lr: float = 0.03
    """Learning rate, above 0."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` without momentum, which would carry one task into the next; ``adam`` with the rate falling to 0 along
    half a cosine, for networks that are trained once to the end."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not 0.0 < self.lr < math.inf:
            raise SettingOutOfRange("lr", self.lr, allowed="finite and above 0")
        if self.optimizer not in ("sgd", "adam"):
            raise SettingOutOfRange("optimizer", self.optimizer, allowed="sgd or adam")


class Memory(Protocol):
    """What is replayed beside each batch."""

    def draw(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and columns of the items to replay now; None if nothing is kept yet."""

    def keep(self, inputs_B: Tensor, columns_B: Tensor) -> None:
        """Told of each batch after its step, and not again in a further epoch."""


def train(
    network: nn.Module,
    data: tuple[Tensor, Tensor],
    config: TrainingConfig,
    generator: torch.Generator,
    memory: Memory | None = None,
    *,
    on_epoch: Callable[[int], None] | None = None,
) -> int:
    """Train the network in place.

    Args:
        network: Maps inputs ``(B, ...)`` to logits ``(B, C)``.
        data: Inputs ``(N, ...)`` and columns, int64 ``(N,)``.
        config: How.
        generator: Of the order of items; a fresh one each epoch.
        memory: What is replayed; None for nothing.
        on_epoch: Called after each epoch with its number, from 1; None for nobody.

    Returns: FLOPs spent, backward passes included.

    Raises:
        NothingToLearnFrom: If there is no item.
    """
    inputs_N, columns_N = data
    if len(columns_N) == 0:
        raise NothingToLearnFrom("task")
    optimizer, schedule = _optimizer(network, config, math.ceil(len(columns_N) / config.batch_size))
    flops_by_size: dict[int, int] = {}
    flops = 0
    for epoch in range(config.epochs):
        for rows_B in torch.split(torch.randperm(len(columns_N), generator=generator), config.batch_size):
            new_B = inputs_N[rows_B], columns_N[rows_B]
            replayed = None if memory is None else memory.draw()
            batch = new_B if replayed is None else _beside(new_B, replayed)
            flops += _counted_step(network, optimizer, batch, flops_by_size)
            if schedule is not None:
                schedule.step()
            if memory is not None and epoch == 0:
                memory.keep(*new_B)
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return flops


def _optimizer(
    network: nn.Module, config: TrainingConfig, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=config.lr), None
    adam = torch.optim.Adam(network.parameters(), lr=config.lr)
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, config.epochs * steps_per_epoch)


def _beside(new: tuple[Tensor, Tensor], replayed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([new[0], replayed[0]]), torch.cat([new[1], replayed[1]])


def _counted_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], flops_by_size: dict[int, int]
) -> int:
    """One step, and its FLOPs: the first of each batch size is counted, since counting takes longer than the step."""

    def step() -> None:
        loss = functional.cross_entropy(network(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    size = len(batch[1])
    if size in flops_by_size:
        step()
    else:
        _, flops_by_size[size] = count_flops(step)
    return flops_by_size[size]
