"""The distillation loss: labels against teachers, where a row may have either, both or neither.

    l_b = alpha CE_b + (1 - alpha) T^2 KL_b     a row with a label and a teacher        (proposal, section 2.2)
          CE_b                                  with a label alone
          T^2 KL_b                              with a teacher alone
          0                                     with neither
    L = 1/B sum_b l_b
    KL_b = sum_j w_jb KL(p_j || p_student), both over the classes K_jb that teacher j knows, w_jb convex over j

with p the softmax of logits / T. Every row weighs 1/B, whatever it has: the loss of a batch drawn at random is
then an unbiased estimate of the mean over the data set, which a mean over the labelled rows of a batch is not.

A teacher that knows some of the classes speaks of those alone: its distribution and the student's are both
renormalised over K_jb, so what the student gives to the other classes gets no gradient from it. Teachers are
summed as divergences, not mixed into one distribution: where they know the same classes the gradient is that of
their mixture, and where they don't there is no mixture, since a softmax over K_jb says nothing of the mass beyond.

Legend: B batch, J teacher, C class (the student's columns), K class (a teacher's own).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from experts.errors import NothingToLearnFrom, ShapeMismatch

__all__ = ["UNLABELLED", "align_logits", "distillation_loss", "knows_some_class"]

UNLABELLED = -1
"""In place of a column: the row has no label."""


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BC: Tensor | None,
    labels_B: Tensor | None,
    alpha: float,
    temperature: float,
    teacher_weights_J: Tensor | None = None,
) -> Tensor:
    """alpha CE + (1 - alpha) T^2 KL(p_teacher || p_student), in each row or the one term there is data for, unweighted.

    The T^2 keeps the gradient's size independent of T (Hinton et al. 2015, arXiv:1503.02531, sec. 2).

    Args:
        student_logits_BC: ``(B, C)``; gradients flow here only.
        teacher_logits_BC: ``(B, C)`` in the same columns, ``(B, J, C)`` from J teachers, or None for
            cross-entropy alone. -inf marks a class the teacher does not know; the KL term is then between both
            distributions over those it knows, and a row where no teacher knows any has no teacher.
        labels_B: Columns, int64 ``(B,)``, `UNLABELLED` in a row without a label; None if no row has one.
        alpha: In [0, 1].
        temperature: T > 0; softens the KL term, not the cross-entropy.
        teacher_weights_J: ``(J,)``, above 0, of any sum; None for equal ones. In each row they are renormalised
            over the teachers that know two or more of its classes: of one class alone there is nothing to say.

    Returns: Scalar, nats, mean over B.

    Raises:
        ShapeMismatch: If logits or weights do not fit each other.
        NothingToLearnFrom: If there are neither teacher nor labels.
    """
    if teacher_logits_BC is not None:
        _require_fitting(student_logits_BC, teacher_logits_BC, teacher_weights_J)
    if labels_B is None:
        if teacher_logits_BC is None:
            raise NothingToLearnFrom("distillation loss")
        # Without a look at who is taught: in a row that is not, the KL term is 0.
        return _one_kind(student_logits_BC, teacher_logits_BC, None, alpha, temperature, teacher_weights_J)
    labelled_B = labels_B != UNLABELLED
    taught_B = torch.zeros_like(labelled_B) if teacher_logits_BC is None else knows_some_class(teacher_logits_BC)
    kinds = (
        (labelled_B & taught_B, teacher_logits_BC, labels_B),
        (labelled_B & ~taught_B, None, labels_B),
        (~labelled_B & taught_B, teacher_logits_BC, None),
    )
    for of_kind_B, teacher_BC, label_B in kinds:
        if of_kind_B.all():
            return _one_kind(student_logits_BC, teacher_BC, label_B, alpha, temperature, teacher_weights_J)
    # The 0 keeps a graph where no row has anything.
    loss = 0.0 * student_logits_BC.sum()
    for of_kind_B, teacher_BC, label_B in kinds:
        if of_kind_B.any():
            mean = _one_kind(
                student_logits_BC[of_kind_B],
                None if teacher_BC is None else teacher_BC[of_kind_B],
                None if label_B is None else label_B[of_kind_B],
                alpha,
                temperature,
                teacher_weights_J,
            )
            loss = loss + mean * of_kind_B.sum() / len(of_kind_B)
    return loss


def knows_some_class(teacher_logits_BC: Tensor) -> Tensor:
    """In which rows some teacher knows some class: bool ``(B,)``, for logits ``(B, C)`` or ``(B, J, C)``."""
    return (~torch.isneginf(teacher_logits_BC)).flatten(1).any(dim=1)


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


def _one_kind(
    student_logits_BC: Tensor,
    teacher_logits_BC: Tensor | None,
    labels_B: Tensor | None,
    alpha: float,
    temperature: float,
    teacher_weights_J: Tensor | None,
) -> Tensor:
    """The mean of l_b over rows that all have a label, all have a teacher, or all have both."""
    if teacher_logits_BC is None:
        assert labels_B is not None
        return functional.cross_entropy(student_logits_BC, labels_B)
    distill = temperature**2 * _softened_kl(teacher_logits_BC, student_logits_BC, temperature, teacher_weights_J)
    if labels_B is None:
        return distill
    return alpha * functional.cross_entropy(student_logits_BC, labels_B) + (1 - alpha) * distill


def _softened_kl(
    teacher_logits_BC: Tensor, student_logits_BC: Tensor, temperature: float, teacher_weights_J: Tensor | None
) -> Tensor:
    """KL_b of the equation above, mean over B; 0 in a row where no teacher knows any class."""
    rows, classes = student_logits_BC.shape
    teacher_logits_BJC = teacher_logits_BC.detach().reshape(rows, -1, classes)
    unknown_BJC = torch.isneginf(teacher_logits_BJC)
    # The lowest finite number, not -inf: its probability is 0 too, and 0 * (lowest - lowest) is no NaN.
    lowest = torch.finfo(student_logits_BC.dtype).min
    log_p_teacher_BJC = (teacher_logits_BJC / temperature).masked_fill(unknown_BJC, lowest).log_softmax(dim=-1)
    student_B1C = student_logits_BC.unsqueeze(1) / temperature
    log_p_student_BJC = student_B1C.masked_fill(unknown_BJC, lowest).log_softmax(dim=-1)
    kl_BJC = functional.kl_div(log_p_student_BJC, log_p_teacher_BJC, reduction="none", log_target=True)
    if unknown_BJC.shape[1] > 1:
        kl_BJC = kl_BJC * _shares(unknown_BJC, teacher_weights_J).to(kl_BJC.dtype).unsqueeze(-1)
    return kl_BJC.sum() / rows


def _shares(unknown_BJC: Tensor, teacher_weights_J: Tensor | None) -> Tensor:
    """w_jb: convex over the teachers with a say in the row, 0 for the others, ``(B, J)``."""
    has_say_BJ = (~unknown_BJC).sum(dim=-1) >= 2
    weights_BJ = has_say_BJ.double() if teacher_weights_J is None else has_say_BJ * teacher_weights_J.double()
    # Where nobody has a say, 0 / lowest is 0.
    return weights_BJ / weights_BJ.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def _require_fitting(student_logits_BC: Tensor, teacher_logits_BC: Tensor, teacher_weights_J: Tensor | None) -> None:
    rows, classes = student_logits_BC.shape
    got = tuple(teacher_logits_BC.shape)
    if len(got) not in (2, 3) or (got[0], got[-1]) != (rows, classes):
        expected = (rows, "J", classes) if len(got) == 3 else (rows, classes)
        raise ShapeMismatch("teacher logits", expected=expected, got=got)
    teachers = got[1] if len(got) == 3 else 1
    if teacher_weights_J is not None and teacher_weights_J.shape != (teachers,):
        raise ShapeMismatch("teacher weights", expected=(teachers,), got=tuple(teacher_weights_J.shape))
