"""Adam, by hand: making any of torch's optimizers imports torch's compiler, which costs every trainer time and memory.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    theta <- theta - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Kingma and Ba 2015, arXiv:1412.6980, algorithm 1, with its b1, b2 and eps. The caller gives every step's rate; half a
cosine from lr to 0 is Loshchilov and Hutter's (2017, arXiv:1608.03983, eq. 5 without restarts).
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["Adam", "cosine_rate"]

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moves parameters in place along their gradients.

    Args:
        parameters: What is trained, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.steps_done = 0
        """t of the last step."""
        self.first = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        """m of each parameter. With `second` and `steps_done` it is all that a next step depends on."""
        self.second = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        """v of each parameter."""

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step; a parameter without a gradient stays as it is.

        Args:
            lr: The rate of this step, at least 0.
        """
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
