"""What `bench_router.py` measures on, for one order of classes: features of every tap, teachers and experts.

A mesh founded on the first task of an order has m, s and projections of that task's images. All of it is computed from
one pass of the network over the images, kept on disk: what depends on the order is arithmetic on that pass.

Legend: N images, B batch, D feature of the trunk, C class, E expert, G cell of a pooled grid, F feature of the router.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from experts.architectures.mlp import MlpArchitecture
from experts.combine import ExpertResponse, combine
from experts.data.dataset import ImageDataset, class_columns
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData, TeacherLogits
from experts.distillation.run import DistillationRun
from experts.evaluation.features import FeatureStore
from experts.evaluation.metrics import accuracy, class_incremental_accuracy
from experts.evaluation.scenarios.split import split_fashion_mnist
from experts.generators import torch_generator
from experts.router.features import ReluFeatures, ReluFeaturesConfig
from experts.router.gating import Gates
from experts.router.ridge import RidgeRouter
from experts.router.statistics import ClassStatistics
from experts.teachers.cnn import TeacherConfig, train_teacher
from experts.trunk.base import set_normalisation
from experts.trunk.efficientnet import EfficientNetTrunk, channel_components, load_efficientnet
from experts.trunk.images import prepare_images

__all__ = ["PIXELS", "VARIANTS", "WIDE", "Effort", "Features", "Study", "Variant"]

PIXELS = 64
WIDE = 2500
TAPPED = "E5+B4"
"""One pass that every variant's features are taken from."""

HIDDEN = 8
"""Of an expert for two classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A ridge router: what it sees and how it is regularised."""

    tap: str
    relu_features: bool = False
    """Whether it sees ReLU features of B4 besides."""
    ridge: float = 1e-4


VARIANTS: Mapping[str, Variant] = {
    "ridge_small": Variant(tap="E5c40"),
    "ridge": Variant(tap="E5"),
    "ridge_quality": Variant(tap=TAPPED, relu_features=True, ridge=1e-3),
    "ridge_b4": Variant(tap="B4"),
}


class Effort(NamedTuple):
    """How much of everything."""

    train_images: int
    test_images: int
    orders: int
    wide_orders_8_bits: int
    """Orders in which eight bits are also tried on more than `WIDE` features: the eigenvalues take minutes."""
    random_features: int
    """D_r of the variant that has any."""
    teacher_epochs: int
    expert_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """h of both parts under one trunk, in the images' order."""

    trunk: EfficientNetTrunk
    train_ND: Tensor
    test_ND: Tensor


