"""The ridge router of a method of the evaluation: statistics merged task by task, and what they cost.

Legend: N items of a task, D feature, C column.
"""

from collections.abc import Sequence

from torch import Tensor

from experts.evaluation.cost import solve_flops
from experts.router.features import ReluFeatures, ReluFeaturesConfig
from experts.router.ridge import RidgeRouter, RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, merge

__all__ = ["RidgeState", "ridge_flops"]


class RidgeState:
    """A router that learns by merging."""

    def __init__(self, config: RouterConfig, projection: ReluFeaturesConfig | None = None) -> None:
        """
        Args:
            config: Of the ridge.
            projection: Random features beside the trunk's; None for the trunk's alone.

        Raises:
            SettingOutOfRange: If the projection asks for too much.
        """
        self._config = config
        self._projection = None if projection is None else ReluFeatures(projection)
        self._stats: ClassStatistics | None = None
        self._router: RidgeRouter | None = None
        self.num_tasks = 0
        self.sent_bytes = 0
        """Of every task's statistics in their wire form, float32."""
        self.flops = 0

    @property
    def router(self) -> RidgeRouter:
        """Solved from all tasks, after at least one."""
        assert self._router is not None, "asked before it learned"
        return self._router

    @property
    def num_parameters(self) -> int:
        """Of the solved weights, with the bias."""
        return 0 if self._router is None else self._router.weights.numel()

    @property
    def kept_bytes(self) -> int:
        """Of the merged statistics in their wire form, float32."""
        return 0 if self._stats is None else len(self._stats.to_bytes())

    def add(self, features_ND: Tensor, labels: Sequence[str]) -> None:
        """Merge a task's statistics and solve.

        Raises:
            NotPositiveDefinite: If the system cannot be solved.
            ShapeMismatch: If there is a projection, of other features.
        """
        features_ND = self._projected(features_ND)
        stats = ClassStatistics.from_features(features_ND, labels)
        self._stats = stats if self._stats is None else merge(self._stats, stats)
        self._router = solve_ridge(self._stats, self._config)
        self.num_tasks += 1
        self.sent_bytes += len(stats.to_bytes())
        num_items, dim = features_ND.shape
        self.flops += ridge_flops(num_items, dim, len(self._stats.classes))
        if self._projection is not None:
            config = self._projection.config
            self.flops += 2 * num_items * (config.stop - config.start) * config.width

    def scores(self, features_BD: Tensor) -> Tensor:
        """The router's class scores, after at least one task.

        Raises:
            ShapeMismatch: If the features are others than those learned from.
        """
        return self.router.scores(self._projected(features_BD))

    def _projected(self, features_ND: Tensor) -> Tensor:
        return features_ND if self._projection is None else self._projection(features_ND)


def ridge_flops(num_items: int, dim: int, num_columns: int) -> int:
    """FLOPs of a ridge: the scatter of its new items, the products of its class means, the solve.

    Args:
        num_items: N, added since the last solve.
        dim: D, without the bias.
        num_columns: C, old and new.
    """
    of_means = 2 * num_columns * (dim + 1) ** 2
    return 2 * num_items * dim**2 + of_means + solve_flops(dim + 1, num_columns)
