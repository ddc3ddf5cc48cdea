"""FLOPs of carrying over, of a step of distillation, and of a teacher's answers.

Products of matrices and convolutions are counted as they are computed, forward and backward, by torch's own counter: 2
for each multiply-accumulate. It does not know solves of linear equations: those are 2/3 n^3 for the decomposition and
2 n^2 for each right-hand side, an inverse 2 n^3 in all. Not counted, and small beside these: the assignment, and all
that is elementwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["counted", "flops_of_forward"]

R = TypeVar("R")


def counted(work: Callable[[], R]) -> tuple[R, int]:
    """What it returns, and the FLOPs that it took."""
    counter = FlopCounterMode(display=False, custom_mapping=_SOLVES)
    with counter:
        result = work()
    return result, counter.get_total_flops()


def flops_of_forward(module: nn.Module, row: torch.Tensor) -> int:
    """Of one row, ``(1, ...)``."""
    with torch.no_grad():
        return counted(lambda: module(row))[1]


def _solve(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    size, columns = left[-1], right[-1] if len(right) == len(left) else 1
    return 2 * size**3 // 3 + 2 * size**2 * columns


def _invert(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * matrix[-1] ** 3


_SOLVES = {torch.ops.aten._linalg_solve_ex: _solve, torch.ops.aten.linalg_inv_ex: _invert}
