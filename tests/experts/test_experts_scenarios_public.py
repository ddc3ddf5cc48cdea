"""The proposal's scenarios on their public data sets: what is in which task, from files in the sets' own layouts."""

from pathlib import Path

import numpy as np
import pytest
from data_layouts import CIFAR_NAMES, write_cifar_python, write_decathlon, write_domainnet, write_office_home

from experts.data.dataset import ImageDataset
from experts.data.decathlon import DECATHLON_SETS
from experts.data.domains import DOMAINNET_DOMAINS, OFFICE_HOME_DOMAINS
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.data.image_files import ReadingConfig
from experts.data.named import load_named
from experts.errors import MalformedDataset, SettingOutOfRange
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.permuted import permuted_fashion_mnist, permuted_images
from experts.evaluation.scenarios.registry import make_scenario
from experts.evaluation.scenarios.split import Parts


def from_files(folder: Path, name: str, order: int = 0) -> Scenario:
    return make_scenario(name, lambda part: load_named(part, folder, ReadingConfig(pixels=4)), order=order)


def test_split_cifar_100_is_five_tasks_of_twenty_classes(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, [*range(100), 0], range(100))
    scenario = from_files(tmp_path, "split-cifar-100")
    assert scenario.kind == "class-incremental"
    assert [task.classes for task in scenario.tasks] == [CIFAR_NAMES[i : i + 20] for i in range(0, 100, 20)]
    assert [(len(task.train), len(task.test)) for task in scenario.tasks] == [(21, 20)] + [(20, 20)] * 4
    other = from_files(tmp_path, "split-cifar-100", order=1)
    assert other.classes == scenario.classes
    assert [set(task.classes) for task in other.tasks] != [set(task.classes) for task in scenario.tasks]
    assert other.digest() == from_files(tmp_path, "split-cifar-100", order=1).digest()


def test_too_few_classes_are_not_split_into_something_else(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, range(99), range(99))
    with pytest.raises(MalformedDataset, match="99 classes, where 5 tasks of 20 are made"):
        from_files(tmp_path, "split-cifar-100")


def thousand(images_per_class: int) -> ImageDataset:
    labels = tuple(f"n{number:08d}" for number in range(1000) for _ in range(images_per_class))
    images = np.arange(len(labels) * 3, dtype=np.int64).astype(np.uint8).reshape(-1, 1, 1, 3)
    return ImageDataset(images, labels)


def test_split_imagenet_is_ten_tasks_of_a_hundred_classes() -> None:
    parts = thousand(2), thousand(1)
    scenario = make_scenario("split-imagenet", {"imagenet": parts}.__getitem__)
    assert scenario.kind == "class-incremental"
    assert [len(task.classes) for task in scenario.tasks] == [100] * 10
    assert [(len(task.train), len(task.test)) for task in scenario.tasks] == [(200, 100)] * 10
    assert len(scenario.classes) == 1000
    # In the order of their names a task's images follow one another, and are not copied from where they are mapped.
    assert scenario.tasks[3].train.labels == parts[0].labels[600:800]


def test_domainnet_is_six_domains_with_the_classes_of_all(tmp_path: Path) -> None:
    write_domainnet(tmp_path)
    # As in the real lists, one class has no training image in one domain.
    listed = tmp_path / "painting_train.txt"
    listed.write_text("".join(line for line in listed.read_text().splitlines(keepends=True) if "zigzag" not in line))
    scenario = from_files(tmp_path, "domainnet")
    assert scenario.kind == "domain-incremental"
    assert tuple(task.name for task in scenario.tasks) == DOMAINNET_DOMAINS
    assert {task.classes for task in scenario.tasks} == {("aircraft_carrier", "zigzag")}
    assert [len(task.train) for task in scenario.tasks] == [4, 4, 2, 4, 4, 4]
    other = from_files(tmp_path, "domainnet", order=2)
    assert sorted(task.name for task in other.tasks) == list(DOMAINNET_DOMAINS)
    assert tuple(task.name for task in other.tasks) != DOMAINNET_DOMAINS


