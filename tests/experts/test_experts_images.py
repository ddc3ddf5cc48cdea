"""Raw pixels made ready for a trunk."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import MalformedDataset
from experts.trunk.images import prepare_images


def bilinear(image: np.ndarray, pixels: int) -> list[list[float]]:
    """Bilinear enlargement in plain loops: pixel centres lie at (i + 1/2) / size, edges repeat."""

    def at(position: float, length: int) -> tuple[int, int, float]:
        position = max(position, 0.0)
        low = min(int(position), length - 1)
        return low, min(low + 1, length - 1), position - low

    height, width = image.shape
    result = []
    for i in range(pixels):
        top, bottom, down = at((i + 0.5) * height / pixels - 0.5, height)
        row = []
        for j in range(pixels):
            left, right, across = at((j + 0.5) * width / pixels - 0.5, width)
            upper = image[top, left] * (1 - across) + image[top, right] * across
            lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
            row.append((upper * (1 - down) + lower * down) / 255)
        result.append(row)
    return result


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(2, 6), st.integers(0, 10), st.integers(0, 1000))
def test_enlarging_is_bilinear(size: int, more: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8)
    prepared = prepare_images(image[None], 1, size + more)
    expected = torch.tensor(bilinear(image.astype(float), size + more))
    torch.testing.assert_close(prepared[0, 0], expected.float(), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(
    st.integers(0, 3),
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from([1, 3]),
    st.integers(1, 9),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_image_becomes_what_the_trunk_takes(
    count: int, last: tuple[int, ...], channels: int, pixels: int, size: tuple[int, int]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, *size, *last)).astype(np.uint8)
    prepared = prepare_images(images, channels, pixels)
    assert prepared.shape == (count, channels, pixels, pixels)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous()
    assert count == 0 or (prepared.min() >= 0 and prepared.max() <= 1)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    image = np.zeros((1, 8, 8), np.uint8)
    image[0, ::2] = 255
    assert prepare_images(image, 1, 1).item() == pytest.approx(0.5, abs=0.02)


def test_grey_is_repeated_and_colour_becomes_luma() -> None:
    grey = np.array([[[0, 255]]], np.uint8).reshape(1, 1, 2)
    assert torch.equal(prepare_images(grey, 3, 4)[0, 0], prepare_images(grey, 1, 4)[0, 0])
    colour = np.array([255, 0, 51], np.uint8).reshape(1, 1, 1, 3)
    assert prepare_images(colour, 1, 1).item() == pytest.approx(0.299 + 0.114 * 0.2)
    assert prepare_images(colour, 3, 1).flatten().tolist() == pytest.approx([1, 0, 0.2])


def test_the_given_pixels_are_not_touched() -> None:
    image = np.full((1, 2, 2), 7, np.uint8)
    prepare_images(image, 1, 2).zero_()
    assert (image == 7).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 2, 2)),
        np.zeros((2, 2), np.uint8),
        np.zeros((1, 2, 2, 2), np.uint8),
        np.zeros((1, 2, 2, 1, 1), np.uint8),
        np.zeros((1, 0, 2), np.uint8),
        np.zeros((1, 2, 2, 0), np.uint8),
        [[[0]]],
    ],
)
def test_what_is_no_batch_of_images_is_refused(images: Any) -> None:
    with pytest.raises(MalformedDataset):
        prepare_images(images, 1, 4)
