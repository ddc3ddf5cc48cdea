"""Split scenarios: the classes of one data set, some at a time (Zenke et al. 2017, arXiv:1703.04200, "Split MNIST")."""

import dataclasses
from collections.abc import Sequence

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.errors import MalformedDataset, SettingOutOfRange
from experts.evaluation.scenarios.base import Scenario, ScenarioTask, shuffled

__all__ = [
    "DIGITS",
    "Parts",
    "split_by_class",
    "split_cifar_100",
    "split_digits",
    "split_fashion_mnist",
    "split_imagenet",
    "split_mnist_5k",
]

Parts = tuple[ImageDataset, ImageDataset]
"""Training and test part of a data set, as `load_named` gives them."""

DIGITS = tuple("0123456789")
"""Class names of the data sets of handwritten digits, in label order."""


def split_by_class(name: str, parts: Parts, classes: Sequence[str], *, classes_per_task: int = 2) -> Scenario:
    """A class-incremental scenario of disjoint tasks.

    Args:
        name: The scenario's.
        parts: Images of these and perhaps other classes.
        classes: In the order in which they come.
        classes_per_task: At least 1; the last task has what remains.

    Raises:
        SettingOutOfRange: If ``classes_per_task`` is below 1.
        UnknownClasses: If a class has no image in one of the parts.
    """
    if classes_per_task < 1:
        raise SettingOutOfRange("classes_per_task", classes_per_task, allowed="at least 1")
    train, test = parts
    groups = [tuple(classes[start : start + classes_per_task]) for start in range(0, len(classes), classes_per_task)]
    tasks = tuple(
        ScenarioTask(name=", ".join(group), train=train.of_classes(group), test=test.of_classes(group), classes=group)
        for group in groups
    )
    return Scenario(name=name, kind="class-incremental", tasks=tasks)


def split_fashion_mnist(parts: Parts, *, order: int = 0, train_images: int | None = 20_000) -> Scenario:
    """Five tasks of two classes.

    Args:
        parts: Fashion-MNIST's.
        order: Of the classes: 0 is label order, another number another one.
        train_images: How many of the first training images are used; None for all.
    """
    train = parts[0] if train_images is None else parts[0].select(range(min(train_images, len(parts[0]))))
    classes = _ordered(FASHION_MNIST_CLASSES, order, "split-fashion-mnist")
    return split_by_class("split-fashion-mnist", (train, parts[1]), classes)


def split_mnist_5k(parts: Parts, *, order: int = 0) -> Scenario:
    """Five tasks of two digits out of MNIST-5k; ``order`` as in `split_fashion_mnist`."""
    return split_by_class("split-mnist-5k", parts, _ordered(DIGITS, order, "split-mnist-5k"))


def split_digits(parts: Parts, *, order: int = 0) -> Scenario:
    """Five tasks of two of scikit-learn's digits; ``order`` as in `split_fashion_mnist`."""
    return split_by_class("split-digits", parts, _ordered(DIGITS, order, "split-digits"))


def split_cifar_100(parts: Parts, *, order: int = 0) -> Scenario:
    """Five tasks of twenty classes.

    Args:
        parts: CIFAR-100's.
        order: Of the classes: 0 is that of their names, which is label order, another number another one.
    Raises: MalformedDataset: If there are not 100 classes.
    """
    return _split_evenly("split-cifar-100", parts, order, tasks=5, classes_per_task=20)


def split_imagenet(parts: Parts, *, order: int = 0) -> Scenario:
    """Ten tasks of a hundred classes; ``order`` as in `split_cifar_100`.

    Raises: MalformedDataset: If there are not 1,000 classes.
    """
    return _split_evenly("split-imagenet", parts, order, tasks=10, classes_per_task=100)


def _split_evenly(name: str, parts: Parts, order: int, *, tasks: int, classes_per_task: int) -> Scenario:
    classes = parts[0].classes
    if len(classes) != tasks * classes_per_task:
        reason = (
            f"{len(classes)} classes, where {tasks} tasks of {classes_per_task} are made; a scenario file splits less"
        )
        raise MalformedDataset(f"scenario {name!r}", reason=reason)
    scenario = split_by_class(name, parts, _ordered(classes, order, name), classes_per_task=classes_per_task)
    # Twenty names or a hundred are no name.
    numbered = (dataclasses.replace(task, name=f"task {i + 1}") for i, task in enumerate(scenario.tasks))
    return dataclasses.replace(scenario, tasks=tuple(numbered))


def _ordered(classes: Sequence[str], order: int, scenario: str) -> tuple[str, ...]:
    return tuple(classes[position] for position in shuffled(classes, order, f"{scenario}/classes"))
