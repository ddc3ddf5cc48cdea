"""Distillation: the loss of the equation, and a run that can be interleaved, saved and continued."""

import copy

import equations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import add_delta
from experts.checkpoint import flat_parameters
from experts.distillation import (
    DistillationConfig,
    DistillationData,
    DistillationRun,
    align_logits,
    distillation_loss,
)
from experts.errors import CorruptState, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch, TrainingDiverged
from experts.generators import torch_generator

STUDENT = MlpArchitecture(feature_dim=6, hidden=4, num_classes=3)


def logits(seed: int, rows: int = 5) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)).double() * 3


def blobs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(90) % 3
    return torch.randn(90, 6, generator=generator) + 3 * nn.functional.one_hot(labels, 6), labels


def labelled_run(seed: int = 0, steps: int = 40, **terms: DistillationData) -> DistillationRun:
    features, labels = blobs()
    teacher = 4.0 * nn.functional.one_hot(labels, 3).float()
    data = DistillationData(features_ND=features, labels_N=labels, teacher_logits_NC=teacher)
    config = DistillationConfig(steps=steps, batch_size=8)
    return DistillationRun(STUDENT.build("uid"), data, config, torch_generator(seed, "batches"), **terms)


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_the_loss_is_that_of_the_equation(seed: int, alpha: float, temperature: float) -> None:
    student, teacher, labels = logits(seed), logits(seed + 1000), [0, 2, 1, 1, 0]
    got = distillation_loss(student, teacher, torch.tensor(labels), alpha, temperature)
    wanted = equations.distillation_loss(student.tolist(), teacher.tolist(), labels, alpha, temperature)
    assert float(got) == pytest.approx(wanted, rel=1e-9)


def test_unlabelled_batches_use_the_kl_term_alone_and_no_teacher_the_labels_alone() -> None:
    student, teacher = logits(1), logits(2)
    unlabelled = distillation_loss(student, teacher, None, 0.9, 2.0)
    assert float(unlabelled) == pytest.approx(equations.softened_kl(teacher.tolist(), student.tolist(), 2.0))
    untaught = distillation_loss(student, None, torch.zeros(5, dtype=torch.int64), 0.1, 2.0)
    assert float(untaught) == pytest.approx(equations.cross_entropy(student.tolist(), [0] * 5))
    with pytest.raises(NothingToLearnFrom):
        distillation_loss(student, None, None, 0.5, 2.0)


