"""Rows with labels, teachers, both or neither in one batch, and several teachers that know different classes."""

import equations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experts.architectures.mlp import MlpArchitecture
from experts.distillation import (
    UNLABELLED,
    DistillationConfig,
    DistillationData,
    DistillationRun,
    TeacherLogits,
    align_logits,
    distillation_loss,
)
from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.generators import torch_generator

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def randn(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Student logits, logits of several teachers with holes, labels with holes, weights."""
    rows, teachers, classes = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 999))
    size = rows * teachers * classes
    unknown = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    teacher = randn(seed, rows, teachers, classes)
    teacher[torch.tensor(unknown).reshape(teacher.shape)] = -torch.inf
    labels = draw(st.lists(st.integers(UNLABELLED, classes - 1), min_size=rows, max_size=rows))
    weights = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 7.0]), min_size=teachers, max_size=teachers))
    return randn(seed + 1, rows, classes), teacher, torch.tensor(labels), torch.tensor(weights).double()


def in_plain_loops(case: Case, alpha: float, temperature: float) -> float:
    student, teacher, labels, weights = case
    return equations.distillation_over_rows(
        student.tolist(),
        [
            [[None if logit == -torch.inf else logit for logit in row] for row in rows.tolist()]
            for rows in teacher.unbind(dim=1)
        ],
        weights.tolist(),
        [None if label == UNLABELLED else label for label in labels.tolist()],
        alpha=alpha,
        temperature=temperature,
    )


@settings(deadline=None)
@given(case=cases(), alpha=st.sampled_from([0.0, 0.3, 1.0]), temperature=st.sampled_from([0.5, 2.0, 50.0]))
def test_any_mixture_of_rows_and_teachers_has_the_loss_of_the_equation(
    case: Case, alpha: float, temperature: float
) -> None:
    student, teacher, labels, weights = case
    student.requires_grad_()
    loss = distillation_loss(student, teacher, labels, alpha, temperature, weights)
    assert float(loss.detach()) == pytest.approx(in_plain_loops(case, alpha, temperature), rel=1e-8, abs=1e-9)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@settings(deadline=None)
@given(case=cases())
def test_every_row_weighs_the_same_whatever_the_others_have(case: Case) -> None:
    student, teacher, labels, weights = case
    alone = [
        float(distillation_loss(student[b : b + 1], teacher[b : b + 1], labels[b : b + 1], 0.3, 2.0, weights))
        for b in range(len(student))
    ]
    together = float(distillation_loss(student, teacher, labels, 0.3, 2.0, weights))
    assert together == pytest.approx(sum(alone) / len(alone), abs=1e-9)


def test_the_gradient_of_several_partial_teachers_is_that_of_the_loss() -> None:
    student, teacher = randn(0, 4, 3).requires_grad_(), randn(1, 4, 2, 3)
    teacher[:2, 0, 2] = -torch.inf
    teacher[3] = -torch.inf
    labels, weights = torch.tensor([0, UNLABELLED, 2, 1]), torch.tensor([0.2, 0.8])
    torch.autograd.gradcheck(  # type: ignore[no-untyped-call]
        lambda logits: distillation_loss(logits, teacher, labels, 0.3, 2.0, weights), student
    )


def test_labels_without_any_teacher_are_averaged_over_all_rows() -> None:
    student, labels = randn(2, 4, 3), torch.tensor([1, UNLABELLED, UNLABELLED, 0])
    wanted = equations.cross_entropy(student[[0, 3]].tolist(), [1, 0]) * 2 / 4
    assert float(distillation_loss(student, None, labels, 0.5, 2.0)) == pytest.approx(wanted)


def test_a_labelled_row_that_no_teacher_knows_learns_from_its_label_in_full() -> None:
    student, labels = randn(3, 2, 3), torch.tensor([0, 2])
    nobody = torch.full((2, 2, 3), -torch.inf)
    wanted = equations.cross_entropy(student.tolist(), [0, 2])
    assert float(distillation_loss(student, nobody, labels, 0.1, 2.0)) == pytest.approx(wanted)


@pytest.mark.parametrize("teacher", [None, torch.full((2, 3), -torch.inf)])
def test_a_batch_where_no_row_has_anything_is_no_loss_and_no_gradient(teacher: Tensor | None) -> None:
    student = randn(4, 2, 3).requires_grad_()
    loss = distillation_loss(student, teacher, torch.full((2,), UNLABELLED), 0.5, 2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_a_teacher_moves_only_the_classes_it_knows() -> None:
    student = randn(5, 3, 4).requires_grad_()
    teacher = randn(6, 3, 2, 4)
    teacher[:, 0, 2:] = -torch.inf
    teacher[:, 1, [0, 1, 3]] = -torch.inf
    distillation_loss(student, teacher, None, 0.5, 2.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad[:, :2].abs().min() > 0
    # One class alone has no odds: the second teacher says nothing of it.
    assert not student.grad[:, 2:].any()


def test_a_teacher_of_one_class_takes_no_weight_from_the_others() -> None:
    student, teacher = randn(7, 3, 3), randn(8, 3, 2, 3)
    teacher[:, 1, :2] = -torch.inf
    both = distillation_loss(student, teacher, None, 0.5, 2.0, torch.tensor([0.1, 0.9]))
    alone = distillation_loss(student, teacher[:, 0], None, 0.5, 2.0)
    assert float(both) == pytest.approx(float(alone))


def test_weights_matter_by_their_proportion_and_are_equal_if_none_are_given() -> None:
    student, teacher = randn(9, 3, 3), randn(10, 3, 2, 3)
    first, second = (float(distillation_loss(student, teacher[:, j], None, 0.5, 2.0)) for j in (0, 1))
    for weights in ([1.0, 3.0], [0.25, 0.75]):
        got = distillation_loss(student, teacher, None, 0.5, 2.0, torch.tensor(weights))
        assert float(got) == pytest.approx(0.25 * first + 0.75 * second)
    assert float(distillation_loss(student, teacher, None, 0.5, 2.0)) == pytest.approx((first + second) / 2)


def test_where_all_know_the_same_classes_the_gradient_is_that_of_their_mixture() -> None:
    teacher, weights = randn(11, 2, 2, 3), torch.tensor([0.3, 0.7]).double()
    mixture = (torch.softmax(teacher / 2, dim=-1) * weights[:, None]).sum(dim=1)
    gradients = []
    for logits, several in ((teacher, weights), (2 * mixture.log(), None)):
        student = randn(12, 2, 3).requires_grad_()
        distillation_loss(student, logits, None, 0.5, 2.0, several).backward()  # type: ignore[no-untyped-call]
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


def test_logits_and_weights_that_do_not_fit_are_refused() -> None:
    student = randn(13, 4, 3)
    for teacher in (randn(0, 4, 2, 2), randn(0, 3, 2, 3), randn(0, 4, 1, 1, 3), randn(0, 4)):
        with pytest.raises(ShapeMismatch):
            distillation_loss(student, teacher, None, 0.5, 2.0)
    with pytest.raises(ShapeMismatch):
        distillation_loss(student, randn(0, 4, 2, 3), None, 0.5, 2.0, torch.ones(3))


def test_teachers_are_matched_to_the_students_classes_by_name() -> None:
    features = torch.zeros(5, 6)
    wide = TeacherLogits(logits_NK=randn(14, 5, 3).float(), classes=("z", "b", "a"), weight=2.0)
    narrow = TeacherLogits(logits_NK=randn(15, 5, 1).float(), classes=("c",))
    data = DistillationData.from_teachers(features, None, [wide, narrow], ("a", "b", "c"))
    assert data.teacher_logits_NC is not None
    assert data.teacher_weights_J is not None
    assert data.teacher_logits_NC.shape == (5, 2, 3)
    assert torch.equal(data.teacher_logits_NC[:, 0, :2], wide.logits_NK[:, [2, 1]])
    assert torch.equal(data.teacher_logits_NC[:, 1], align_logits(narrow.logits_NK, ("c",), ("a", "b", "c")))
    assert data.teacher_weights_J.tolist() == [2.0, 1.0]


def test_teachers_that_know_nothing_or_disagree_in_number_are_refused() -> None:
    features, labels = torch.zeros(5, 6), torch.zeros(5, dtype=torch.int64)
    stranger = TeacherLogits(logits_NK=torch.zeros(5, 1), classes=("z",))
    with pytest.raises(NothingToLearnFrom):
        DistillationData.from_teachers(features, None, [stranger], ("a", "b"))
    with pytest.raises(NothingToLearnFrom):
        DistillationData.from_teachers(features, torch.full((5,), UNLABELLED), [stranger], ("a", "b"))
    with pytest.raises(NothingToLearnFrom):
        DistillationData.from_teachers(features, labels, [], ("a", "b"))
    DistillationData.from_teachers(features, labels, [stranger], ("a", "b"))
    short = TeacherLogits(logits_NK=torch.zeros(4, 1), classes=("a",))
    with pytest.raises(ShapeMismatch):
        DistillationData.from_teachers(features, labels, [stranger, short], ("a", "b"))
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SettingOutOfRange):
            TeacherLogits(logits_NK=torch.zeros(5, 1), classes=("a",), weight=weight)
    with pytest.raises(SettingOutOfRange):
        DistillationData(features_ND=features, labels_N=labels - 2)


def test_a_few_labels_and_two_half_teachers_make_a_whole_expert() -> None:
    """No teacher knows all three classes, and labels are too few to learn from alone."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 3
    features = torch.randn(300, 6, generator=generator) + 3 * torch.nn.functional.one_hot(truth, 6)
    exact = features[:, :3]
    halves = [
        TeacherLogits(logits_NK=exact[:, :2], classes=("a", "b")),
        TeacherLogits(logits_NK=exact[:, 1:], classes=("b", "c")),
    ]
    labels = truth.clone()
    labels[6:] = UNLABELLED
    classes = ("a", "b", "c")
    taught = DistillationData.from_teachers(features, labels, halves, classes)
    untaught = DistillationData(features_ND=features[:6], labels_N=labels[:6])
    accuracy = []
    for data in (taught, untaught):
        module = MlpArchitecture(feature_dim=6, hidden=8, num_classes=3).build("uid")
        list(DistillationRun(module, data, DistillationConfig(steps=500), torch_generator(0, "batches")))
        accuracy.append(float((module(features).argmax(dim=1) == truth).float().mean()))
    assert accuracy[0] > 0.85
    assert accuracy[0] > accuracy[1] + 0.05
