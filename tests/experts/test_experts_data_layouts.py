"""ImageNet, DomainNet, Office-Home and the Visual Decathlon as they lie on disk, and what is said of what does not."""

import json
from pathlib import Path

import pytest
from data_layouts import (
    SYNSETS,
    VAL_ORDER,
    write_decathlon,
    write_devkit,
    write_domainnet,
    write_image,
    write_imagenet_train,
    write_imagenet_val_flat,
    write_imagenet_val_folders,
    write_kaggle,
    write_office_home,
)

from experts.data.dataset import ImageDataset
from experts.data.homes import HOMES
from experts.data.image_files import ReadingConfig
from experts.data.named import DATASET_NAMES, load_named
from experts.errors import DatasetAbsent, MalformedDataset

READING = ReadingConfig(pixels=4)


def shown(images: ImageDataset) -> list[tuple[str, int]]:
    """Labels and shades; JPEG may miss a shade by one or two."""
    return [(label, int(image.mean())) for label, image in zip(images.labels, images.images, strict=True)]


def near(images: ImageDataset, expected: list[tuple[str, int]]) -> bool:
    found = shown(images)
    return [label for label, _ in found] == [label for label, _ in expected] and all(
        abs(shade - other) <= 2 for (_, shade), (_, other) in zip(found, expected, strict=True)
    )


TRAIN = [(synset, shade) for synset, shade in zip(SYNSETS, (10, 20, 30), strict=True) for _ in range(2)]
FLAT = sorted((SYNSETS[index], 100 + number) for number, index in enumerate(VAL_ORDER))


def test_imagenet_with_validation_images_in_folders(tmp_path: Path) -> None:
    write_imagenet_train(tmp_path)
    write_imagenet_val_folders(tmp_path)
    train, val = load_named("imagenet", tmp_path, READING)
    assert near(train, TRAIN)
    assert near(val, list(zip(SYNSETS, (101, 102, 103), strict=True)))


def test_imagenet_with_flat_validation_images_and_the_devkit(tmp_path: Path) -> None:
    write_imagenet_train(tmp_path)
    write_imagenet_val_flat(tmp_path)
    write_devkit(tmp_path)
    train, val = load_named("imagenet", tmp_path, READING)
    assert near(train, TRAIN)
    assert near(val, FLAT)


def test_imagenet_as_kaggle_packs_it(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    train, val = load_named("imagenet", tmp_path, READING)
    assert near(train, TRAIN)
    assert near(val, FLAT)


def test_imagenet_that_is_not_all_there_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetAbsent, match=r"image-net\.org") as caught:
        load_named("imagenet", tmp_path, READING)
    assert caught.value.missing == str(tmp_path / "train")
    write_imagenet_train(tmp_path)
    with pytest.raises(DatasetAbsent, match="val"):
        load_named("imagenet", tmp_path, READING)
    write_imagenet_val_flat(tmp_path)
    with pytest.raises(DatasetAbsent, match=r"LOC_val_solution\.csv"):
        load_named("imagenet", tmp_path, READING)
    (write_devkit(tmp_path) / "meta.mat").unlink()
    with pytest.raises(DatasetAbsent, match=r"meta\.mat"):
        load_named("imagenet", tmp_path, READING)


def test_imagenet_in_tars_says_to_unpack_them(tmp_path: Path) -> None:
    write_imagenet_train(tmp_path)
    write_imagenet_val_folders(tmp_path)
    (tmp_path / "train" / "n02012849.tar").write_bytes(b"")
    with pytest.raises(MalformedDataset, match=r"n02012849\.tar is still packed"):
        load_named("imagenet", tmp_path, READING)


