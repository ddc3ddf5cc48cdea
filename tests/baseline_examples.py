"""Small tasks for methods of continual learning: noise with one bright block, whose place is the class."""

from collections.abc import Callable

import numpy as np
import torch

from experts.data.dataset import ImageDataset
from experts.distillation.config import DistillationConfig
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.routed_experts import RoutedConfig, RoutedExperts
from experts.evaluation.inputs import Inputs, PixelInputs
from experts.evaluation.metrics import accuracy
from experts.evaluation.networks import mlp_100_100
from experts.router.ridge import RouterConfig

PLACES = {"east": (1, 5), "north": (0, 3), "south": (5, 3), "west": (3, 0)}
CLASSES = tuple(sorted(PLACES))


class FlatInputs(Inputs):
    """Pixels as a stand-in for a trunk's features."""

    shape = (64,)
    flops_per_image = 7

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images.reshape(len(images), 64).astype(np.float32) / 128 - 1)


def task(*classes: str, seed: int = 0, size: int = 24, inverted: bool = False) -> ImageDataset:
    """Noise with one bright block whose place is the class."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 60, (size * len(classes), 8, 8), dtype=np.uint8)
    labels = [classes[i % len(classes)] for i in range(len(images))]
    for image, label in zip(images, labels, strict=True):
        row, column = PLACES[label]
        image[row : row + 3, column : column + 3] += 190
    return ImageDataset(255 - images if inverted else images, tuple(labels))


def on_pixels(form: Callable[..., torch.nn.Module] = mlp_100_100) -> NetworkSetup:
    return NetworkSetup(inputs=PixelInputs(channels=1, pixels=8), form=form, classes=CLASSES)


def routed(target: str = "classes", *, top_k: int = 1, seed: int = 0, **further: object) -> RoutedExperts:
    config = RoutedConfig(
        router=RouterConfig(top_k=top_k, ridge=1e-2),
        distillation=DistillationConfig(steps=150),
        hidden=8,
        target=target,  # type: ignore[arg-type]
        **further,  # type: ignore[arg-type]
    )
    return RoutedExperts(FlatInputs(), config, seed=seed)


def score(learner: Baseline, test: ImageDataset) -> float:
    return accuracy(learner.predict(test.images), test.labels)


FIRST, SECOND = task("north", "west"), task("east", "south")
FIRST_TEST, SECOND_TEST = task("north", "west", seed=1), task("east", "south", seed=1)
