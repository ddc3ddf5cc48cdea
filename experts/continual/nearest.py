"""Which expert new items are most like, by what the router remembers of classes.

    d_i(x) = min_{c in C_i} (h - mu_c)^T S_w^-1 (h - mu_c),    nearest = argmin_i mean_x d_i(x)

the Mahalanobis distance of `novelty`, of each expert's own classes: nothing is kept for it but the router's statistics.

Legend: B batch, D feature, C class.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from experts.errors import NotPositiveDefinite
from experts.router.statistics import ClassStatistics
from experts.router.symmetric import factorise

__all__ = ["nearest_expert"]

_RIDGE = 1e-3
"""Added to the scatter, relative to its mean eigenvalue: that of novelty."""


def nearest_expert(
    features_BD: Tensor, statistics: ClassStatistics, experts: Mapping[str, Collection[str]]
) -> str | None:
    """The expert whose classes are nearest.

    Args:
        features_BD: Of the new items, at least one.
        statistics: The router's.
        experts: The classes of each expert, by uid.

    Returns: Its uid, of equals the lowest; None if nothing is remembered of any expert's classes.

    Raises:
        NotPositiveDefinite: If no two samples of a class differ.
    """
    within_DD = statistics.scatter / statistics.num_samples
    within_DD.diagonal().add_(_RIDGE * within_DD.trace() / len(within_DD))
    if not factorise(within_DD):
        raise NotPositiveDefinite(size=len(within_DD), ridge=_RIDGE)

    def whitened(rows_BD: Tensor) -> Tensor:
        whitened_DB: Tensor = torch.linalg.solve_triangular(within_DD.T, rows_BD.double().cpu().T, upper=False)
        return whitened_DB.T

    own_BD, means_CD = whitened(features_BD), whitened(statistics.stacked_means())
    distances_BC = torch.cdist(own_BD, means_CD).square()
    columns = {name: column for column, name in enumerate(statistics.classes)}
    found = []
    for uid, classes in experts.items():
        known = [columns[name] for name in classes if name in columns]
        if known:
            found.append((float(distances_BC[:, known].amin(dim=1).mean()), uid))
    return min(found)[1] if found else None
