"""Fashion-MNIST as features of two taps, shared by the parts of `bench_experts.py`.

The pool is the first of the training images, the validation split those right after it, the test set the test images.
m and s are those of the pool's first task, two classes in label order. Features are kept on disk between runs.

Legend: N images, D feature, C channel, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import platformdirs
from torch import Tensor

from experts.data.dataset import ImageDataset, class_columns
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.data.named import load_named
from experts.evaluation.features import FeatureStore
from experts.trunk.base import Trunk, calibrate
from experts.trunk.efficientnet import load_efficientnet
from experts.trunk.images import prepare_images
from meshnode.datasets import find_dataset

__all__ = ["Features", "Ground", "PIXELS", "Size", "load_ground"]

PIXELS = 64
"""Height and width of the trunks' input."""

FIRST_TASK = FASHION_MNIST_CLASSES[:2]


class Size(NamedTuple):
    """How many images of each part."""

    pool: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Features:
    """One tap's features of all three parts, float32 ``(N, D)``."""

    trunk: Trunk
    pool: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Ground:
    """Images with labels, and how to get their features."""

    pool: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    tell: Callable[[str], None]
    _features: dict[str, Features] = field(default_factory=dict, init=False, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted names: the columns of everything here."""
        return tuple(sorted(FASHION_MNIST_CLASSES))

    def columns(self, part: ImageDataset) -> Tensor:
        """Labels as int64 ``(N,)``."""
        return class_columns(part.labels, self.classes)

    def features(self, tap: str) -> Features:
        """Features of an efficientnet-lite0 tap, computed once per machine and read once per run."""
        if tap not in self._features:
            self._features[tap] = self._load(tap)
        return self._features[tap]

    def _load(self, tap: str) -> Features:
        trunk = load_efficientnet(tap, pixels=PIXELS)
        calibrate(trunk, prepare_images(self.pool.of_classes(FIRST_TASK).images, trunk.input_channels, PIXELS))
        store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
        parts = []
        for name, part in (("pool", self.pool), ("validation", self.validation), ("test", self.test)):
            self.tell(f"features of {tap}: {name}, {len(part)} images")
            parts.append(store.features(trunk, part.images))
        return Features(trunk=trunk, pool=parts[0], validation=parts[1], test=parts[2])


def load_ground(size: Size, tell: Callable[[str], None]) -> Ground:
    """The three parts.

    Args:
        size: Images of each part.
        tell: Takes a line of progress.
    """
    train, test = load_named("fashion-mnist", find_dataset("fashion-mnist"))
    return Ground(
        pool=train.select(range(size.pool)),
        validation=train.select(range(size.pool, size.pool + size.validation)),
        test=test.select(range(size.test)),
        tell=tell,
    )
