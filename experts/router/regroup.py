"""Statistics of classes read as those of groups of them, such as of domains: exactly, without a look at any sample.

With g a group, n_g = sum_{c in g} n_c and mu_g = sum_{c in g} n_c mu_c / n_g,

    S_groups = S + sum_g sum_{c in g} n_c (mu_c - mu_g)(mu_c - mu_g)^T

since the scatter around a group's mean is that around its classes' means and that of the means.

Legend: D feature, C class.
"""

from collections.abc import Mapping

import torch

from experts.errors import UnknownClasses
from experts.router.statistics import ClassStatistics
from experts.router.symmetric import mirror

__all__ = ["regrouped"]


def regrouped(statistics: ClassStatistics, group_of: Mapping[str, str]) -> ClassStatistics:
    """The statistics that the same samples have under the names of their groups.

    Args:
        statistics: Of classes.
        group_of: The group of each class; others may be listed.

    Raises:
        UnknownClasses: If a class has no group.
    """
    if missing := set(statistics.classes) - group_of.keys():
        raise UnknownClasses(missing, known=group_of)
    members: dict[str, list[str]] = {}
    for name in statistics.classes:
        members.setdefault(group_of[name], []).append(name)
    counts, means = {}, {}
    scatter = statistics.scatter.clone()
    for group in sorted(members):
        counts_C1 = torch.tensor([[statistics.counts[name]] for name in members[group]], dtype=torch.float64)
        means_CD = torch.stack([statistics.means[name] for name in members[group]])
        counts[group] = int(counts_C1.sum())
        means[group] = (counts_C1 * means_CD).sum(dim=0) / counts[group]
        apart_CD = (means_CD - means[group]) * counts_C1.sqrt()
        scatter.addmm_(apart_CD.T, apart_CD)
    return ClassStatistics(counts, means, mirror(scatter), statistics.fingerprint)
