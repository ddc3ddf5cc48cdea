"""Sections of teachers: what they are, what they keep, and which can travel."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experts.errors import SectionNotPortable, UnknownCut
from experts.networks.efficientnet_lite0 import BLOCKS, build_layers
from experts.teachers.cnn import untrained_cnn
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.sections import Section, list_sections, section

GREY = InputForm(channels=1, pixels=8, mean=(0.3,), deviation=(0.4,))
COLOUR = InputForm(channels=3, pixels=32, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4))


def teacher_of(network: nn.Module, num_classes: int, form: InputForm) -> NetworkTeacher:
    names = [f"class-{index:04}" for index in range(num_classes)]
    return NetworkTeacher(network, name="test", architecture="test", classes=names, form=form)


def cnn_teacher() -> NetworkTeacher:
    generator = torch.Generator().manual_seed(0)
    return teacher_of(untrained_cnn("abc", channels=1, pixels=8, generator=generator), 3, GREY)


@pytest.fixture(scope="module")
def efficientnet() -> NetworkTeacher:
    """The form of efficientnet-lite0, at 32 px and with small random weights."""
    network = build_layers(head=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=(2 / max(1, parameter[0].numel())) ** 0.5, generator=generator)
    return teacher_of(network, 1000, COLOUR)


class Foreign(nn.Module):
    """A network of a form that nobody here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.answer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.answer(torch.tanh(self.norm(self.second(self.first(x)))).mean(dim=(2, 3)))
        return logits


def test_the_reference_cnn_can_be_cut_after_every_layer() -> None:
    sections = {found.cut: found for found in list_sections(cnn_teacher())}
    assert list(sections) == [*(f"layers.{index}" for index in range(10)), "layers"]
    assert all(found.valid and found.portable for found in sections.values())
    first = Section(
        cut="layers.0",
        output_shape=(16, 4, 4),
        num_parameters=25 * 16 + 16,
        flops=2 * 25 * 16 * 16,
        valid=True,
        portable=True,
    )
    assert sections["layers.0"] == first
    assert sections["layers.7"].output_shape == (1024,)
    # Of three classes: the ten of the reference have 7 * 129 more.
    assert sections["layers"].num_parameters == 156_042 - 7 * 129


def test_a_section_gives_what_the_network_has_there() -> None:
    teacher = cnn_teacher()
    images = teacher.normalised(torch.rand(3, 1, 8, 8))
    layers = teacher.network.layers
    assert isinstance(layers, nn.Sequential)
    for cut, depth in (("layers.0", 1), ("layers.5", 6), ("layers.9", 10), ("layers", 11)):
        found = section(teacher, cut)
        output = found(images)
        assert torch.equal(output, layers[:depth](images))
        assert output.shape[1:] == found.output_shape
        assert not output.requires_grad


def test_the_tail_computed_from_a_valid_section_is_the_teachers_answer(efficientnet: NetworkTeacher) -> None:
    images = efficientnet.normalised(torch.rand(2, 3, 32, 32))
    logits = efficientnet.network(images)
    layers = efficientnet.network
    assert isinstance(layers, nn.Sequential)
    by_cut = {found.cut: found for found in list_sections(efficientnet)}
    for cut in ("1", "7", "20"):
        assert by_cut[cut].valid
        torch.testing.assert_close(layers[int(cut) + 1 :](section(efficientnet, cut)(images)), logits)


def test_of_efficientnet_the_blocks_that_add_their_input_cannot_be_cut_inside(efficientnet: NetworkTeacher) -> None:
    valid = {found.cut: found.valid for found in list_sections(efficientnet)}
    for index, block in enumerate(BLOCKS):
        adds = block.stride == 1 and block.input_channels == block.output_channels
        assert valid[f"{index + 2}"]
        assert valid[f"{index + 2}.layers.0"] == (not adds)
        # The sum makes another tensor of a residual block's; otherwise block and inner layers pass on the same one.
        assert (f"{index + 2}.layers" in valid) == adds


def test_a_section_holds_the_weights_up_to_the_cut_and_no_other() -> None:
    teacher = teacher_of(Foreign(), 3, GREY)
    found = section(teacher, "second")
    assert set(found.state_dict()) == {
        f"head.network.{layer}.{part}" for layer in ("first", "second") for part in ("weight", "bias")
    }
    assert not any(parameter.requires_grad for parameter in found.parameters())
    normed = section(teacher, "norm").state_dict()
    assert "head.network.norm.running_var" in normed
    assert "head.network.answer.weight" not in normed


def test_a_section_is_a_copy_and_the_teacher_stays_whole() -> None:
    teacher = teacher_of(Foreign(), 3, GREY)
    images = torch.rand(2, 1, 8, 8)
    before, digest = teacher.logits(images), teacher.digest
    found = section(teacher, "second")
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
    assert torch.equal(teacher.logits(images), before)
    assert digest == teacher_of(copy.deepcopy(teacher.network), 3, GREY).digest


def test_a_cut_that_the_teacher_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(UnknownCut) as caught:
        section(cnn_teacher(), "layers.99")
    assert caught.value.cut == "layers.99"
    assert "layers.9," in caught.value.reason


def test_a_foreign_network_is_cut_like_ours_but_does_not_travel() -> None:
    teacher = teacher_of(Foreign(), 3, GREY)
    sections = list_sections(teacher)
    assert [found.cut for found in sections] == ["first", "second", "norm", "answer"]
    assert all(found.valid and not found.portable for found in sections)
    with pytest.raises(SectionNotPortable) as caught:
        section(teacher, "norm").layers()
    assert caught.value.cut == "norm"


class Louder(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Backwards(nn.Sequential):
    """A sequence in another order than its parts'."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "layer",
    [
        Louder(1, 1, 3),
        Backwards(nn.ReLU(), nn.Conv2d(1, 1, 3)),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 1, 3, bias=False),
        nn.Conv2d(1, 1, 3, dilation=2),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 1, (3, 1)),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.GELU(),
        Foreign(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_the_data_cannot_say_does_not_travel(layer: nn.Module) -> None:
    network = nn.Sequential(nn.ReLU(), layer, nn.Flatten(), nn.LazyLinear(3))
    network(torch.rand(1, 1, 8, 8))
    if isinstance(layer, Foreign):
        network = nn.Sequential(nn.ReLU(), layer)
    by_cut = {found.cut: found for found in list_sections(teacher_of(network, 3, GREY))}
    assert by_cut["0"].portable
    assert not by_cut["1"].portable


def test_a_layer_used_twice_is_two_layers_to_a_peer() -> None:
    shared = nn.Conv2d(1, 1, 3)
    network = nn.Sequential(shared, shared, nn.Flatten(), nn.Linear(16, 3))
    teacher = teacher_of(network, 3, GREY)
    by_cut = {found.cut: found for found in list_sections(teacher)}
    assert by_cut["0"].portable
    # The name of the first says nothing of where the second stands.
    assert not by_cut["0#2"].portable
    layers, steps = section(teacher, "2").layers()
    assert [layer["layer"] for layer in layers] == ["conv", "conv", "flatten"]
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(nn.Sequential(*steps)(images), section(teacher, "2")(images))
