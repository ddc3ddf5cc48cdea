"""Stochastic gradient descent as a loop turned inside out: its caller takes each step, may save and go on elsewhere.

    theta <- Adam(theta, dL/dtheta) at a constant rate

A router beside experts needs Adam: the gradients that reach an expert are scaled by its gate, and those of a gate by
how much the experts differ, so that plain descent leaves whichever was unlucky at first far behind.

What a run descends, its subclass says. Between two steps the caller may read the module's parameters, change them in
place (averaging), report, or save the run and continue it, bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experts.adam import Adam
from experts.distillation.run import TrainingDiverged
from experts.errors import CorruptState
from experts.sealed import seal, unseal

__all__ = ["DescentRun"]


class DescentRun(ABC):
    """Training of one module, advanced by its caller; iterating over it yields the loss of every step.

    The module is trained in place. Between steps its parameters may be read and changed in place.
    """

    def __init__(self, module: nn.Module, generator: torch.Generator, *, steps: int, lr: float) -> None:
        """
        Args:
            module: What is trained; draws no random numbers.
            generator: Draws the batches, and belongs to this run alone.
            steps: Steps to take in all, at least 1.
            lr: Learning rate, above 0.
        """
        self._module = module
        self._generator = generator
        self._steps = steps
        self._lr = lr
        self._adam = Adam(dict(module.named_parameters()))

    @abstractmethod
    def _loss(self) -> Tensor:
        """The loss of a batch drawn with the run's generator: a scalar in nats, with its graph."""

    @abstractmethod
    def _terms(self) -> dict[str, object]:
        """All that the next steps depend on besides the state and the data's values: a JSON object."""

    @property
    def steps_done(self) -> int:
        """Steps taken, those before a resumption included."""
        return self._adam.steps_done

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.steps_done >= self._steps

    def __iter__(self) -> "DescentRun":
        return self

    def __next__(self) -> float:
        if self.done:
            raise StopIteration
        return self.step()

    def step(self) -> float:
        """Take one step.

        Returns: The batch's loss before the step, in nats.

        Raises:
            TrainingDiverged: If the loss is not finite; no step was taken.
            ShapeMismatch: If the data does not fit the module.
        """
        loss = self._loss()
        if not torch.isfinite(loss):
            raise TrainingDiverged(self.steps_done)
        self._module.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step(self._lr)
        return loss.item()

    def to_bytes(self) -> bytes:
        """Parameters, moments, step count and the state of the generator, with a digest: see `load_bytes`."""
        return seal(self._state(), self._terms())

    def load_bytes(self, data: bytes) -> None:
        """Continue a run that `to_bytes` saved: the next steps are those it would have taken, bit for bit.

        The data is the caller's to keep, and must be the same; its size is checked. Any number of steps may be asked
        for now.

        Raises:
            CorruptState: If the bytes are damaged, or of a run with other settings, another number of items or
                another module; this one is then unchanged.
        """
        name = type(self).__name__
        state, saved = unseal(data, name)
        own = self._terms()
        differing = sorted(term for term in own.keys() | saved.keys() if own.get(term) != saved.get(term))
        if differing:
            was = ", ".join(f"{term} was {saved.get(term)!r} and is {own.get(term)!r}" for term in differing)
            raise CorruptState(name, reason=was)
        _require_like(name, state, self._state())
        try:
            self._generator.set_state(state["generator"])
        except RuntimeError as exc:
            raise CorruptState(name, reason="not a generator's state") from exc
        self._module.load_state_dict(_with_prefix(state, _MODULE))
        self._adam.steps_done = int(state["steps_done"])
        for prefix, moments in ((_FIRST, self._adam.first), (_SECOND, self._adam.second)):
            for name, moment in moments.items():
                moment.copy_(state[prefix + name])

    def _state(self) -> dict[str, Tensor]:
        state = {_MODULE + name: value for name, value in self._module.state_dict().items()}
        state |= {_FIRST + name: value for name, value in self._adam.first.items()}
        state |= {_SECOND + name: value for name, value in self._adam.second.items()}
        state["steps_done"] = torch.tensor(self.steps_done, dtype=torch.int64)
        state["generator"] = self._generator.get_state()
        return state


def _with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _require_like(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if state.keys() != own.keys():
        raise CorruptState(name, reason=f"missing or foreign: {', '.join(sorted(state.keys() ^ own.keys()))}")
    for key, value in own.items():
        if state[key].shape != value.shape or state[key].dtype != value.dtype:
            raise CorruptState(name, reason=f"{key} is {state[key].dtype} {tuple(state[key].shape)}")


_MODULE, _FIRST, _SECOND = "module.", "first_moment.", "second_moment."