class Study:
    """One order of the classes.

    Args:
        parts: Fashion-MNIST's training and test images, as many as are used.
        store: Where the pass over the images is kept.
        order: Of the classes, 0 for label order; also the seed of teachers and experts.
        effort: How long teachers and experts learn.
    """

    def __init__(
        self, parts: tuple[ImageDataset, ImageDataset], store: FeatureStore, order: int, effort: Effort
    ) -> None:
        self.train, self.test = parts
        self.order = order
        self._store = store
        self.effort = effort
        scenario = split_fashion_mnist(parts, order=order, train_images=None)
        self.class_order = tuple(name for task in scenario.tasks for name in task.classes)
        """All classes, in the order they come."""
        self.tasks: tuple[tuple[str, ...], ...] = tuple(tuple(sorted(task.classes)) for task in scenario.tasks)
        """The classes of each task, in the order they come."""
        self.classes = scenario.classes
        self.experts: Mapping[str, tuple[str, ...]] = {f"task-{n}": names for n, names in enumerate(self.tasks)}
        """The classes of each expert, by uid."""

    def rows_of(self, classes: Sequence[str]) -> Tensor:
        """Training images of these classes, int64."""
        return torch.from_numpy(np.flatnonzero(np.isin(np.asarray(self.train.labels), classes)))

    @cache  # noqa: B019 - a study ends with its order
    def features(self, tap: str) -> Features:
        """Features of a tap calibrated on the first task."""
        return self.features_calibrated_on(tap, self.rows_of(self.tasks[0]))

    def features_calibrated_on(self, tap: str, rows: Tensor) -> Features:
        """Features of a tap calibrated on these training images: what `calibrate` gives, without another pass."""
        trunk = load_efficientnet(tap, pixels=PIXELS)
        train_ND, test_ND = self._raw
        name, _, components = tap.partition("c")
        if tap != TAPPED:
            piece = load_efficientnet(TAPPED, pixels=PIXELS).slice_of(name)
            train_ND, test_ND = train_ND[:, piece], test_ND[:, piece]
        if components:
            projection_KC = trunk.get_buffer(f"{tap}_KC")
            cells_NCGG = _cells(train_ND, projection_KC.shape[1])
            projection_KC.copy_(channel_components(cells_NCGG[rows], int(components)))
            train_ND, test_ND = (
                torch.einsum("kc,ncgh->nkgh", projection_KC, _cells(raw_ND, projection_KC.shape[1])).flatten(1)
                for raw_ND in (train_ND, test_ND)
            )
        set_normalisation(trunk, [train_ND[rows]])
        return Features(trunk, trunk.normalised(train_ND), trunk.normalised(test_ND))

    def feature_map(self, variant: Variant, features: Features) -> ReluFeatures | None:
        """The ReLU features that a variant's router sees besides; None for a variant without."""
        if not variant.relu_features:
            return None
        sliced = features.trunk.slice_of("B4")
        return ReluFeatures(
            ReluFeaturesConfig(
                feature_dim=features.trunk.feature_dim,
                width=self.effort.random_features,
                start=sliced.start,
                stop=sliced.stop,
                seed=self.order,
            )
        )

    def psi(self, variant: Variant) -> tuple[Tensor, Tensor]:
        """What a variant's router sees of training and test images, float32 ``(N, F)``."""
        features = self.features(variant.tap)
        mapped = self.feature_map(variant, features)
        if mapped is None:
            return features.train_ND, features.test_ND
        return mapped(features.train_ND), mapped(features.test_ND)

    def statistics(self, psi_NF: Tensor) -> ClassStatistics:
        """The router's statistics after one pass in the order of the tasks, each task's rows an update."""
        statistics = self.statistics_of(psi_NF, self.rows_of(self.tasks[0]))
        for names in self.tasks[1:]:
            rows = self.rows_of(names)
            statistics = statistics.updated(psi_NF[rows], [self.train.labels[row] for row in rows])
        return statistics

    def statistics_of(self, psi_NF: Tensor, rows: Tensor) -> ClassStatistics:
        """Statistics of these training images alone."""
        return ClassStatistics.from_features(psi_NF[rows], [self.train.labels[row] for row in rows])

    def argmax_accuracy(self, router: RidgeRouter, psi_NF: Tensor) -> float:
        """Per cent that the router's own argmax gets right of the test images."""
        return 100 * accuracy(router.class_argmax(psi_NF), self.test.labels)

    def mixture_accuracy(self, gates: Gates, tap: str) -> float:
        """Per cent that the experts of a tap, asked and weighed by these gates, get right of the test images."""
        responses = {}
        for uid, logits_NC in self.logits(tap).items():
            rows = gates.rows_of(uid)
            responses[uid] = ExpertResponse(self.experts[uid], rows, torch.softmax(logits_NC[rows], dim=1))
        outputs_BC = combine(gates, responses, self.classes).outputs_BC
        return 100 * class_incremental_accuracy(outputs_BC, self.classes, self.test.labels, self.classes)

    @cache  # noqa: B019 - a study ends with its order
    def logits(self, tap: str) -> dict[str, Tensor]:
        """Each expert's logits over its own classes for all test images, by uid."""
        test_ND, modules = self.features(tap).test_ND, self.modules(tap)
        with torch.no_grad():
            return {uid: module(test_ND) for uid, module in modules.items()}

    @cache  # noqa: B019 - a study ends with its order
    def modules(self, tap: str) -> dict[str, nn.Module]:
        """The experts, each distilled on the features of its own task from that task's teacher."""
        features = self.features(tap)
        modules: dict[str, nn.Module] = {}
        for uid, names in self.experts.items():
            rows = self.rows_of(names)
            form = MlpArchitecture(feature_dim=features.trunk.feature_dim, hidden=HIDDEN, num_classes=len(names))
            module = form.build(f"{self.order}/{tap}/{uid}")
            labels_N = class_columns([self.train.labels[row] for row in rows], names)
            data = DistillationData.from_teachers(features.train_ND[rows], labels_N, [self._taught[uid]], names)
            config = DistillationConfig(steps=self.effort.expert_steps)
            for _ in DistillationRun(module, data, config, torch_generator(self.order, f"{tap}/{uid}")):
                pass
            modules[uid] = module
        return modules

    @cached_property
    def _taught(self) -> dict[str, TeacherLogits]:
        """What each task's teacher, a reference CNN that saw that task alone, says of the task's images."""
        taught = {}
        for uid, names in self.experts.items():
            task = self.train.of_classes(names)
            images_NCHW = prepare_images(task.images, task.channels, task.images.shape[1])
            config = TeacherConfig(epochs=self.effort.teacher_epochs)
            teacher = train_teacher(images_NCHW, task.labels, config, torch_generator(self.order, f"teacher/{uid}"))
            taught[uid] = TeacherLogits(logits_NK=teacher.logits(images_NCHW), classes=teacher.classes)
        return taught

    @cached_property
    def _raw(self) -> tuple[Tensor, Tensor]:
        """What the network gives at all taps for training and test images, before m and s."""
        trunk = load_efficientnet(TAPPED, pixels=PIXELS)
        return self._store.section(trunk, self.train.images), self._store.section(trunk, self.test.images)


def _cells(raw_ND: Tensor, channels: int) -> Tensor:
    """Flat features as ``(N, C, G, G)``."""
    side = round((raw_ND.shape[1] / channels) ** 0.5)
    return raw_ND.reshape(len(raw_ND), channels, side, side)
