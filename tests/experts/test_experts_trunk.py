"""Trunks: normalisation, whitened patches, and what their bytes hold."""

import math
from dataclasses import asdict
from typing import Any

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from experts.checkpoint import tensors_to_bytes
from experts.data.dataset import class_columns
from experts.data.named import load_named
from experts.errors import CorruptWeights, MalformedDataset, SettingOutOfRange, ShapeMismatch, UnknownTrunk
from experts.trunk.base import Trunk, calibrate, features_of
from experts.trunk.codec import trunk_from_bytes, trunk_to_bytes
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, WhitenedTrunk, fit_whitened

CONFIG = WhitenedConfig(num_patches=5, patch_px=4, pool=2)


def noise(count: int, channels: int = 1, pixels: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, pixels, pixels, generator=torch.Generator().manual_seed(seed))


def calibrated(channels: int = 1) -> WhitenedTrunk:
    images = noise(20, channels)
    trunk = fit_whitened(images, CONFIG, seed=0)
    calibrate(trunk, images)
    return trunk


def test_calibration_is_the_equation_in_plain_loops() -> None:
    images = noise(6)
    trunk = fit_whitened(images, CONFIG, seed=0)
    phi = trunk.section(images).tolist()
    calibrate(trunk, images)
    everything = [value for row in phi for value in row]
    overall_mean = sum(everything) / len(everything)
    overall = math.sqrt(sum((value - overall_mean) ** 2 for value in everything) / len(everything))
    columns = [[row[d] for row in phi] for d in range(trunk.feature_dim)]
    means = [sum(column) / len(column) for column in columns]
    deviations = [
        math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)) + 0.01 * overall
        for column, mean in zip(columns, means, strict=True)
    ]
    wanted = [equations.normalised_features(row, means, deviations) for row in phi]
    np.testing.assert_allclose(trunk(images), wanted, atol=1e-3)


def test_features_are_clipped_on_images_unlike_the_calibration_set() -> None:
    trunk = fit_whitened(noise(20), CONFIG, seed=0)
    calibrate(trunk, noise(1).repeat(5, 1, 1, 1))
    images = noise(4, seed=1)
    features = trunk(images)
    mean, deviation = trunk.mean_D.tolist(), trunk.deviation_D.tolist()
    wanted = [equations.normalised_features(row, mean, deviation) for row in trunk.section(images).tolist()]
    np.testing.assert_allclose(features, wanted, rtol=1e-5, atol=1e-5)
    assert features.abs().max().item() == 8.0


def test_a_row_s_features_do_not_depend_on_the_rows_beside_it() -> None:
    trunk, images = calibrated(), noise(40)
    torch.testing.assert_close(trunk(images)[39:], trunk(images[39:]), atol=1e-5, rtol=1e-5)
    assert trunk(images[:0]).shape == (0, trunk.feature_dim)


def test_features_carry_no_graph_but_can_be_trained_on() -> None:
    features = calibrated()(noise(3))
    assert not features.requires_grad
    layer = torch.nn.Linear(features.shape[1], 1)
    layer(features).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("images", [torch.zeros(0, 1, 12, 12), torch.zeros(3, 1, 12, 12)])
def test_images_that_say_nothing_cannot_calibrate(images: torch.Tensor) -> None:
    trunk = fit_whitened(noise(20), CONFIG, seed=0)
    trunk.offset_K.zero_()
    with pytest.raises(MalformedDataset):
        calibrate(trunk, images)


@pytest.mark.parametrize("shape", [(1, 12, 12), (2, 3, 12, 12), (2, 1, 12, 13)])
def test_images_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    trunk = calibrated()
    for use in (trunk, lambda images: calibrate(trunk, images)):
        with pytest.raises(ShapeMismatch):
            use(torch.zeros(shape))


