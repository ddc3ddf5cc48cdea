"""Distillation that is watched: accuracy after given numbers of steps, and how many it takes to come up to something.

Legend: N items, D feature, C class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.errors import TrainingDiverged

__all__ = ["Plan", "best_rate", "learn", "percent_right", "steps_to"]


class Plan(NamedTuple):
    """How a module learns, and when it is looked at."""

    rate: float
    """Of SGD."""
    at: Sequence[int]
    """Numbers of steps, rising."""
    enough: float = float("inf")
    """Accuracy from which on nothing more is learned."""
    alpha: float = 0.0
    """Weight of the labels: 0 learns from the teacher alone."""

    def config(self) -> DistillationConfig:
        """For the whole of it."""
        return DistillationConfig(steps=max(1, *self.at), lr=self.rate, alpha=self.alpha)


def learn(
    module: nn.Module,
    data: DistillationData,
    plan: Plan,
    generator: torch.Generator,
    score: Callable[[nn.Module], float],
) -> dict[int, float]:
    """Accuracy by number of steps, as far as it went; the module is left as it then is.

    A run that diverges has 0 from there on, which is less than guessing.
    """
    run = DistillationRun(module, data, plan.config(), generator)
    found: dict[int, float] = {}
    for steps in plan.at:
        try:
            while run.steps_done < steps:
                run.step()
        except TrainingDiverged:
            return found | {later: 0.0 for later in plan.at if later >= steps}
        found[steps] = score(module)
        if found[steps] >= plan.enough:
            break
    return found


def steps_to(accuracy: float, by_steps: Mapping[int, float]) -> int | None:
    """The first number of steps after which it was reached; None for never."""
    return next((steps for steps, reached in sorted(by_steps.items()) if reached >= accuracy), None)


def best_rate(by_rate: Mapping[float, float]) -> float:
    """That of the highest accuracy; of equal ones the lowest."""
    return max(sorted(by_rate), key=lambda rate: by_rate[rate])


def percent_right(module: nn.Module, features_ND: Tensor, columns_N: Tensor) -> float:
    """Accuracy in percent."""
    with torch.no_grad():
        right_N = module(features_ND).argmax(dim=1) == columns_N
    return 100.0 * float(right_N.double().mean())
