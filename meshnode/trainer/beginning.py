"""Where a new expert begins, tried on the task that it is spawned for: at random, or as the expert that is nearest.

Both beginnings are tried before the task is learned, on labels alone and a part of the images: two thirds to take a few
steps on, one to judge by. What comes of it is measured on images of this node and says nothing of others'.

Legend: N images, D feature.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights, weights_to_bytes
from experts.continual.nearest import nearest_expert
from experts.continual.starting import Nearest, choose_start
from experts.data.dataset import ImageDataset, class_columns
from experts.data.held_out import image_digest
from experts.distillation import DistillationConfig, DistillationData
from experts.errors import NotPositiveDefinite
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.messages import Begin, Begun, LearningFailed, Seek, Sought, TaskFile
from meshnode.trainer.migrating import told_layer
from protocol.identifiers import digest_of

__all__ = ["Beginner"]

IMAGES = 900
"""Looked at, of a larger task: their features cost as much as an answer for each."""

LEAST_JUDGING = 50
"""Of fewer images to judge by, one is more than two points."""

TRIAL_STEPS = 50
"""Of each beginning, as of `experts.continual`."""


class Beginner:
    """Tries beginnings with one trunk.

    Args:
        trunk: The mesh's, frozen.
        load: Opens a task file of the data folder; None if it is gone or has other content by now.
        config: How to distil; the steps are those of a trial.
        seed: What the drawing of batches follows from.
    """

    def __init__(
        self,
        trunk: Trunk,
        load: Callable[[TaskFile], ImageDataset | None],
        config: DistillationConfig,
        *,
        seed: int,
    ) -> None:
        self._trunk = trunk
        self._load = load
        self._config = dataclasses.replace(config, steps=TRIAL_STEPS, mixed_precision=False)
        self._seed = seed

    def seek(self, order: Seek) -> Sought:
        """The expert that the images are most like.

        Raises:
            ExpertsError: The statistics are not such.
        """
        found = self._look(order.task, order.classes)
        if found is None:
            return Sought(nearest=None, reason="the task's images do not suffice to judge by")
        try:
            uid = nearest_expert(found[0], ClassStatistics.from_bytes(order.statistics), order.experts)
        except NotPositiveDefinite as exc:
            return Sought(nearest=None, reason=str(exc))
        return Sought(nearest=uid, reason="" if uid else "nothing is remembered of any expert's classes")

    def begin(self, order: Begin) -> Begun | LearningFailed:
        """The better beginning.

        Raises:
            ExpertsError: The nearest expert's weights are not its own, or a trial diverges.
        """
        found = self._look(order.task, order.classes)
        if found is None:
            return LearningFailed(reason="the task's file has become another one")
        features_ND, labels = found
        columns_N = class_columns(labels, order.classes)
        judging_N = torch.arange(len(labels)) % 3 == 0
        architecture = architecture_from_config(order.architecture)
        source = architecture_from_config(order.nearest_weights.architecture)
        module = source.build(order.nearest)
        load_weights(module, order.nearest_weights.weights)
        start = choose_start(
            architecture,
            order.classes,
            Nearest(uid=order.nearest, architecture=source, module=module, classes=order.nearest_classes),
            DistillationData(features_ND=features_ND[~judging_N], labels_N=columns_N[~judging_N]),
            (features_ND[judging_N], columns_N[judging_N]),
            self._config,
            seed=order.uid,
            generator=lambda purpose: torch_generator(self._seed, f"begin/{purpose}/{order.uid}"),
            margin=order.margin,
        )
        return Begun(
            weights=weights_to_bytes(start.module),
            initial=digest_of(weights_to_bytes(architecture.build(order.uid))),
            evidence=start.evidence,
            layers=tuple(told_layer(layer) for layer in start.report.layers) if start.report else (),
        )

    def _look(self, task: TaskFile, classes: Sequence[str]) -> tuple[torch.Tensor, list[str]] | None:
        """Features and labels of some of the images, in an order of their digests; None if they are too few."""
        data = self._load(task)
        if data is None:
            return None
        rows = {image_digest(data.images[row]): row for row, label in enumerate(data.labels) if label in classes}
        chosen = [rows[digest] for digest in sorted(rows)][:IMAGES]
        if len(chosen) < 3 * LEAST_JUDGING:
            return None
        return features_of(self._trunk, data.images[chosen]).cpu(), [data.labels[row] for row in chosen]