@pytest.mark.parametrize("count", [0, 1, 300])
def test_features_of_raw_images_are_those_of_prepared_ones(count: int) -> None:
    trunk = calibrated(3)
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 7)).astype(np.uint8)
    features = features_of(trunk, images)
    assert features.shape == (count, trunk.feature_dim)
    torch.testing.assert_close(features, trunk(prepare_images(images, 3, 12)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whitened_feature_is_the_equation_in_plain_loops(channels: int) -> None:
    """One cell (pool 1) over a patch as large as the response window, written without any convolution."""
    config = WhitenedConfig(num_patches=2, patch_px=3, pool=1)
    images = noise(8, channels, pixels=4)
    trunk = fit_whitened(images, config, seed=3)
    image = images[0].tolist()
    totals = [0.0] * 4
    for y in range(4):
        for x in range(4):
            window = [
                image[c][i][j] if 0 <= i < 4 and 0 <= j < 4 else 0.0
                for c in range(channels)
                for i in range(y - 1, y + 2)
                for j in range(x - 1, x + 2)
            ]
            mean = sum(window) / len(window)
            contrast = math.sqrt(sum((value - mean) ** 2 for value in window) / len(window) + 0.01)
            for k in range(2):
                kernel = trunk.filters_KCPP[k].flatten().tolist()
                products = sum(f * (v - mean) / contrast for f, v in zip(kernel, window, strict=True))
                response = products - trunk.offset_K[k].item()
                totals[k] += max(0.0, response - trunk.threshold_K[k].item())
                totals[k + 2] += max(0.0, -response - trunk.threshold_K[k].item())
    expected = [total / 16 for total in totals]
    assert trunk.section(images[:1])[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) > 0


def test_thresholds_are_half_the_deviation_of_the_responses() -> None:
    images = noise(300)
    trunk = fit_whitened(images, CONFIG, seed=0)
    responses_KN = trunk.responses(images).transpose(0, 1).flatten(start_dim=1).double()
    torch.testing.assert_close(trunk.threshold_K, 0.5 * responses_KN.std(dim=1).float(), rtol=1e-3, atol=0)


def test_whitening_makes_strongly_correlated_pixels_count_alike() -> None:
    """Smooth images: plain patches respond almost alike to everything, whitened ones do not."""
    smooth = torch.nn.functional.interpolate(noise(50, pixels=4), (12, 12), mode="bilinear")
    trunk = fit_whitened(smooth, WhitenedConfig(num_patches=12, patch_px=4, pool=1), seed=0)
    responses_KN = trunk.responses(smooth)[:, :, 4:8, 4:8].transpose(0, 1).flatten(start_dim=1)
    correlation_KK = torch.corrcoef(responses_KN) - torch.eye(12)
    assert correlation_KK.abs().mean() < 0.35


@pytest.mark.parametrize("amount", [0.5, 2.0])
def test_responses_hardly_depend_on_brightness(amount: float) -> None:
    trunk = fit_whitened(noise(20), CONFIG, seed=0)
    inside = (..., slice(4, 8), slice(4, 8))
    images = noise(4, seed=2) * 0.4
    torch.testing.assert_close(
        trunk.responses(images)[inside], trunk.responses(images + amount)[inside], atol=2e-3, rtol=1e-3
    )


def test_a_trunk_depends_on_its_seed_and_on_nothing_else() -> None:
    before = torch.get_rng_state()
    first = trunk_to_bytes(fit_whitened(noise(20), CONFIG, seed=0))
    assert first == trunk_to_bytes(fit_whitened(noise(20), CONFIG, seed=0))
    assert first != trunk_to_bytes(fit_whitened(noise(20), CONFIG, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("images", [torch.full((9, 1, 12, 12), 0.5), torch.zeros(0, 1, 12, 12)])
def test_blank_images_have_no_patches(images: torch.Tensor) -> None:
    with pytest.raises(MalformedDataset):
        fit_whitened(images, CONFIG, seed=0)


@pytest.mark.parametrize("shape", [(9, 1, 12, 10), (9, 2, 12, 12), (9, 1, 3, 3), (9, 12, 12)])
def test_images_no_patch_fits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        fit_whitened(torch.rand(shape), CONFIG, seed=0)


@pytest.mark.parametrize("change", [{"num_patches": 0}, {"patch_px": 1}, {"pool": 17}, {"pool": True}])
def test_settings_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(SettingOutOfRange) as caught:
        WhitenedConfig(**asdict(CONFIG) | change)
    assert caught.value.name in change


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(0, 2**20))
def test_a_trunk_from_bytes_gives_bit_identical_features(
    num_patches: int, patch_px: int, pool: int, channels: int, seed: int
) -> None:
    config = WhitenedConfig(num_patches=num_patches, patch_px=patch_px, pool=pool)
    images = noise(4, channels, pixels=8, seed=seed)
    trunk = fit_whitened(images, config, seed=seed)
    calibrate(trunk, images)
    data = trunk_to_bytes(trunk)
    again = trunk_from_bytes(data)
    assert again.feature_dim == 2 * num_patches * pool**2
    assert torch.equal(again(images), trunk(images))
    assert trunk_to_bytes(again) == data


def reheaded(trunk: Trunk, *, header: dict[str, object] | None = None, **tensors: torch.Tensor) -> bytes:
    config = {"kind": trunk.kind, "config": trunk.to_config()} if header is None else header
    return tensors_to_bytes(trunk.state_dict() | tensors, config)


FORM = calibrated().to_config()


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"kind": "whitened"},
        {"kind": "whitened", "config": []},
        {"kind": 3, "config": FORM},
        {"kind": "resnet", "config": FORM},
        {"kind": "whitened", "config": FORM | {"extra": 1}},
        {"kind": "whitened", "config": FORM | {"pool": 0}},
        {"kind": "whitened", "config": FORM | {"pool": "2"}},
        {"kind": "whitened", "config": FORM | {"num_patches": 10**9}},
        {"kind": "whitened", "config": FORM | {"input_channels": 2}},
        {"kind": "whitened", "config": FORM | {"input_pixels": 10**6}},
        {"kind": "whitened", "config": FORM | {"input_pixels": 3}},
        {"kind": "efficientnet-lite0", "config": {"tap": "Z9", "input_pixels": 64}},
        {"kind": "efficientnet-lite0", "config": {"tap": ["B4"], "input_pixels": 64}},
        {"kind": "efficientnet-lite0", "config": {"tap": "B4", "input_pixels": 1}},
        {"kind": "efficientnet-lite0", "config": {"tap": "B4"}},
    ],
)
def test_a_form_that_is_not_ours_is_refused(header: dict[str, object]) -> None:
    with pytest.raises(UnknownTrunk):
        trunk_from_bytes(reheaded(calibrated(), header=header))


