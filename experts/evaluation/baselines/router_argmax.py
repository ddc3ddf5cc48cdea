"""Our router alone as a classifier: argmax_c of the ridge router's class scores, no experts.

With a projection it is RanPAC's classifier (McDonnell et al. 2023, arXiv:2307.02251): ridge on random ReLU features.
Experts must earn their place above it, so every table has its row. With ``by_task`` the ridge has a column for every
class of every task, and a class scores as the best of its columns: the strongest linear rival of domains' experts.

Legend: A classes that may be named, C columns of the router.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.data.dataset import ImageDataset
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.ridge_state import RidgeState
from experts.evaluation.cost import Holdings
from experts.evaluation.inputs import Inputs
from experts.router.features import ReluFeaturesConfig
from experts.router.ridge import RouterConfig

__all__ = ["RouterArgmax"]


class RouterArgmax(Baseline):
    """Ridge regression from merged statistics."""

    def __init__(
        self,
        inputs: Inputs,
        config: RouterConfig,
        *,
        by_task: bool = False,
        projection: ReluFeaturesConfig | None = None,
    ) -> None:
        """
        Args:
            inputs: Features of a trunk.
            config: Of the ridge.
            by_task: Whether the classes of each task have columns of their own.
            projection: Random features beside the trunk's; None for the trunk's alone.
        """
        super().__init__()
        self.name = "router argmax by task" if by_task else "router argmax" if projection is None else "projected ridge"
        self._inputs = inputs
        self._by_task = by_task
        self._state = RidgeState(config, projection)
        self._class_of: dict[str, str] = {}

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """The class scores; of several columns of one class the best."""
        router = self._state.router
        scores_BC = self._state.scores(self._inputs(images))
        scores_BA = scores_BC.new_full((len(images), len(allowed)), -torch.inf)
        for column, name in enumerate(allowed):
            own = [place for place, label in enumerate(router.classes) if self._class_of[label] == name]
            if own:
                scores_BA[:, column] = scores_BC[:, own].amax(dim=1)
        return scores_BA

    def holdings(self) -> Holdings:
        """The solved weights are its parameters, all of them new after every task; its statistics are kept and sent."""
        return Holdings(
            num_parameters=self._state.num_parameters,
            num_updated=self._state.num_parameters,
            kept_bytes=self._state.kept_bytes,
            sent_bytes=self._state.sent_bytes,
            flops=self._state.flops,
        )

    def _learn(self, task: ImageDataset) -> None:
        number = self._state.num_tasks
        columns = [f"{number}/{label}" if self._by_task else label for label in task.labels]
        self._class_of.update(zip(columns, task.labels, strict=True))
        self._state.add(self._inputs(task.images), columns)
        self._state.flops += len(task) * self._inputs.flops_per_image
