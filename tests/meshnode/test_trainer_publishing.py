"""What is published of a task: no class by few new images, and with noise no image twice."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from mesh_in_memory import MESH, digits, tiny_trunk

from experts.continual.privacy import PrivacyConfig
from experts.data.dataset import ImageDataset
from experts.errors import CorruptState
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.trainer.messages import PrivacyTerms
from meshnode.trainer.publishing import Publisher

ZEROS, ONES = digits("0"), digits("1")


def task(zeros: slice, ones: slice) -> ImageDataset:
    """Zeros and ones by their numbers."""
    first, second = ZEROS.select(range(200)[zeros]), ONES.select(range(200)[ones])
    return together(first, second)


def together(*parts: ImageDataset) -> ImageDataset:
    images = torch.cat([torch.from_numpy(part.images) for part in parts]).numpy()
    return ImageDataset(images, tuple(label for part in parts for label in part.labels))


def publisher(folder: Path, **terms: object) -> Publisher:
    """As after a restart."""
    return Publisher(folder / "published.msgpack", PrivacyTerms(**terms), MESH.fingerprint)  # type: ignore[arg-type]


def published(folder: Path, some: ImageDataset, name: str = "t", **terms: object) -> ClassStatistics | None:
    digest = str(hash((some.images.tobytes(), some.labels)))
    data = publisher(folder, **terms).publish(name, some, digest, features_of(tiny_trunk(), some.images))
    return None if data is None else ClassStatistics.from_bytes(data)


def exactly(some: ImageDataset) -> bytes:
    features = features_of(tiny_trunk(), some.images)
    return ClassStatistics.from_features(features, some.labels, fingerprint=MESH.fingerprint).to_bytes()


def test_a_task_of_enough_images_is_published_as_it_is(tmp_path: Path) -> None:
    some = task(slice(0, 30), slice(0, 20))
    for _ in range(2):  # and the same again after a restart
        found = published(tmp_path, some)
        assert found is not None
        assert found.to_bytes() == exactly(some)
    assert publisher(tmp_path).waiting == {}


def test_a_class_of_few_images_waits_and_leaves_no_trace_in_the_others(tmp_path: Path) -> None:
    found = published(tmp_path, task(slice(0, 30), slice(0, 9)))
    assert found is not None
    assert found.to_bytes() == exactly(task(slice(0, 30), slice(0, 0)))
    assert publisher(tmp_path).waiting == {"t": {"1": 9}}
    assert published(tmp_path, task(slice(0, 5), slice(0, 9)), name="u") is None


def test_a_few_images_more_wait_until_there_are_enough_of_them(tmp_path: Path) -> None:
    first = task(slice(0, 30), slice(0, 20))
    published(tmp_path, first)
    few = published(tmp_path, task(slice(0, 39), slice(0, 20)))
    assert few is not None
    assert few.to_bytes() == exactly(first)
    assert publisher(tmp_path).waiting == {"t": {"0": 9}}
    enough = task(slice(0, 40), slice(0, 20))
    many = published(tmp_path, enough)
    assert many is not None
    assert many.to_bytes() == exactly(enough)


def test_copies_of_one_image_are_not_many(tmp_path: Path) -> None:
    one = ONES.select([0] * 50)
    found = published(tmp_path, together(ZEROS.select(range(20)), one))
    assert found is not None
    assert found.classes == ("0",)


def test_while_a_few_are_gone_what_is_published_stays(tmp_path: Path) -> None:
    published(tmp_path, task(slice(0, 60), slice(0, 20)))
    assert published(tmp_path, task(slice(3, 60), slice(0, 20))) is None
    assert published(tmp_path, task(slice(3, 90), slice(0, 20))) is None, "new ones do not hide the three"
    assert publisher(tmp_path).waiting == {"t": {"0": 30}}
    later = task(slice(10, 90), slice(0, 20))
    found = published(tmp_path, later)
    assert found is not None
    assert found.to_bytes() == exactly(later)


def test_one_is_enough_where_the_settings_say_so_and_none_is_kept_back(tmp_path: Path) -> None:
    some = task(slice(0, 30), slice(0, 1))
    found = published(tmp_path, some, min_samples=1)
    assert found is not None
    assert found.to_bytes() == exactly(some)
    fewer = task(slice(1, 30), slice(0, 1))
    found = published(tmp_path, fewer, min_samples=1)
    assert found is not None
    assert found.to_bytes() == exactly(fewer)


def test_what_was_told_of_a_forgotten_task_is_forgotten_and_of_others_not(tmp_path: Path) -> None:
    published(tmp_path, task(slice(0, 30), slice(0, 5)))
    published(tmp_path, task(slice(30, 60), slice(5, 9)), name="u")
    publisher(tmp_path).forget("t")
    assert publisher(tmp_path).waiting == {"u": {"1": 4}}
    found = published(tmp_path, task(slice(0, 20), slice(0, 5)))
    assert found is not None, "nothing of it counts as published"


def test_a_damaged_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "published.msgpack").write_bytes(b"garbage")
    with pytest.raises(CorruptState):
        publisher(tmp_path)


# --- with noise ---

NOISE = {"epsilon": 1.0, "delta": 1e-5, "max_norm": 8.0, "min_samples": 1}


def test_noise_is_what_was_promised_and_is_drawn_once(tmp_path: Path) -> None:
    some = task(slice(0, 60), slice(0, 60))
    first = published(tmp_path, some, **NOISE)
    again = published(tmp_path, some, **NOISE)
    assert first is not None
    assert again is not None
    assert first.to_bytes() == again.to_bytes() != exactly(some)
    assert publisher(tmp_path).increments == 1
    sigma = PrivacyConfig(epsilon=1.0, delta=1e-5, num_increments=1, max_norm=8.0).sums_sigma
    off = [abs(first.counts[name] - Counter(some.labels)[name]) for name in first.classes]
    assert 0 < max(off) < 6 * sigma
    other = published(tmp_path.parent, some, **NOISE)
    assert other is not None
    assert other.to_bytes() != first.to_bytes(), "from a secret, and no seed of the settings"


def test_of_a_longer_file_only_what_is_new_is_noised_and_added(tmp_path: Path) -> None:
    published(tmp_path, task(slice(0, 60), slice(0, 60)), **{**NOISE, "epsilon": 900.0})
    found = published(tmp_path, task(slice(0, 90), slice(0, 60)), **{**NOISE, "epsilon": 900.0})
    assert found is not None
    assert publisher(tmp_path).increments == 2
    assert found.counts["0"] == pytest.approx(90, abs=5)
    same = published(tmp_path, task(slice(0, 90), slice(0, 60)), name="copy", **NOISE)
    assert same is None, "all of its images were told of already"
    assert publisher(tmp_path).increments == 2


def test_without_a_norm_in_the_spec_nothing_is_published_with_noise(tmp_path: Path) -> None:
    assert published(tmp_path, task(slice(0, 60), slice(0, 60)), **{**NOISE, "max_norm": None}) is None
    assert publisher(tmp_path).waiting == {"t": {"0": 60, "1": 60}}
    assert publisher(tmp_path).increments == 0


def test_features_are_clipped_to_the_specs_norm(tmp_path: Path) -> None:
    found = published(tmp_path, task(slice(0, 90), slice(0, 90)), **{**NOISE, "epsilon": 900.0, "max_norm": 0.5})
    assert found is not None
    assert math.isfinite(float(found.scatter.trace()))
    assert max(float(mean.norm()) for mean in found.means.values()) < 1.0
