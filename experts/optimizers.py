"""SGD and Adam, by hand: making any of torch's imports torch's compiler, a second and a half and 80 MB of a trainer.

    SGD     theta <- theta - lr g
    Adam    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
            theta <- theta - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Adam is Kingma and Ba 2015, arXiv:1412.6980, algorithm 1, with its b1, b2 and eps. The caller gives every step's rate;
half a cosine from lr to 0 is Loshchilov and Hutter's (2017, arXiv:1608.03983, eq. 5 without restarts).
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Adam", "Optimizer", "Sgd", "cosine_rate"]

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class Optimizer(Protocol):
    """Moves parameters in place along their gradients, one step at a time."""

    steps_done: int
    """t of the last step."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What a next step depends on besides the parameters, `steps_done` and the rate; to be written in place."""

    def step(self, lr: float) -> None:
        """Take one step; a parameter without a gradient stays as it is.

        Args:
            lr: The rate of this step, at least 0.
        """


class Sgd:
    """Plain stochastic gradient descent: torch's own without momentum, to the bit.

    Args:
        parameters: What is trained, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.steps_done = 0
        """As `Optimizer.steps_done`."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Nothing: without momentum a step depends on its gradient alone."""
        return {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step; see `Optimizer.step`."""
        self.steps_done += 1
        for parameter in self._parameters.values():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-lr)


class Adam:
    """Steps that are scaled, parameter by parameter, by how large the gradients have been.

    Args:
        parameters: What is trained, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.steps_done = 0
        """As `Optimizer.steps_done`."""
        self.first = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        """m of each parameter."""
        self.second = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        """v of each parameter."""

    @property
    def state(self) -> dict[str, Tensor]:
        """``first_moment.*`` and ``second_moment.*`` of each parameter."""
        moments = {f"first_moment.{name}": value for name, value in self.first.items()}
        return moments | {f"second_moment.{name}": value for name, value in self.second.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step; see `Optimizer.step`."""
        self.steps_done += 1
        rate = lr / (1 - _BETA_1**self.steps_done)
        correction = math.sqrt(1 - _BETA_2**self.steps_done)
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                first = self.first[name].lerp_(parameter.grad, 1 - _BETA_1)
                second = self.second[name].mul_(_BETA_2).addcmul_(parameter.grad, parameter.grad, value=1 - _BETA_2)
                parameter.addcdiv_(first, (second.sqrt() / correction).add_(_EPSILON), value=-rate)


def cosine_rate(lr: float, *, done: int, steps: int) -> float:
    """The rate of the next of ``steps`` steps once ``done`` of them are taken: ``lr`` first, and at the end 0."""
    return lr * (1 + math.cos(math.pi * done / steps)) / 2
