"""How the peers of `bench_averaging_accuracy.py` share the images: evenly, in skewed mixtures, or class by class.

Each function deals rows out into disjoint shards that together are all rows.

Legend: N images, C class.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from experts.generators import torch_generator

__all__ = ["SHARDS", "class_split", "dirichlet", "iid"]

SKEW = 0.3
"""Of the Dirichlet distribution; the lower, the fewer classes a peer has."""

_LEAST_ODDS = 1e-12
"""A class that a peer would draw next to never, where it is all that is left."""


def iid(columns_N: Tensor, num_peers: int, seed: int) -> list[Tensor]:
    """Shards of equal size in which all rows are equally likely."""
    order_N = torch.randperm(len(columns_N), generator=torch_generator(seed, "shards"))
    return list(torch.tensor_split(order_N, num_peers))


def dirichlet(columns_N: Tensor, num_peers: int, seed: int) -> list[Tensor]:
    """Shards of equal size, each a mixture of classes q ~ Dirichlet(.3): Hsu et al. 2019, arXiv:1909.06335, sec. 3.

    A class of which nothing is left is left out of the mixtures of the peers that follow, so the last has what remains.
    """
    generator = np.random.default_rng(seed)
    left = [generator.permutation(np.flatnonzero(columns_N == column)) for column in range(_num_classes(columns_N))]
    shards: list[Tensor] = []
    for size in (len(part) for part in torch.tensor_split(columns_N, num_peers)):
        mixture_C = generator.dirichlet([SKEW] * len(left)) + _LEAST_ODDS
        taken: list[np.ndarray] = []
        while (wanted := size - sum(map(len, taken))) > 0:
            left_C = np.array([len(rows) for rows in left])
            odds_C = mixture_C * (left_C > 0)
            counts_C = np.minimum(generator.multinomial(wanted, odds_C / odds_C.sum()), left_C)
            taken += [rows[:count] for rows, count in zip(left, counts_C, strict=True)]
            left = [rows[count:] for rows, count in zip(left, counts_C, strict=True)]
        shards.append(torch.from_numpy(np.concatenate(taken)))
    return shards


def class_split(columns_N: Tensor, num_peers: int, seed: int) -> list[Tensor]:
    """Shards of whole classes, of which no two peers share one: of ten classes 3, 3, 2 and 2."""
    classes_C = torch.randperm(_num_classes(columns_N), generator=torch_generator(seed, "shards"))
    return [torch.isin(columns_N, own).nonzero().flatten() for own in torch.tensor_split(classes_C, num_peers)]


SHARDS: Mapping[str, Callable[[Tensor, int, int], list[Tensor]]] = {
    "iid": iid,
    "dirichlet_03": dirichlet,
    "class_split": class_split,
}


def _num_classes(columns_N: Tensor) -> int:
    return int(columns_N.max()) + 1