def test_office_home_is_four_domains(tmp_path: Path) -> None:
    write_office_home(tmp_path)
    scenario = from_files(tmp_path, "office-home")
    assert (scenario.kind, scenario.classes) == ("domain-incremental", ("Alarm_Clock", "TV"))
    assert tuple(task.name for task in scenario.tasks) == OFFICE_HOME_DOMAINS
    assert {(len(task.train), len(task.test)) for task in scenario.tasks} == {(8, 2)}


def test_parts_of_one_folder_have_caches_of_their_own(tmp_path: Path) -> None:
    write_office_home(tmp_path / "data")
    read: list[str] = []
    reading = ReadingConfig(
        pixels=4, cache=tmp_path / "cache", on_progress=lambda progress: read.append(progress.source)
    )
    first = load_named("office-home/Art", tmp_path / "data", reading)
    again = load_named("office-home/Art", tmp_path / "data", reading)
    assert read == ["office-home Art train", "office-home Art test"]
    for part, same in zip(first, again, strict=True):
        assert np.array_equal(part.images, same.images)


def test_the_decathlon_is_ten_tasks_that_share_no_class(tmp_path: Path) -> None:
    write_decathlon(tmp_path)
    scenario = from_files(tmp_path, "visual-decathlon")
    assert scenario.kind == "task-incremental"
    assert tuple(task.name for task in scenario.tasks) == DECATHLON_SETS
    assert all(task.classes == (f"{task.name}/a", f"{task.name}/b") for task in scenario.tasks)
    assert len(scenario.classes) == 20
    assert scenario.allowed(9, 0) == ("imagenet12/a", "imagenet12/b")


def fashion(per_class: int, seed: int) -> ImageDataset:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (10 * per_class, 28, 28), dtype=np.uint8)
    return ImageDataset(images, tuple(FASHION_MNIST_CLASSES[row % 10] for row in range(len(images))))


FASHION: Parts = fashion(12, 0), fashion(2, 1)


def test_permuted_domains_have_the_same_pixels_in_an_order_of_their_own() -> None:
    scenario = permuted_fashion_mnist(FASHION, images_per_domain=20)
    assert (scenario.kind, len(scenario.tasks)) == ("domain-incremental", 5)
    assert np.array_equal(scenario.tasks[0].test.images, FASHION[1].images)
    assert np.array_equal(scenario.tasks[0].train.images, FASHION[0].images[:20])
    flat = [task.test.images.reshape(20, -1) for task in scenario.tasks]
    for number, domain in enumerate(flat):
        assert np.array_equal(np.sort(domain, axis=1), np.sort(flat[0], axis=1))
        assert all(not np.array_equal(domain, other) for other in flat[:number])
    # One permutation for all images of a domain, training and test.
    same = permuted_fashion_mnist((FASHION[1], FASHION[1]), images_per_domain=20)
    assert all(np.array_equal(task.train.images, task.test.images) for task in same.tasks)


def test_a_permutation_says_where_each_pixel_comes_from() -> None:
    images = np.array([[[5, 6], [7, 8]]], np.uint8)
    assert permuted_images(images, np.array([3, 0, 2, 1])).tolist() == [[[8, 5], [7, 6]]]


def test_another_order_permutes_otherwise_and_the_same_one_never() -> None:
    first, again, other = (permuted_fashion_mnist(FASHION, order=order, images_per_domain=20) for order in (0, 0, 1))
    assert first.digest() == again.digest()
    assert not np.array_equal(first.tasks[1].test.images, other.tasks[1].test.images)
    assert np.array_equal(other.tasks[0].test.images, FASHION[1].images)
    # Figures of different machines are comparable only if this never moves.
    ramp = ImageDataset(np.arange(16, dtype=np.uint8).reshape(1, 4, 4), (FASHION_MNIST_CLASSES[0],))
    small = permuted_fashion_mnist((ramp, ramp), num_domains=2, images_per_domain=1)
    assert small.tasks[1].test.images.ravel().tolist() == [1, 8, 6, 7, 2, 11, 0, 3, 12, 15, 10, 5, 14, 13, 4, 9]


def test_permuted_domains_need_a_domain_and_enough_images() -> None:
    with pytest.raises(SettingOutOfRange):
        permuted_fashion_mnist(FASHION, num_domains=0)
    with pytest.raises(SettingOutOfRange):
        permuted_fashion_mnist(FASHION, images_per_domain=121)
