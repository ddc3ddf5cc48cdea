"""A network as a teacher: names sorted, images normalised, batches that change nothing, a digest of all of it.

Legend: B batch, C class, H height, W width.
"""

import math

import pytest
import torch
from equations import normalised_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.errors import MalformedTeacher, SettingOutOfRange, ShapeMismatch
from experts.teachers.base import Teacher
from experts.teachers.network import InputForm, NetworkTeacher

FORM = InputForm(channels=3, pixels=4, mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.25, 2.0))


def linear(num_classes: int, *, seed: int = 0, form: InputForm = FORM) -> nn.Module:
    layer = nn.Linear(form.channels * form.pixels**2, num_classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), layer)


def teacher(classes: tuple[str, ...] = ("bee", "ant"), *, seed: int = 0, form: InputForm = FORM) -> NetworkTeacher:
    network = linear(len(classes), seed=seed, form=form)
    return NetworkTeacher(network, name="t", architecture="linear", classes=classes, form=form)


def images(number: int, form: InputForm = FORM) -> torch.Tensor:
    return torch.rand(number, form.channels, form.pixels, form.pixels, generator=torch.Generator().manual_seed(1))


def test_images_are_normalised_channel_by_channel_as_the_form_says() -> None:
    images_BCHW = images(2)
    expected = normalised_images(images_BCHW.tolist(), FORM.mean, FORM.deviation)
    assert torch.allclose(teacher().normalised(images_BCHW), torch.tensor(expected), atol=1e-6)


@settings(max_examples=30)
@given(classes=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6, unique=True))
def test_each_name_keeps_its_column_when_names_are_sorted(classes: list[str]) -> None:
    subject: Teacher = teacher(tuple(classes))
    images_BCHW = images(3)
    with torch.no_grad():
        plain_BC = linear(len(classes)).eval()(teacher().normalised(images_BCHW))
    logits_BC = subject.logits(images_BCHW)
    assert subject.classes == tuple(sorted(classes))
    for column, name in enumerate(subject.classes):
        assert torch.equal(logits_BC[:, column], plain_BC[:, classes.index(name)])


@pytest.mark.parametrize("number", [0, 1, 32, 33, 70])
def test_batches_are_an_implementation_detail(number: int) -> None:
    subject = teacher()
    logits_BC = subject.logits(images(70)[:number])
    rows = [subject.logits(image_CHW[None]) for image_CHW in images(70)[:number]]
    assert logits_BC.shape == (number, 2)
    assert torch.allclose(logits_BC, torch.cat([torch.empty(0, 2), *rows]), atol=1e-6)


def test_a_teacher_is_frozen_whatever_the_network_was() -> None:
    subject = teacher()
    images_BCHW = images(2).requires_grad_()
    assert not subject.logits(images_BCHW).requires_grad
    assert not any(parameter.requires_grad for parameter in subject.network.parameters())
    # Dropout would draw.
    assert torch.equal(subject.logits(images_BCHW), subject.logits(images_BCHW))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 1, 4, 4), (3, 4, 4), (0, 3, 8, 8)])
def test_images_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="images"):
        teacher().logits(torch.zeros(shape))


def test_a_network_with_another_number_of_columns_than_names_is_refused() -> None:
    subject = NetworkTeacher(linear(3), name="t", architecture="linear", classes=("a", "b"), form=FORM)
    with pytest.raises(ShapeMismatch, match="logits of t"):
        subject.logits(images(2))


@pytest.mark.parametrize("classes", [(), ("a", "a"), ("a", ""), ("b", "a", "b")])
def test_names_are_there_and_distinct(classes: tuple[str, ...]) -> None:
    with pytest.raises(MalformedTeacher, match="class"):
        NetworkTeacher(linear(2), name="t", architecture="linear", classes=classes, form=FORM)


def test_equal_teachers_have_one_digest_and_a_name_is_not_part_of_it() -> None:
    other = NetworkTeacher(linear(2), name="u", architecture="linear", classes=("bee", "ant"), form=FORM)
    assert teacher().digest == other.digest
    assert len(teacher().digest) == 64


@pytest.mark.parametrize(
    "other",
    [
        teacher(seed=1),
        teacher(("ant", "bee")),
        teacher(("bee", "cat")),
        teacher(form=InputForm(channels=3, pixels=4, mean=(0.5, 0.25, 0.25), deviation=FORM.deviation)),
        teacher(form=InputForm(channels=3, pixels=4, mean=FORM.mean, deviation=(0.5, 0.5, 2.0))),
        NetworkTeacher(linear(2), name="t", architecture="other", classes=("bee", "ant"), form=FORM),
        NetworkTeacher(
            linear(2), name="t", architecture="linear", classes=("bee", "ant"), form=FORM, config={"depth": 1}
        ),
    ],
    ids=["weights", "columns", "names", "mean", "deviation", "architecture", "config"],
)
def test_whatever_the_answer_depends_on_changes_the_digest(other: NetworkTeacher) -> None:
    assert other.digest != teacher().digest


def test_weights_of_types_numpy_does_not_know_have_a_digest() -> None:
    plain, half = teacher(), teacher()
    half.network.to(torch.bfloat16)
    assert plain.digest != half.digest


def test_a_form_of_lists_and_whole_numbers_is_the_form_of_floats() -> None:
    given = {"mean": [0, 1, 0], "deviation": [1, 2, 1]}
    form = InputForm(channels=3, pixels=4, **given)  # type: ignore[arg-type]
    assert form == InputForm(channels=3, pixels=4, mean=(0.0, 1.0, 0.0), deviation=(1.0, 2.0, 1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 2},
        {"channels": True},
        {"pixels": 0},
        {"pixels": 4097},
        {"pixels": 4.0},
        {"mean": (0.5,)},
        {"mean": (0.5, math.nan, 0.5)},
        {"mean": "abc"},
        {"deviation": (1.0, 0.0, 1.0)},
        {"deviation": (1.0, math.inf, 1.0)},
        {"deviation": (1.0, True, 1.0)},
    ],
)
def test_a_form_out_of_range_is_refused_by_the_name_of_its_field(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"channels": 3, "pixels": 4, "mean": FORM.mean, "deviation": FORM.deviation}
    with pytest.raises(SettingOutOfRange) as caught:
        InputForm(**(right | wrong))  # type: ignore[arg-type]
    assert {caught.value.name} == set(wrong)