def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient() -> None:
    student = logits(3).requires_grad_()
    loss = distillation_loss(student, student.detach().clone(), None, 0.5, 2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-12


def test_the_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    sizes = []
    for temperature in (50.0, 500.0):
        student = logits(4).requires_grad_()
        distillation_loss(student, logits(5), None, 0.5, temperature).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_a_class_of_probability_0_adds_nothing_and_its_student_learns_to_leave_it() -> None:
    # 0 in float64, and not unknown: the student's share of it counts.
    teacher = torch.tensor([[0.0, 0.5, -2000.0], [-2000.0, 0.0, -2000.0]]).double()
    student = logits(3, rows=2).requires_grad_()
    loss = distillation_loss(student, teacher, None, 0.5, 2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(equations.softened_kl(teacher.tolist(), student.tolist(), 2.0))
    assert student.grad is not None
    assert float(student.grad[0, 2]) > 0
    assert torch.isfinite(student.grad).all()


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = logits(6).requires_grad_()
    assert not distillation_loss(logits(7), teacher, None, 0.5, 2.0).requires_grad


def test_classes_a_teacher_does_not_know_are_left_to_the_student() -> None:
    student = logits(8).requires_grad_()
    known = logits(9)[:, :2]
    teacher = align_logits(known, ("b", "a"), ("a", "b", "c"))
    assert torch.equal(teacher[:, 0], known[:, 1])
    loss = distillation_loss(student, teacher, None, 0.5, 2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    wanted = equations.softened_kl(known[:, [1, 0]].tolist(), student[:, :2].tolist(), 2.0)
    assert float(loss.detach()) == pytest.approx(wanted)
    assert student.grad is not None
    assert not student.grad[:, 2].any()
    assert torch.isfinite(student.grad).all()


def test_a_row_whose_teacher_knows_none_of_the_classes_teaches_nothing() -> None:
    student = logits(10).float().requires_grad_()
    teacher = align_logits(torch.zeros(5, 1), ("z",), ("a", "b", "c"))
    loss = distillation_loss(student, teacher, None, 0.5, 2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_logits_of_different_shapes_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        distillation_loss(logits(1), logits(1)[:, :2], None, 0.5, 2.0)
    with pytest.raises(ShapeMismatch):
        align_logits(logits(1), ("a", "b"), ("a",))


def test_a_run_takes_its_steps_and_learns() -> None:
    run = labelled_run(steps=300)
    losses = list(run)
    assert len(losses) == run.steps_done == 300
    assert run.done
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    features, labels = blobs(seed=1)
    assert (run.module(features).argmax(dim=1) == labels).float().mean() > 0.9


def test_one_step_is_sgd_on_the_loss_of_the_drawn_batch() -> None:
    run, module = labelled_run(), STUDENT.build("uid")
    features, labels = blobs()
    rows = torch.randint(90, (8,), generator=torch_generator(0, "batches"))
    teacher = 4.0 * nn.functional.one_hot(labels[rows], 3).float()
    loss = distillation_loss(module(features[rows]), teacher, labels[rows], 0.5, 2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert run.step() == pytest.approx(float(loss.detach()))
    for trained, parameter in zip(run.module.parameters(), module.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(trained, parameter - 0.05 * parameter.grad)


def test_equal_seeds_give_equal_runs_and_others_differ() -> None:
    first, again, other = labelled_run(0), labelled_run(0), labelled_run(1)
    assert list(first) == list(again)
    assert list(first) != list(other)
    assert torch.equal(flat_parameters(first.module), flat_parameters(again.module))


@pytest.mark.parametrize("with_replay", [False, True])
def test_a_run_resumed_elsewhere_continues_bit_for_bit(with_replay: bool) -> None:
    replay = DistillationData.from_old_generation(STUDENT.build("old"), blobs(seed=2)[0])
    terms = {"replay": replay} if with_replay else {}
    run = labelled_run(**terms)
    for _ in range(15):
        run.step()
    state = run.state_dict()
    rest = list(run)

    resumed = labelled_run(seed=9, **terms)
    resumed.step()
    resumed.load_state_dict(state)
    assert resumed.steps_done == 15
    assert list(resumed) == rest
    assert torch.equal(flat_parameters(resumed.module), flat_parameters(run.module))


def test_a_saved_state_does_not_follow_the_run() -> None:
    run = labelled_run()
    state = run.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    run.step()
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_a_delta_added_between_steps_is_trained_on_from() -> None:
    run, shifted = labelled_run(), labelled_run()
    for either in (run, shifted):
        either.step()
    delta = torch.full_like(flat_parameters(shifted.module), 0.25)
    add_delta(shifted.module, delta)
    torch.testing.assert_close(flat_parameters(shifted.module), flat_parameters(run.module) + delta)

    fresh = labelled_run()
    fresh.load_state_dict(shifted.state_dict())
    assert shifted.step() == fresh.step() != run.step()
    assert torch.equal(flat_parameters(shifted.module), flat_parameters(fresh.module))


@pytest.mark.parametrize("damage", ["missing", "foreign", "shape", "dtype", "generator"])
def test_a_state_of_another_run_is_refused_and_changes_nothing(damage: str) -> None:
    run = labelled_run()
    state = run.state_dict()
    name = "module.hidden.weight"
    if damage == "missing":
        del state[name]
    elif damage == "foreign":
        state["module.other"] = torch.zeros(1)
    elif damage == "shape":
        state[name] = state[name][:1]
    elif damage == "dtype":
        state[name] = state[name].double()
    else:
        state["generator"] = torch.zeros_like(state["generator"])
    state["steps_done"] += 7
    before = run.state_dict()
    with pytest.raises(CorruptState):
        run.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in run.state_dict().items())


def test_replay_keeps_what_the_newest_data_would_overwrite() -> None:
    features, labels = blobs()
    first = labelled_run(steps=300)
    list(first)
    old = first.module
    newest = DistillationData(features_ND=features[labels == 2], labels_N=labels[labels == 2])
    replayed = DistillationData.from_old_generation(old, features[labels != 2])
    config = DistillationConfig(steps=600, batch_size=8)
    kept = []
    for replay in (None, replayed):
        module = copy.deepcopy(old)
        list(DistillationRun(module, newest, config, torch_generator(3, "batches"), replay=replay))
        kept.append(float((module(features).argmax(dim=1) == labels).float().mean()))
    assert kept[0] < 0.8
    assert kept[1] > 0.9


def test_gamma_weighs_the_replay_term() -> None:
    features, _ = blobs()
    old = STUDENT.build("old")
    replay = DistillationData.from_old_generation(old, features)
    data = DistillationData(features_ND=features, teacher_logits_NC=torch.zeros(90, 3))
    losses = []
    for gamma in (0.0, 1.0, 3.0):
        config = DistillationConfig(gamma=gamma)
        run = DistillationRun(STUDENT.build("uid"), data, config, torch_generator(0, "b"), replay=replay)
        losses.append(run.step())
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0]


def test_a_diverging_loss_is_named_and_no_step_taken() -> None:
    run = labelled_run()
    run.step()
    add_delta(run.module, torch.full_like(flat_parameters(run.module), 1e30))
    before = flat_parameters(run.module)
    with pytest.raises(TrainingDiverged) as caught:
        run.step()
    assert caught.value.step == run.steps_done == 1
    assert torch.equal(flat_parameters(run.module), before)


def test_data_that_teaches_nothing_or_disagrees_is_refused() -> None:
    features = torch.zeros(4, 6)
    with pytest.raises(NothingToLearnFrom):
        DistillationData(features_ND=features)
    with pytest.raises(NothingToLearnFrom):
        DistillationData(features_ND=features[:0], labels_N=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ShapeMismatch):
        DistillationData(features_ND=features, labels_N=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeMismatch):
        DistillationData(features_ND=features, teacher_logits_NC=torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("alpha", 1.5), ("temperature", 0.0), ("gamma", -1.0)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingOutOfRange) as caught:
        DistillationConfig(**{name: value})  # type: ignore[arg-type]
    assert caught.value.name == name
