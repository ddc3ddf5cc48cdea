"""What a run learns from: items with labels, teachers' logits or both, in any mixture of rows.

Legend: N items, D feature, J teacher, C class (the student's columns), K class (a teacher's own).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.distillation.loss import UNLABELLED, align_logits, knows_some_class
from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch

__all__ = ["DistillationData", "TeacherLogits"]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class TeacherLogits:
    """What one of several teachers says of all items.

    Raises:
        SettingOutOfRange: If the weight is not finite and above 0.
    """

    logits_NK: Tensor
    """float32 ``(N, K)``."""

    classes: tuple[str, ...]
    """Names of the K columns; they may be more or fewer than the student's, in any order."""

    weight: float = 1.0
    """How much this teacher counts against the others, finite, above 0; leave out a teacher that should not."""

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < math.inf:
            raise SettingOutOfRange("weight", self.weight, allowed="finite and above 0")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class DistillationData:
    """Items to learn from, with labels, teachers' logits, or both.

    Raises:
        NothingToLearnFrom: If there are no items, or not one has a label or a teacher that knows a class of it.
        ShapeMismatch: If the tensors do not fit each other.
        SettingOutOfRange: If a label is below `UNLABELLED`.
    """

    features_ND: Tensor
    """Trunk features, float32 ``(N, D)``."""

    labels_N: Tensor | None = None
    """Columns of the student, int64 ``(N,)``, `UNLABELLED` for an item without a label; None if none has one."""

    teacher_logits_NC: Tensor | None = None
    """The teacher's logits in the student's columns, float32 ``(N, C)``, -inf for a class it does not know;
    ``(N, J, C)`` of several teachers (see `from_teachers`); None without a teacher."""

    teacher_weights_J: Tensor | None = None
    """Weights of the J teachers, above 0, ``(J,)``; None for equal ones."""

    def __post_init__(self) -> None:
        num_items = len(self.features_ND)
        if self.labels_N is not None and self.labels_N.shape != (num_items,):
            raise ShapeMismatch("labels", expected=(num_items,), got=tuple(self.labels_N.shape))
        if self.teacher_logits_NC is not None and len(self.teacher_logits_NC) != num_items:
            got = tuple(self.teacher_logits_NC.shape)
            raise ShapeMismatch("teacher logits", expected=(num_items, "C"), got=got)
        labelled = self.labels_N is not None and bool((self.labels_N != UNLABELLED).any())
        taught = self.teacher_logits_NC is not None and bool(knows_some_class(self.teacher_logits_NC).any())
        if num_items == 0 or not (labelled or taught):
            raise NothingToLearnFrom("distillation data")
        if self.labels_N is not None and int(self.labels_N.min()) < UNLABELLED:
            raise SettingOutOfRange("labels_N", int(self.labels_N.min()), allowed=f"a column, or {UNLABELLED} for none")

    @classmethod
    def from_teachers(
        cls,
        features_ND: Tensor,
        labels_N: Tensor | None,
        teachers: Sequence[TeacherLogits],
        classes: Sequence[str],
    ) -> "DistillationData":
        """Items scored by several teachers, whose classes are matched with the student's by name.

        Args:
            features_ND: As the field.
            labels_N: As the field.
            teachers: At least one.
            classes: Names of the student's C columns.

        Raises:
            NothingToLearnFrom: As the class; or there is no teacher.
            ShapeMismatch: As the class; or a teacher's logits are not ``(N, K)``.
        """
        if not teachers:
            raise NothingToLearnFrom("distillation without a teacher")
        for teacher in teachers:
            if len(teacher.logits_NK) != len(features_ND):
                expected = (len(features_ND), len(teacher.classes))
                raise ShapeMismatch("teacher logits", expected=expected, got=tuple(teacher.logits_NK.shape))
        aligned = [align_logits(teacher.logits_NK, teacher.classes, classes) for teacher in teachers]
        weights = [teacher.weight for teacher in teachers]
        return cls(
            features_ND=features_ND,
            labels_N=labels_N,
            teacher_logits_NC=torch.stack(aligned, dim=1),
            teacher_weights_J=torch.tensor(weights, dtype=torch.float64, device=aligned[0].device),
        )

    @classmethod
    def from_old_generation(cls, old_module: nn.Module, features_ND: Tensor) -> "DistillationData":
        """The replay term's data: an old generation of the expert as the teacher of replayed items.

        Its logits are computed once, here; the old module is not kept.
        """
        with torch.no_grad():
            return cls(features_ND=features_ND, teacher_logits_NC=old_module(features_ND))
