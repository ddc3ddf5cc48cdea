"""Features kept on disk: those of the trunk, computed once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experts.evaluation.features import FeatureStore
from experts.trunk.base import calibrate, features_of
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, WhitenedTrunk, fit_whitened

IMAGES = np.random.default_rng(0).integers(0, 256, size=(40, 12, 12), dtype=np.uint8)


@pytest.fixture
def trunk() -> WhitenedTrunk:
    prepared = prepare_images(IMAGES, 1, 16)
    made = fit_whitened(prepared, WhitenedConfig(num_patches=4), seed=0)
    calibrate(made, prepared)
    return made


def _count_runs(trunk: WhitenedTrunk, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of each batch that the section is asked for."""
    batches: list[int] = []
    section = WhitenedTrunk.section

    def counted(self: WhitenedTrunk, images_BCHW: torch.Tensor) -> torch.Tensor:
        batches.append(len(images_BCHW))
        return section(self, images_BCHW)

    monkeypatch.setattr(WhitenedTrunk, "section", counted)
    return batches


def test_are_the_trunk_s_and_are_computed_once(
    tmp_path: Path, trunk: WhitenedTrunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features_of(trunk, IMAGES)
    batches = _count_runs(trunk, monkeypatch)
    assert torch.equal(FeatureStore(tmp_path).features(trunk, IMAGES), expected)
    assert sum(batches) == len(IMAGES)
    assert torch.equal(FeatureStore(tmp_path).features(trunk, IMAGES), expected)
    assert sum(batches) == len(IMAGES)


def test_another_calibration_shares_them_and_is_applied(
    tmp_path: Path, trunk: WhitenedTrunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore(tmp_path).features(trunk, IMAGES)
    calibrate(trunk, prepare_images(IMAGES[:7], 1, 16))
    expected = features_of(trunk, IMAGES)
    batches = _count_runs(trunk, monkeypatch)
    assert torch.equal(FeatureStore(tmp_path).features(trunk, IMAGES), expected)
    assert batches == []


def test_other_images_and_other_weights_have_their_own(tmp_path: Path, trunk: WhitenedTrunk) -> None:
    store = FeatureStore(tmp_path)
    first = store.features(trunk, IMAGES)
    assert torch.equal(store.features(trunk, IMAGES[::-1].copy()), first.flip(0))
    trunk.filters_KCPP.mul_(-2.0)
    assert torch.equal(store.features(trunk, IMAGES), features_of(trunk, IMAGES))


def test_a_damaged_file_is_computed_again(tmp_path: Path, trunk: WhitenedTrunk) -> None:
    expected = FeatureStore(tmp_path).features(trunk, IMAGES)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert torch.equal(FeatureStore(tmp_path).features(trunk, IMAGES), expected)
    assert bytes(data) != path.read_bytes()
