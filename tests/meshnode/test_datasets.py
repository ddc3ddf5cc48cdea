"""Where the data sets are that a user has to get, and what is said of one that is not there."""

from pathlib import Path

import numpy as np
import platformdirs
import pytest
from data_layouts import write_cifar_python, write_office_home

from experts.data.homes import HOMES
from experts.data.named import DATASET_NAMES
from meshnode.datasets import find_dataset, load_dataset
from meshnode.errors import ResourceAbsent


@pytest.fixture(autouse=True)
def of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of the user's who runs the test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [name for name in DATASET_NAMES if name.partition("/")[0] in HOMES])
def test_a_set_that_is_not_here_says_where_it_is_had_and_where_it_goes(tmp_path: Path, name: str) -> None:
    whole = name.partition("/")[0]
    with pytest.raises(ResourceAbsent) as caught:
        find_dataset(name)
    assert str(platformdirs.user_data_path("modulemesh") / "datasets" / whole) in caught.value.message
    assert HOMES[whole].url in str(caught.value.hint)
    with pytest.raises(ResourceAbsent) as caught:
        find_dataset(name, tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere" / whole) in caught.value.message


def test_sets_lie_in_folders_of_their_names(tmp_path: Path) -> None:
    own = tmp_path / "share" / "modulemesh" / "datasets"
    write_cifar_python(own / "cifar-100", [3], [4])
    assert find_dataset("cifar-100") == own / "cifar-100"
    assert [part.labels for part in load_dataset("cifar-100")] == [("class03",), ("class04",)]


def test_image_files_are_kept_in_the_cache(tmp_path: Path) -> None:
    write_office_home(tmp_path / "data" / "office-home")
    train, test = load_dataset("office-home/Art", tmp_path / "data", pixels=8, images_per_class=3)
    assert (train.images.shape, len(test)) == ((6, 8, 8, 3), 2)
    assert isinstance(train.images, np.memmap)
    assert {path.suffix for path in (tmp_path / "cache" / "modulemesh" / "images").iterdir()} == {
        ".images",
        ".lock",
        ".stamps",
    }


def test_a_set_that_nobody_knows_is_answered_with_those_there_are() -> None:
    with pytest.raises(ResourceAbsent) as caught:
        find_dataset("mnist")
    assert "split" not in str(caught.value.hint)
    assert "imagenet" in str(caught.value.hint)
