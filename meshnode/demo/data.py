"""The demo's data: five tasks of two classes, dealt out to three nodes so that no two of them hold the same image.

Each task goes to two of the nodes, half of it to either, so that every expert gets two replicas, every node lacks some
experts, and no node could answer all classes alone.
"""

from dataclasses import dataclass
from pathlib import Path

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.data.named import load_named
from experts.data.npz import save_task
from meshnode.datasets import find_dataset

__all__ = ["NODE_NAMES", "NUM_TASKS", "DemoData", "load_demo_data"]

NODE_NAMES = ("ada", "ben", "cho")
NUM_TASKS = 5

LIMITS = {"digits": (None, None), "fashion-mnist": (10_000, 2_000)}
"""Training and test images taken from the front of each data set: what a demo can learn while somebody watches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoData:
    """What there is to learn, and by whom."""

    name: str
    tasks: tuple[tuple[str, ...], ...]
    """Class names of each task, in the order they arrive."""
    train: ImageDataset
    test: ImageDataset
    shards: tuple[dict[str, ImageDataset], ...]
    """For each task, what each of its two nodes gets, by node name."""

    def task_test(self, task: int) -> ImageDataset:
        """Test images of one task's classes."""
        return self.test.of_classes(self.tasks[task])

    def task_train(self, task: int) -> ImageDataset:
        """Training images of one task, of both nodes together."""
        return self.train.of_classes(self.tasks[task])

    def deliver(self, task: int, node: str, folder: Path) -> Path:
        """Write a node's share of a task into its data folder, as its owner would drop a file there."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"task-{task + 1}.npz"
        save_task(path, self.shards[task][node])
        return path


def load_demo_data(name: str, *, seed: int) -> DemoData:
    """Load a named data set and deal it out.

    Args:
        name: ``digits`` or ``fashion-mnist``.
        seed: Of which image goes to which of a task's two nodes.

    Raises:
        ResourceAbsent: The data set is neither here nor to be had.
    """
    train, test = load_named(name, find_dataset(name))
    num_train, num_test = LIMITS[name]
    train = train.select(range(min(num_train or len(train), len(train))))
    test = test.select(range(min(num_test or len(test), len(test))))
    classes = _in_label_order(name, train)
    tasks = tuple(classes[2 * task : 2 * task + 2] for task in range(NUM_TASKS))
    shards = []
    for task, names in enumerate(tasks):
        holders = (NODE_NAMES[task % 3], NODE_NAMES[(task + 1) % 3])
        halves = train.of_classes(names).shard(2, seed=seed)
        shards.append(dict(zip(holders, halves, strict=True)))
    return DemoData(name=name, tasks=tasks, train=train, test=test, shards=tuple(shards))


def _in_label_order(name: str, dataset: ImageDataset) -> tuple[str, ...]:
    return FASHION_MNIST_CLASSES if name == "fashion-mnist" else dataset.classes
