"""Small data for continual learning: bright blocks whose place is the class, seen plainly or inverted."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from experts.continual.learner import ContinualLearner
from experts.continual.novelty import NoveltyConfig
from experts.continual.replay_kinds import ReplayConfig
from experts.continual.settings import LearnerConfig
from experts.continual.stream import StreamConfig
from experts.distillation.config import DistillationConfig
from experts.router.ridge import RouterConfig

PLACES = {"east": (1, 5), "middle": (3, 3), "north": (0, 3), "south": (5, 3), "west": (3, 0)}


def features(images: NDArray[np.uint8]) -> torch.Tensor:
    """Means of 2 x 2 pixels as a stand-in for a trunk's features, ``(N, 16)``."""
    pooled = images.reshape(len(images), 4, 2, 4, 2).astype(np.float32).mean(axis=(2, 4))
    return torch.from_numpy(pooled.reshape(len(images), 16) / 64 - 1)


def images_of(
    classes: Sequence[str], count: int, seed: int = 0, *, inverted: bool = False
) -> tuple[NDArray[np.uint8], list[str]]:
    """``count`` images, the classes in turn."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 90, (count, 8, 8), dtype=np.uint8)
    labels = [classes[number % len(classes)] for number in range(count)]
    for image, label in zip(images, labels, strict=True):
        row, column = PLACES[label]
        image[row : row + 3, column : column + 3] += 150
    return (255 - images if inverted else images), labels


def settings(setting: str = "class-incremental", **changes: object) -> LearnerConfig:
    fields: dict[str, object] = {
        "router": RouterConfig(ridge=1e-2, top_k=2 if setting == "domain-incremental" else 1),
        "distillation": DistillationConfig(steps=150, lr=0.2),
        "passes": 40.0,
        "trial_steps": 20,
        "increment_items": 96,
        "held_out_per_target": 100,
        "novelty": NoveltyConfig(batch_size=16, min_held_out=40, num_bootstrap=200),
        "stream": StreamConfig(begin_after=3),
        "replay": ReplayConfig(max_bytes=64 * 60),
        **changes,
    }
    return LearnerConfig(setting=setting, **fields)  # type: ignore[arg-type]


def learner(setting: str = "class-incremental", *, seed: int = 0, **changes: object) -> ContinualLearner:
    return ContinualLearner(features, settings(setting, **changes), seed=seed)


def accuracy(
    subject: ContinualLearner,
    classes: Sequence[str],
    allowed: Sequence[str],
    *,
    task: str | None = None,
    inverted: bool = False,
) -> float:
    """On new images."""
    images, labels = images_of(classes, 100, seed=99, inverted=inverted)
    best = subject.scores(images, allowed, task=task).argmax(dim=1).tolist()
    return sum(allowed[column] == label for column, label in zip(best, labels, strict=True)) / len(labels)
