"""Heads: which classes a network is trained to tell from which.

Where tasks are told, an answer is among the classes of one task, and a network has a head for each task: its
cross-entropy and what it distils are among the head's classes alone (multi-head, as in van de Ven and Tolias 2019,
arXiv:1904.07734, sec. 3.2). Elsewhere one head has all classes. Tasks that are told rarely share a class; one that is
shared is told from the classes of all of its tasks.

Legend: B batch, C class.
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

__all__ = ["Heads", "OneHead"]


class Heads:
    """The columns of each head; a column may be of several, as a class that two tasks have."""

    def __init__(self, heads: Iterable[Collection[int]], num_columns: int) -> None:
        """
        Args:
            heads: Columns of each, which together are all.
            num_columns: C.
        """
        self._heads = [sorted(columns) for columns in heads]
        self._together_CC = torch.zeros(num_columns, num_columns, dtype=torch.bool)
        for columns in self._heads:
            self._together_CC[torch.tensor(columns)[:, None], torch.tensor(columns)] = True

    def own(self, logits_BC: Tensor, columns_B: Tensor) -> Tensor:
        """Logits ``(B, ..., C)``, as low as can be outside the heads of each row's label, int64 ``(B,)``."""
        lowest = torch.finfo(logits_BC.dtype).min  # not -inf, whose probability of 0 has no logarithm
        own_BC = self._together_CC[columns_B].reshape(len(columns_B), *[1] * (logits_BC.ndim - 2), -1)
        return logits_BC.masked_fill(~own_BC, lowest)

    def parted(self, columns: Collection[int]) -> list[list[int]]:
        """The columns, by head; heads that have none of them are left out."""
        parts = [[column for column in head if column in columns] for head in self._heads]
        return [part for part in parts if part]


class OneHead(nn.Module):
    """A network of which one head answers."""

    def __init__(self, network: nn.Module, columns: Collection[int]) -> None:
        """
        Args:
            network: Maps inputs ``(B, ...)`` to logits ``(B, C)``.
            columns: The head's.
        """
        super().__init__()
        self.network = network
        self._columns = sorted(columns)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, C)``, as low as can be outside the head."""
        logits_BC: Tensor = self.network(x)
        own_C = torch.zeros(logits_BC.shape[1], dtype=torch.bool)
        own_C[self._columns] = True
        return logits_BC.masked_fill(~own_C, torch.finfo(logits_BC.dtype).min)