def test_weights_that_do_not_fit_the_form_are_refused() -> None:
    trunk = calibrated()
    for data in (
        b"garbage",
        trunk_to_bytes(trunk)[:-1],
        reheaded(trunk, filters_KCPP=torch.zeros(5, 1, 4, 5)),
        reheaded(trunk, extra=torch.zeros(1)),
        reheaded(trunk, deviation_D=torch.zeros(trunk.feature_dim)),
        reheaded(trunk, deviation_D=-trunk.deviation_D),
        reheaded(trunk, header={"kind": "whitened", "config": FORM | {"pool": 3}}),
        reheaded(trunk, header={"kind": "efficientnet-lite0", "config": {"tap": "B4", "input_pixels": 64}}),
    ):
        with pytest.raises(CorruptWeights):
            trunk_from_bytes(data)


def test_a_trunk_s_bytes_hold_what_makes_a_feature_and_no_image() -> None:
    assert set(load(trunk_to_bytes(calibrated()))) == {
        "deviation_D",
        "filters_KCPP",
        "mean_D",
        "offset_K",
        "threshold_K",
    }


def test_patches_of_two_digits_separate_all_ten() -> None:
    """By ridge regression on a trunk that saw a third of the zeros and ones and no other digit."""
    train, test = load_named("digits")
    first = prepare_images(train.of_classes({"0", "1"}).shard(3, seed=0)[0].images, 1, 32)
    trunk = fit_whitened(first, WhitenedConfig(num_patches=16, patch_px=6, pool=3), seed=0)
    calibrate(trunk, first)
    assert trunk.feature_dim == 288

    def psi(images: np.ndarray) -> torch.Tensor:
        features = features_of(trunk, images).double()
        return torch.cat([features, torch.ones(len(features), 1)], dim=1)

    design, targets = psi(train.images), torch.eye(10).double()[class_columns(train.labels, train.classes)]
    gram = design.T @ design
    weights = torch.linalg.solve(gram + 1e-4 * gram.trace() / 288 * torch.eye(289), design.T @ targets)
    predicted = (psi(test.images) @ weights).argmax(dim=1)
    accuracy = (predicted == class_columns(test.labels, test.classes)).double().mean().item()
    assert accuracy >= 0.975
