"""A distillation run: a loop turned inside out, one SGD step at a time.

    L_CL = L_new + gamma L_distill_old          (proposal, section 2.5)
    theta <- theta - lr dL_CL/dtheta

The old generation of the expert is the teacher of L_distill_old, on replayed items. The caller takes each step,
and between two of them may change the module's parameters in place (averaging), report, or save the run and
continue it elsewhere, bit for bit.

Legend: B batch, N items, D feature, C class (the student's columns).
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.loss import distillation_loss
from experts.errors import CorruptState, ExpertsError
from experts.sealed import seal, unseal

__all__ = ["DistillationRun", "TrainingDiverged"]


class TrainingDiverged(ExpertsError):  # named as its siblings in errors.py are
    """A loss was not finite; the module still holds the parameters from before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


class DistillationRun:
    """Training of one module, advanced by its caller; iterating over it yields the loss of every step.

    The module is trained in place. Between steps its parameters may be read and changed in place.
    """

    def __init__(
        self,
        module: nn.Module,
        data: DistillationData,
        config: DistillationConfig,
        generator: torch.Generator,
        *,
        replay: DistillationData | None = None,
    ) -> None:
        """
        Args:
            module: The student; maps features ``(B, D)`` to logits ``(B, C)``, and draws no random numbers.
            data: What is new.
            config: How to train.
            generator: Draws the batches, and belongs to this run alone.
            replay: What must not be forgotten; see `DistillationData.from_old_generation`.
        """
        self.module = module
        self.config = config
        self.steps_done = 0
        self._data = data
        self._replay = replay
        self._generator = generator
        self._parameters = list(module.parameters())

    @property
    def done(self) -> bool:
        """Whether all steps of the config have been taken."""
        return self.steps_done >= self.config.steps

    def __iter__(self) -> "DistillationRun":
        return self

    def __next__(self) -> float:
        if self.done:
            raise StopIteration
        return self.step()

    def step(self) -> float:
        """Take one SGD step.

        Returns: The batch's loss before the step, in nats, replay term included.

        Raises:
            TrainingDiverged: If the loss is not finite; no step was taken.
            ShapeMismatch: If features or logits do not fit the module.
        """
        loss = self._batch_loss(self._data)
        if self._replay is not None:
            loss = loss + self.config.gamma * self._batch_loss(self._replay)
        if not torch.isfinite(loss):
            raise TrainingDiverged(self.steps_done)
        self.module.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._descend()
        self.steps_done += 1
        return loss.item()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that steps change, as copies: parameters, step count and the state of the generator.

        Data and config are the caller's to keep. Plain SGD has no state of its own.
        """
        state = {_MODULE + name: value.clone() for name, value in self.module.state_dict().items()}
        state["steps_done"] = torch.tensor(self.steps_done, dtype=torch.int64)
        state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue a saved run: with equal data and config, the next steps are those it would have taken.

        Raises:
            CorruptState: If the state is not of such a run; this one is then unchanged.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            differing = sorted(state.keys() ^ own.keys())
            raise CorruptState(_NAME, reason=f"missing or foreign: {', '.join(differing)}")
        for name, value in own.items():
            if state[name].shape != value.shape or state[name].dtype != value.dtype:
                raise CorruptState(_NAME, reason=f"{name} is {state[name].dtype} {tuple(state[name].shape)}")
        try:
            self._generator.set_state(state["generator"])
        except RuntimeError as exc:
            raise CorruptState(_NAME, reason="not a generator's state") from exc
        self.steps_done = int(state["steps_done"])
        self.module.load_state_dict(
            {name.removeprefix(_MODULE): value for name, value in state.items() if name.startswith(_MODULE)}
        )

    def to_bytes(self) -> bytes:
        """`state_dict` as safetensors with a digest, and what the next steps depend on besides: see `load_bytes`."""
        return seal(self.state_dict(), self._terms())

    def load_bytes(self, data: bytes) -> None:
        """Continue a run that `to_bytes` saved: the next steps are those it would have taken, bit for bit.

        The data is the caller's to keep, and must be the same; its size is checked. Any number of steps may be
        asked for now.

        Raises:
            CorruptState: If the bytes are damaged, or of a run with other settings, another number of items or
                another module; this one is then unchanged.
        """
        state, saved = unseal(data, _NAME)
        own = self._terms()
        if saved.keys() != own.keys():
            raise CorruptState(_NAME, reason=f"missing or foreign: {', '.join(sorted(saved.keys() ^ own.keys()))}")
        for name, value in own.items():
            if saved[name] != value:
                raise CorruptState(_NAME, reason=f"{name} was {saved[name]!r}, and is {value!r}")
        self.load_state_dict(state)

    def _terms(self) -> dict[str, object]:
        terms: dict[str, object] = dataclasses.asdict(self.config)
        # No step depends on how many are to follow.
        del terms["steps"]
        terms["optimizer"] = "sgd"
        terms["num_items"] = len(self._data.features_ND)
        terms["num_replayed"] = 0 if self._replay is None else len(self._replay.features_ND)
        return terms

    def _batch_loss(self, data: DistillationData) -> Tensor:
        # With replacement, so that the generator is the whole state of the draw.
        rows = torch.randint(len(data.features_ND), (self.config.batch_size,), generator=self._generator)
        return distillation_loss(
            self._logits(data.features_ND[rows]),
            None if data.teacher_logits_NC is None else data.teacher_logits_NC[rows],
            None if data.labels_N is None else data.labels_N[rows],
            self.config.alpha,
            self.config.temperature,
            data.teacher_weights_J,
        )

    def _logits(self, features_BD: Tensor) -> Tensor:
        if not self.config.mixed_precision:
            logits_BC: Tensor = self.module(features_BD)
            return logits_BC
        # bfloat16 has float32's exponents: no gradient underflows, so no loss needs to be scaled.
        with torch.autocast(features_BD.device.type, dtype=torch.bfloat16):
            logits_BC = self.module(features_BD)
        return logits_BC.float()

    @torch.no_grad()
    def _descend(self) -> None:
        """What torch.optim.SGD does without momentum, to the bit.

        By hand, because making any of torch's optimizers imports torch's compiler: a second and a half, and
        80 MB of every trainer.
        """
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self.config.lr)


_MODULE = "module."
_NAME = "distillation run"
