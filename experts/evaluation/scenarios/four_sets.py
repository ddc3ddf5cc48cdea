"""Four data sets one after the other, task-incremental: what a mesh of unrelated owners looks like.

Fashion-MNIST's classes 0 to 4, its classes 5 to 9, MNIST-5k, scikit-learn's digits. Both sets of digits name their
classes "0" to "9" and mean different images by it, so every class is named with its set.
"""

import numpy as np

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.evaluation.scenarios.base import Scenario, ScenarioTask, shuffled
from experts.evaluation.scenarios.split import DIGITS, Parts
from experts.trunk.images import prepare_images

__all__ = ["four_sets"]

_PIXELS = 28
"""Of Fashion-MNIST and MNIST; the digits are enlarged to it, since the images of a scenario have one size."""


def four_sets(
    fashion_mnist: Parts, mnist_5k: Parts, digits: Parts, *, order: int = 0, train_images: int | None = 20_000
) -> Scenario:
    """Four tasks; which one an image is from is told when it is tested.

    Args:
        fashion_mnist: Makes two of the tasks.
        mnist_5k: One task.
        digits: One task.
        order: Of the tasks: 0 as above, another number another one.
        train_images: How many of Fashion-MNIST's first training images are used; None for all.
    """
    train = fashion_mnist[0]
    fashion = (train if train_images is None else train.select(range(min(train_images, len(train)))), fashion_mnist[1])
    tasks = (
        _task("fashion-mnist", "Fashion-MNIST 0 to 4", fashion, FASHION_MNIST_CLASSES[:5]),
        _task("fashion-mnist", "Fashion-MNIST 5 to 9", fashion, FASHION_MNIST_CLASSES[5:]),
        _task("mnist-5k", "MNIST-5k", mnist_5k, DIGITS),
        _task("digits", "digits", digits, DIGITS),
    )
    positions = shuffled([task.name for task in tasks], order, "four-sets/tasks")
    return Scenario(name="four-sets", kind="task-incremental", tasks=tuple(tasks[position] for position in positions))


def _task(prefix: str, name: str, parts: Parts, classes: tuple[str, ...]) -> ScenarioTask:
    train, test = (_named_with(prefix, part.of_classes(classes)) for part in parts)
    return ScenarioTask(name=name, train=train, test=test, classes=tuple(f"{prefix}/{label}" for label in classes))


def _named_with(prefix: str, part: ImageDataset) -> ImageDataset:
    images = part.images
    if images.shape[1:] != (_PIXELS, _PIXELS):
        enlarged_N1HW = prepare_images(images, 1, _PIXELS)
        images = (255 * enlarged_N1HW[:, 0]).round().numpy().astype(np.uint8)
    return ImageDataset(images, tuple(f"{prefix}/{label}" for label in part.labels))
