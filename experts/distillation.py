"""Distilling a teacher into an expert, one SGD step at a time.

    L = alpha CE(student, label) + (1 - alpha) T^2 KL(p_teacher || p_student)        (proposal, section 2.2)
    L_CL = L_new + gamma L_distill_old                                               (section 2.5)

with p the softmax of logits / T. The old generation of the expert is the teacher of L_distill_old, on
replayed items. A run is a loop turned inside out: the caller takes each step, and between two of them may
change the module's parameters in place (averaging), report, or save the run and continue it elsewhere, bit
for bit.

Legend: B batch, N items, D feature, C class (the student's columns).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.errors import CorruptState, ExpertsError, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch

__all__ = [
    "DistillationConfig",
    "DistillationData",
    "DistillationRun",
    "TrainingDiverged",
    "align_logits",
    "distillation_loss",
]


class TrainingDiverged(ExpertsError):  # named as its siblings in errors.py are
    """A loss was not finite; the module still holds the parameters from before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """How a student is trained.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    steps: int = 1900
    """SGD steps, at least 1: about 15 passes over a task of two classes with 2,000 images each."""

    batch_size: int = 32
    """Items drawn per step, with replacement, at least 1; as many again from replay."""

    lr: float = 0.05
    """SGD learning rate, above 0."""

    alpha: float = 0.5
    """Weight of the labels against the teacher, in [0, 1]; 0.3 when peers' shards are skewed."""

    temperature: float = 2.0
    """T, above 0."""

    gamma: float = 1.0
    """Weight of the replay term, at least 0."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        for name in ("lr", "temperature"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and above 0")
        if not 0.0 <= self.alpha <= 1.0:
            raise SettingOutOfRange("alpha", self.alpha, allowed="in [0, 1]")
        if not 0.0 <= self.gamma < float("inf"):
            raise SettingOutOfRange("gamma", self.gamma, allowed="finite and at least 0")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class DistillationData:
    """Items to learn from, with labels, a teacher's logits, or both.

    Raises:
        NothingToLearnFrom: If there are no items, or they have neither labels nor logits.
        ShapeMismatch: If the tensors differ in N.
    """

    features_ND: Tensor
    """Trunk features, float32 ``(N, D)``."""

    labels_N: Tensor | None = None
    """Columns of the student, int64 ``(N,)``; None for unlabelled items."""

    teacher_logits_NC: Tensor | None = None
    """The teacher's logits in the student's columns, float32 ``(N, C)``, -inf for a class it does not know;
    None without a teacher."""

    def __post_init__(self) -> None:
        num_items = len(self.features_ND)
        if num_items == 0 or (self.labels_N is None and self.teacher_logits_NC is None):
            raise NothingToLearnFrom("distillation data")
        if self.labels_N is not None and self.labels_N.shape != (num_items,):
            raise ShapeMismatch("labels", expected=(num_items,), got=tuple(self.labels_N.shape))
        if self.teacher_logits_NC is not None and len(self.teacher_logits_NC) != num_items:
            got = tuple(self.teacher_logits_NC.shape)
            raise ShapeMismatch("teacher logits", expected=(num_items, "C"), got=got)

    @classmethod
    def from_old_generation(cls, old_module: nn.Module, features_ND: Tensor) -> "DistillationData":
        """The replay term's data: an old generation of the expert as the teacher of replayed items.

        Its logits are computed once, here; the old module is not kept.
        """
        with torch.no_grad():
            return cls(features_ND=features_ND, teacher_logits_NC=old_module(features_ND))


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
            module: The student; maps features ``(B, D)`` to logits ``(B, C)``.
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
        self._optimizer = torch.optim.SGD(module.parameters(), lr=config.lr)

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
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
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

    def _batch_loss(self, data: DistillationData) -> Tensor:
        # With replacement, so that the generator is the whole state of the draw.
        rows = torch.randint(len(data.features_ND), (self.config.batch_size,), generator=self._generator)
        return distillation_loss(
            self.module(data.features_ND[rows]),
            None if data.teacher_logits_NC is None else data.teacher_logits_NC[rows],
            None if data.labels_N is None else data.labels_N[rows],
            alpha=self.config.alpha,
            temperature=self.config.temperature,
        )


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BC: Tensor | None,
    labels_B: Tensor | None,
    alpha: float,
    temperature: float,
) -> Tensor:
    """alpha CE + (1 - alpha) T^2 KL(p_teacher || p_student), or the one term there is data for, unweighted.

    The T^2 keeps the gradient's size independent of T (Hinton et al. 2015, arXiv:1503.02531, sec. 2).

    Args:
        student_logits_BC: ``(B, C)``; gradients flow here only.
        teacher_logits_BC: ``(B, C)`` in the same columns, or None for cross-entropy alone. -inf marks a class
            the teacher does not know; the KL term is then between both distributions over those it knows, and
            0 in a row where it knows none.
        labels_B: Columns, int64 ``(B,)``, or None for the KL term alone.
        alpha: In [0, 1].
        temperature: T > 0; softens the KL term, not the cross-entropy.

    Returns: Scalar, nats, mean over B.

    Raises:
        ShapeMismatch: If the two logits differ in shape.
        NothingToLearnFrom: If there are neither teacher nor labels.
    """
    if teacher_logits_BC is None:
        if labels_B is None:
            raise NothingToLearnFrom("distillation loss")
        return functional.cross_entropy(student_logits_BC, labels_B)
    if teacher_logits_BC.shape != student_logits_BC.shape:
        expected, got = tuple(student_logits_BC.shape), tuple(teacher_logits_BC.shape)
        raise ShapeMismatch("teacher logits", expected=expected, got=got)
    distill = temperature**2 * _softened_kl(teacher_logits_BC.detach(), student_logits_BC, temperature)
    if labels_B is None:
        return distill
    return alpha * functional.cross_entropy(student_logits_BC, labels_B) + (1 - alpha) * distill


def align_logits(logits_BK: Tensor, teacher_classes: Sequence[str], classes: Sequence[str]) -> Tensor:
    """A teacher's logits in the student's columns: ``(B, C)``, -inf for classes that it does not know.

    Args:
        logits_BK: ``(B, K)``, columns ``teacher_classes``; those the student lacks are left out.

    Raises:
        ShapeMismatch: If the logits do not have a column per class of the teacher.
    """
    if logits_BK.ndim != 2 or logits_BK.shape[1] != len(teacher_classes):
        got = tuple(logits_BK.shape)
        raise ShapeMismatch("teacher logits", expected=("B", len(teacher_classes)), got=got)
    column_of = {name: column for column, name in enumerate(teacher_classes)}
    aligned_BC = logits_BK.new_full((len(logits_BK), len(classes)), -torch.inf)
    for column, name in enumerate(classes):
        if name in column_of:
            aligned_BC[:, column] = logits_BK[:, column_of[name]]
    return aligned_BC


def _softened_kl(teacher_logits_BC: Tensor, student_logits_BC: Tensor, temperature: float) -> Tensor:
    unknown_BC = torch.isneginf(teacher_logits_BC)
    # The lowest finite number, not -inf: its probability is 0 too, and 0 * (lowest - lowest) is no NaN.
    lowest = torch.finfo(student_logits_BC.dtype).min
    log_p_teacher_BC = (teacher_logits_BC / temperature).masked_fill(unknown_BC, lowest).log_softmax(dim=-1)
    log_p_student_BC = (student_logits_BC / temperature).masked_fill(unknown_BC, lowest).log_softmax(dim=-1)
    return functional.kl_div(log_p_student_BC, log_p_teacher_BC, reduction="batchmean", log_target=True)


_MODULE = "module."
_NAME = "distillation run"