def test_imagenet_with_a_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    write_imagenet_train(tmp_path)
    write_imagenet_val_folders(tmp_path)
    write_image(tmp_path / "val" / "tench" / "1.JPEG", 0)
    with pytest.raises(MalformedDataset, match="'tench'"):
        load_named("imagenet", tmp_path, READING)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("1\n2\n5\n1\n", "line 3: '5' is not one of 3 classes"),
        ("1\n2\n4\n1\n", "line 3: '4'"),
        ("1\nx\n", "line 2"),
        ("1\n²\n", "line 2"),
        ("1\n2\n", r"no label for ILSVRC2012_val_00000003\.JPEG"),
        ("1\n2\n3\n1\n2\n", r"no ILSVRC2012_val_00000005\.JPEG"),
    ],
)
def test_imagenet_whose_ground_truth_does_not_fit_is_refused(tmp_path: Path, lines: str, match: str) -> None:
    write_imagenet_train(tmp_path)
    write_imagenet_val_flat(tmp_path)
    (write_devkit(tmp_path) / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    with pytest.raises(MalformedDataset, match=match):
        load_named("imagenet", tmp_path, READING)


def test_imagenet_with_a_damaged_table_of_synsets_is_refused(tmp_path: Path) -> None:
    write_imagenet_train(tmp_path)
    write_imagenet_val_flat(tmp_path)
    meta = write_devkit(tmp_path) / "meta.mat"
    whole = meta.read_bytes()
    for damaged in (b"", b"x" * 200, whole[: len(whole) // 2]):
        meta.write_bytes(damaged)
        with pytest.raises(MalformedDataset, match="synsets") as caught:
            load_named("imagenet", tmp_path, READING)
        assert caught.value.source == str(meta)


@pytest.mark.parametrize("line", ["ILSVRC2012_val_00000001", "x,n01440764 1 2 3 4", "ILSVRC2012_val_00000001,7"])
def test_imagenet_with_a_damaged_solution_names_the_line(tmp_path: Path, line: str) -> None:
    solution = write_kaggle(tmp_path)
    solution.write_text(f"ImageId,PredictionString\n{line}\n")
    with pytest.raises(MalformedDataset, match="line 2"):
        load_named("imagenet", tmp_path, READING)


def test_domainnet_by_its_lists(tmp_path: Path) -> None:
    write_domainnet(tmp_path)
    train, test = load_named("domainnet/real", tmp_path, READING)
    assert near(train, [("aircraft_carrier", 160)] * 2 + [("zigzag", 170)] * 2)
    assert near(test, [("aircraft_carrier", 160), ("zigzag", 170)])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("real/zigzag/real_344_000001.jpg 345", "class 345 where there are 345"),
        ("real/zigzag/real_344_000001.jpg 7", "zigzag is class 7 here and 344 above"),
        ("real/zigzag/real_344_000001.jpg", "line 5"),
        ("real/zigzag/real_344_000001.jpg -1", "line 5"),
        ("clipart/zigzag/real_344_000001.jpg 344", "line 5"),
        ("real/../secret.jpg 344", "line 5"),
        ("/etc/passwd 344", "line 5"),
        ("", "line 5"),
    ],
)
def test_domainnet_with_a_wrong_line_names_it(tmp_path: Path, line: str, match: str) -> None:
    write_domainnet(tmp_path)
    listed = tmp_path / "real_train.txt"
    listed.write_text(f"{listed.read_text()}{line}\n")
    with pytest.raises(MalformedDataset, match=match) as caught:
        load_named("domainnet/real", tmp_path, READING)
    assert caught.value.source == str(listed)


def test_domainnet_without_a_list_a_domain_or_an_image_names_it(tmp_path: Path) -> None:
    write_domainnet(tmp_path)
    (tmp_path / "real" / "zigzag" / "real_344_test0.jpg").unlink()
    with pytest.raises(MalformedDataset, match=r"real_344_test0\.jpg"):
        load_named("domainnet/real", tmp_path, READING)
    (tmp_path / "clipart").rename(tmp_path / "away")
    with pytest.raises(DatasetAbsent, match=r"clipart.*ai\.bu\.edu"):
        load_named("domainnet/clipart", tmp_path, READING)
    (tmp_path / "sketch_test.txt").unlink()
    with pytest.raises(DatasetAbsent, match=r"sketch_test\.txt"):
        load_named("domainnet/sketch", tmp_path, READING)


@pytest.mark.parametrize("spelling", ["Real World", "Real_World", "RealWorld"])
@pytest.mark.parametrize("inside", [False, True])
def test_office_home_is_split_the_same_everywhere(tmp_path: Path, spelling: str, inside: bool) -> None:
    folder = tmp_path / "OfficeHomeDataset_10072016" if inside else tmp_path
    write_office_home(folder)
    (folder / "Real World").rename(folder / spelling)
    train, test = load_named("office-home/Real World", tmp_path, READING)
    assert train.class_counts == {"Alarm_Clock": 4, "TV": 4}
    assert test.class_counts == {"Alarm_Clock": 1, "TV": 1}
    assert {*shown(train)} & {*shown(test)} == set()
    # Figures of different machines and versions are comparable only if this never moves.
    assert near(test, [("Alarm_Clock", 180), ("TV", 191)])


def test_office_home_without_a_domain_says_where_it_is_had(tmp_path: Path) -> None:
    with pytest.raises(DatasetAbsent, match=r"hemanthdv\.org"):
        load_named("office-home/Art", tmp_path, READING)


def test_the_decathlon_by_its_annotations(tmp_path: Path) -> None:
    write_decathlon(tmp_path, ["dtd", "svhn"])
    train, val = load_named("visual-decathlon/svhn", tmp_path, READING)
    assert near(train, [("svhn/a", 40), ("svhn/a", 40), ("svhn/b", 50), ("svhn/b", 50)])
    assert near(val, [("svhn/a", 40), ("svhn/b", 50)])
    assert load_named("visual-decathlon/dtd", tmp_path, READING)[0].classes == ("dtd/a", "dtd/b")


def test_categories_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_decathlon(tmp_path, ["dtd"])
    for part in ("train", "val"):
        path = tmp_path / "annotations" / f"dtd_{part}.json"
        path.write_text(path.read_text().replace('"name": "b"', '"name": "a"'))
    train, val = load_named("visual-decathlon/dtd", tmp_path, READING)
    assert train.classes == val.classes == ("dtd/a (10000001)", "dtd/a (10000002)")


@pytest.mark.parametrize(
    ("entry", "value", "match"),
    [
        ("annotations", [{"image_id": 10000010, "category_id": 10000003}], "category 10000003 is not listed"),
        ("annotations", [{"image_id": 1, "category_id": 10000001}], "image 1 or"),
        ("annotations", [], "no category for data/dtd/train/0001"),
        ("annotations", None, "COCO"),
        ("categories", [{"id": "x", "name": "a"}], "COCO"),
        ("images", [{"id": 10000010, "file_name": "data/dtd/train/../../x.jpg"}], "is not in data/dtd/train"),
        ("images", [{"id": 10000010, "file_name": "/etc/passwd"}], "is not in data/dtd/train"),
        ("images", [{"id": 10000010, "file_name": "data/dtd/val/0001/000000.jpg"}], "is not in data/dtd/train"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path: Path, entry: str, value: object, match: str) -> None:
    write_decathlon(tmp_path, ["dtd"])
    path = tmp_path / "annotations" / "dtd_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(MalformedDataset, match=match):
        load_named("visual-decathlon/dtd", tmp_path, READING)


def test_an_image_of_two_categories_is_refused(tmp_path: Path) -> None:
    write_decathlon(tmp_path, ["dtd"])
    path = tmp_path / "annotations" / "dtd_train.json"
    document = json.loads(path.read_text())
    document["annotations"].append(document["annotations"][0] | {"category_id": 10000002})
    path.write_text(json.dumps(document))
    with pytest.raises(MalformedDataset, match="two categories"):
        load_named("visual-decathlon/dtd", tmp_path, READING)
    path.write_text("{")
    with pytest.raises(MalformedDataset, match="COCO"):
        load_named("visual-decathlon/dtd", tmp_path, READING)


def test_the_decathlon_without_its_kit_or_its_images_says_where_they_are_had(tmp_path: Path) -> None:
    with pytest.raises(DatasetAbsent, match=r"dtd_train\.json.*robots\.ox\.ac\.uk"):
        load_named("visual-decathlon/dtd", tmp_path, READING)
    write_decathlon(tmp_path, ["dtd"])
    (tmp_path / "data" / "dtd").rename(tmp_path / "data" / "other")
    with pytest.raises(DatasetAbsent, match="data/dtd"):
        load_named("visual-decathlon/dtd", tmp_path, READING)


@pytest.mark.parametrize("name", [name for name in DATASET_NAMES if name.partition("/")[0] in HOMES])
def test_every_set_that_one_has_to_get_says_so_when_no_folder_is_given(name: str) -> None:
    home = HOMES[name.partition("/")[0]]
    with pytest.raises(DatasetAbsent) as caught:
        load_named(name)
    assert home.url in str(caught.value)
    assert home.size in str(caught.value)
