"""Streaming linear discriminant analysis: one Gaussian a class, all of one shape.

    s_c(h) = mu_c^T L h - mu_c^T L mu_c / 2,    L = ((1 - epsilon) S / N + epsilon I)^-1

(Hayes and Kanan 2020, arXiv:1909.01520, eqs. 2 to 5). Its authors update means and covariance image by image; ours are
merged as the router's are (`experts.router.statistics`), so S is that of all images at once, to rounding.

Legend: N items, B batch, D feature, A classes that may be named.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.data.dataset import ImageDataset
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.ridge_state import ridge_flops
from experts.evaluation.cost import Holdings
from experts.evaluation.inputs import Inputs
from experts.router.statistics import ClassStatistics, merge

__all__ = ["StreamingLda"]


class StreamingLda(Baseline):
    """SLDA on a trunk's features."""

    def __init__(self, inputs: Inputs, *, shrinkage: float = 1e-4) -> None:
        """
        Args:
            inputs: Features of a trunk.
            shrinkage: epsilon, in (0, 1]; the published one.

        Raises:
            SettingOutOfRange: If ``shrinkage`` is outside its range.
        """
        super().__init__()
        if not 0.0 < shrinkage <= 1.0:
            raise SettingOutOfRange("shrinkage", shrinkage, allowed="in (0, 1]")
        self.name = "SLDA"
        self._inputs = inputs
        self._shrinkage = shrinkage
        self._stats: ClassStatistics | None = None
        self._weights_CD = torch.empty(0)
        self._bias_C = torch.empty(0)
        self._sent_bytes = 0
        self._flops = 0

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """Log-probabilities but for a constant of each image."""
        assert self._stats is not None, "asked before it learned"
        scores_BC = self._inputs(images).double() @ self._weights_CD.T + self._bias_C
        scores_BA = scores_BC.new_full((len(images), len(allowed)), -torch.inf)
        for column, name in enumerate(allowed):
            if name in self._stats.counts:
                scores_BA[:, column] = scores_BC[:, self._stats.classes.index(name)]
        return scores_BA

    def holdings(self) -> Holdings:
        """As the router's: statistics kept and sent, weights solved anew after every task."""
        num_parameters = self._weights_CD.numel() + self._bias_C.numel()
        return Holdings(
            num_parameters=num_parameters,
            num_updated=num_parameters,
            kept_bytes=0 if self._stats is None else len(self._stats.to_bytes()),
            sent_bytes=self._sent_bytes,
            flops=self._flops,
        )

    def _learn(self, task: ImageDataset) -> None:
        h_ND = self._inputs(task.images)
        came = ClassStatistics.from_features(h_ND, task.labels)
        self._stats = came if self._stats is None else merge(self._stats, came)
        means_CD = self._stats.stacked_means()
        shape_DD = (1 - self._shrinkage) * self._stats.scatter / self._stats.num_samples
        shape_DD.diagonal().add_(self._shrinkage)
        self._weights_CD = torch.linalg.solve(shape_DD, means_CD.T).T
        self._bias_C = -(self._weights_CD * means_CD).sum(dim=1) / 2
        self._sent_bytes += len(came.to_bytes())
        num_items, dim = h_ND.shape
        self._flops += len(task) * self._inputs.flops_per_image + ridge_flops(num_items, dim, len(means_CD))
