"""Who works for which class, measured where the labels are: the router's gates on this node's own learned tasks.

The trainer alone can open the tasks; what leaves it is the gate mass by class and expert, in which no image can be
found again. All tasks are measured with one router, since mass under different routers does not add up to anything.

Legend: B images, D feature, C class, E expert.
"""

from collections.abc import Callable

import numpy as np
import torch

from experts.data.dataset import ImageDataset
from experts.generators import torch_generator
from experts.router.ridge import RidgeRouter
from experts.router.specialization import measure_specialization, merge_specializations
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.messages import Measure, Measured, TaskFile

__all__ = ["GateMeter"]

IMAGES_A_TASK = 500
"""A random choice of so many: a share is then known to 2 points, and a task costs half a second once."""

IMAGES_IN_ALL = 20_000
"""Of more than 40 tasks fewer images each are taken: features of so many are held, 170 MB of a trunk of 2,160."""


class GateMeter:
    """Measures gates; a task's features are worked out once.

    Args:
        trunk: The mesh's.
        load: Opens a task file of the data folder; None if it is gone or has other content by now.
        seed: Decides which images are taken.
    """

    def __init__(self, trunk: Trunk, load: Callable[[TaskFile], ImageDataset | None], *, seed: int) -> None:
        self._trunk = trunk
        self._load = load
        self._seed = seed
        self._known: dict[str, tuple[torch.Tensor, tuple[str, ...]]] = {}
        """Features ``(B, D)`` and labels, by the digest of the task file."""

    def measure(self, order: Measure) -> Measured:
        """The gate mass that the tasks' classes send to the experts."""
        weights = np.frombuffer(order.router_weights, np.float64).reshape(-1, len(order.router_classes))
        router = RidgeRouter(order.router_classes, torch.from_numpy(weights.copy()), order.kappa)
        limit = min(IMAGES_A_TASK, max(1, IMAGES_IN_ALL // max(1, len(order.tasks))))
        self._forget({task.digest for task in order.tasks}, limit)
        parts = []
        for task in order.tasks:
            known = self._features(task, limit)
            if known is not None:
                features_BD, labels = known
                gates = router.gates(features_BD, order.experts, tau=order.tau, top_k=order.top_k)
                parts.append(measure_specialization(gates, labels))
        whole = merge_specializations(parts)
        return Measured(
            classes=whole.classes,
            experts=whole.uids,
            mass=whole.mass_CE.tolist(),
            num_samples=whole.num_samples_C.tolist(),
        )

    def _forget(self, asked: set[str], limit: int) -> None:
        """Keep the features of so many images of each of these tasks."""
        self._known = {digest: known for digest, known in self._known.items() if digest in asked}
        for digest, (features_BD, labels) in self._known.items():
            if len(labels) > limit:
                self._known[digest] = (features_BD[:limit].clone(), labels[:limit])

    def _features(self, task: TaskFile, limit: int) -> tuple[torch.Tensor, tuple[str, ...]] | None:
        if task.digest not in self._known:
            images = self._load(task)
            if images is None:
                return None
            order = torch.randperm(len(images), generator=torch_generator(self._seed, f"measure/{task.digest}"))
            some = images.select(order[:limit].numpy())
            self._known[task.digest] = (features_of(self._trunk, some.images).cpu(), some.labels)
        return self._known[task.digest]
