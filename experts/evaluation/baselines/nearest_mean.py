"""The nearest class mean: what is least to keep, and forgets nothing.

    y* = argmin_c |h - mu_c|

(Mensink et al. 2013, "Distance-based image classification", IEEE TPAMI 35(11)). Sums and counts add up over tasks.

Legend: N items, B batch, D feature, A classes that may be named.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.data.dataset import ImageDataset
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.cost import Holdings
from experts.evaluation.inputs import Inputs

__all__ = ["NearestMean", "nearest_mean_scores"]


class NearestMean(Baseline):
    """NCM on a trunk's features."""

    def __init__(self, inputs: Inputs) -> None:
        """
        Args:
            inputs: Features of a trunk.
        """
        super().__init__()
        self.name = "nearest mean"
        self._inputs = inputs
        self._sums: dict[str, Tensor] = {}  # float64 (D,)
        self._counts: dict[str, int] = {}
        self._num_updated = 0
        self._sent_bytes = 0
        self._flops = 0

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """-|h - mu_c|^2."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        return nearest_mean_scores(self._inputs(images).double(), means, allowed)

    def holdings(self) -> Holdings:
        """The means are all that it has, and with their counts all that it keeps and sends, in float32."""
        width = sum(self._inputs.shape)
        return Holdings(
            num_parameters=width * len(self._sums),
            num_updated=width * self._num_updated,
            kept_bytes=4 * (width + 1) * len(self._sums),
            sent_bytes=self._sent_bytes,
            flops=self._flops,
        )

    def _learn(self, task: ImageDataset) -> None:
        h_ND = self._inputs(task.images).double()
        came = sorted(set(task.labels))
        for name in came:
            own_ND = h_ND[[row for row, label in enumerate(task.labels) if label == name]]
            self._sums[name] = self._sums.get(name, torch.zeros(h_ND.shape[1])) + own_ND.sum(dim=0)
            self._counts[name] = self._counts.get(name, 0) + len(own_ND)
        self._num_updated = len(came)
        self._sent_bytes += 4 * (h_ND.shape[1] + 1) * len(came)
        self._flops += len(task) * (self._inputs.flops_per_image + h_ND.shape[1])


def nearest_mean_scores(features_BD: Tensor, means: Mapping[str, Tensor], allowed: Sequence[str]) -> Tensor:
    """-|x - mu_c|^2, ``(B, A)``; -inf for a class without a mean."""
    scores_BA = features_BD.new_full((len(features_BD), len(allowed)), -torch.inf)
    for column, name in enumerate(allowed):
        if name in means:
            scores_BA[:, column] = -(features_BD - means[name]).square().sum(dim=1)
    return scores_BA
