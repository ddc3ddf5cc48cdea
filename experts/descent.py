"""Training as a loop turned inside out: its caller takes each step, and may save the run and go on elsewhere.

    theta <- theta - update(dL/dtheta) at a rate            (the update: `experts.optimizers`)

What a run descends, its subclass says, by which optimizer, and at which rate if it is not constant. Between two steps
the caller may read the module's parameters, change them in place (averaging), report, or save the run and continue it,
bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from experts.errors import CorruptState, TrainingDiverged
from experts.optimizers import Optimizer
from experts.sealed import seal, unseal

__all__ = ["DescentRun"]


class DescentRun(ABC):
    """Training of one module, advanced by its caller; iterating over it yields the loss of every step.

    The module is trained in place. Between steps its parameters may be read and changed in place.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, generator: torch.Generator, *, steps: int, lr: float
    ) -> None:
        """
        Args:
            module: What is trained; draws no random numbers.
            optimizer: Of the module's parameters, new, and belongs to this run alone.
            generator: Draws the batches, and belongs to this run alone.
            steps: Steps to take in all, at least 1.
            lr: Learning rate, above 0; of every step, unless the subclass says otherwise.
        """
        self._module = module
        self._optimizer = optimizer
        self._generator = generator
        self._steps = steps
        self._lr = lr

    @abstractmethod
    def _loss(self) -> Tensor:
        """The loss of a batch drawn with the run's generator: a scalar in nats, with its graph."""

    @abstractmethod
    def _terms(self) -> dict[str, object]:
        """All that the next steps depend on besides the state and the data's values: a JSON object."""

    def _rate(self) -> float:
        """Of the next step, at least 0."""
        return self._lr

    @property
    def steps_done(self) -> int:
        """Steps taken, those before a resumption included. To be set where the parameters are set back to fewer."""
        return self._optimizer.steps_done

    @steps_done.setter
    def steps_done(self, steps_done: int) -> None:
        self._optimizer.steps_done = steps_done

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.steps_done >= self._steps

    def __iter__(self) -> Self:
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
        self._optimizer.step(self._rate())
        return loss.item()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that steps change, as copies: parameters, the optimizer's state, step count and generator.

        Data and settings are the caller's to keep.
        """
        state = {_MODULE + name: value.clone() for name, value in self._module.state_dict().items()}
        state |= {name: value.clone() for name, value in self._optimizer.state.items()}
        state["steps_done"] = torch.tensor(self.steps_done, dtype=torch.int64)
        state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue a saved run: with equal data and settings, the next steps are those it would have taken.

        Raises:
            CorruptState: If the state is not of such a run; this one is then unchanged.
        """
        own, of = self.state_dict(), type(self).__name__
        if state.keys() != own.keys():
            raise CorruptState(of, reason=f"missing or foreign: {', '.join(sorted(state.keys() ^ own.keys()))}")
        for name, value in own.items():
            if state[name].shape != value.shape or state[name].dtype != value.dtype:
                raise CorruptState(of, reason=f"{name} is {state[name].dtype} {tuple(state[name].shape)}")
        try:
            self._generator.set_state(state["generator"])
        except RuntimeError as exc:
            raise CorruptState(of, reason="not a generator's state") from exc
        self.steps_done = int(state["steps_done"])
        self._module.load_state_dict(
            {name.removeprefix(_MODULE): value for name, value in state.items() if name.startswith(_MODULE)}
        )
        for name, value in self._optimizer.state.items():
            value.copy_(state[name])

    def to_bytes(self) -> bytes:
        """`state_dict` as safetensors with a digest, and what the next steps depend on besides: see `load_bytes`."""
        return seal(self.state_dict(), self._terms())

    def load_bytes(self, data: bytes) -> None:
        """Continue a run that `to_bytes` saved: the next steps are those it would have taken, bit for bit.

        The data is the caller's to keep, and must be the same; its size is checked. Any number of steps may be asked
        for now, unless the rate depends on it.

        Raises:
            CorruptState: If the bytes are damaged, or of a run with other settings, another number of items or
                another module; this one is then unchanged.
        """
        of = type(self).__name__
        state, saved = unseal(data, of)
        own = self._terms()
        differing = sorted(term for term in own.keys() | saved.keys() if own.get(term) != saved.get(term))
        if differing:
            was = ", ".join(f"{term} was {saved.get(term)!r} and is {own.get(term)!r}" for term in differing)
            raise CorruptState(of, reason=was)
        self.load_state_dict(state)


_MODULE = "module."
