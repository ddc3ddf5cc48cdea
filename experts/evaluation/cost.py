"""What learning costs: time, memory, arithmetic, parameters, bytes sent, bytes kept.

FLOPs are those of ``torch.utils.flop_counter``: 2 for a multiply-accumulate of products and convolutions. It counts
neither what is added in place nor a factorisation, so a ridge is added by its textbook count (Golub and Van Loan,
"Matrix computations", 4th ed., sec. 4.2.5): n^3/3 for Cholesky and n^2 for each right-hand side of a triangular system.

Accuracy per kept kilobyte makes methods comparable that keep different things: images to replay, a router's statistics.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from experts.errors import UndefinedFigure

__all__ = ["Holdings", "TaskCost", "accuracy_per_kilobyte", "count_flops", "count_solves", "measured", "solve_flops"]

Result = TypeVar("Result")

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """What a method has, and has done, after some tasks."""

    num_parameters: int
    """Trained values that its answers need; a frozen trunk's are not trained."""

    num_updated: int
    """Trained values that the last task changed or added."""

    kept_bytes: int
    """Of what it must keep of past data to go on learning: images to replay, a router's statistics."""

    sent_bytes: int
    """Bytes that left the peer that owns the data, since the beginning: its images where one model learns from all,
    its statistics and experts where peers exchange those."""

    flops: int
    """Spent on learning since the beginning, trunk and teacher included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCost:
    """What one task cost, and what the method holds after it."""

    seconds: float

    peak_memory_bytes: int | None
    """Most resident memory of the whole process meanwhile; None where the system does not tell."""

    flops: int
    num_parameters: int
    parameters_added: int
    parameters_updated: int
    kept_bytes: int
    sent_bytes: int


def measured(learn: Callable[[], None], holdings: Callable[[], Holdings]) -> TaskCost:
    """Learn one task and say what it cost.

    Args:
        learn: Learns it.
        holdings: What the method holds; asked before and after.
    """
    before = holdings()
    _reset_peak()
    began_s = time.perf_counter()
    learn()
    seconds = time.perf_counter() - began_s
    peak_bytes, after = _peak_bytes(), holdings()
    return TaskCost(
        seconds=seconds,
        peak_memory_bytes=peak_bytes,
        flops=after.flops - before.flops,
        num_parameters=after.num_parameters,
        parameters_added=after.num_parameters - before.num_parameters,
        parameters_updated=after.num_updated,
        kept_bytes=after.kept_bytes,
        sent_bytes=after.sent_bytes - before.sent_bytes,
    )


def count_flops(function: Callable[[], Result]) -> tuple[Result, int]:
    """Call it once, and count its products and convolutions, backward passes included."""
    # Imported here: only the evaluation counts.
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    with FlopCounterMode(display=False) as counter:
        result = function()
    return result, counter.get_total_flops()


def count_solves(function: Callable[[], Result]) -> tuple[Result, int]:
    """Call it once, and count what ridges and distances are made of, where it is called: scatters, Cholesky factors,
    triangular systems.

    It counts no product otherwise, and so hardly slows down training steps that are taken meanwhile.
    """
    with _Solves() as counter:
        result = function()
    return result, counter.flops


class _Solves(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FLOPS_OF:
            self.flops += _FLOPS_OF[func](*(tuple(part.shape) for part in args))
        return func(*args, **(kwargs or {}))


_FLOPS_OF: dict[Any, Callable[..., int]] = {
    torch.Tensor.addmm_: lambda _, left, right: 2 * left[0] * left[1] * right[1],
    torch.linalg.cholesky_ex: lambda matrix: matrix[0] ** 3 // 3,
    torch.linalg.solve_triangular: lambda _, right: right[0] ** 2 * right[1],
}
"""By the shapes of what it is given."""


def solve_flops(size: int, num_columns: int) -> int:
    """FLOPs of solving a positive definite system.

    Args:
        size: n, of its n x n matrix.
        num_columns: Right-hand sides.
    """
    return size**3 // 3 + 2 * size**2 * num_columns


def accuracy_per_kilobyte(accuracy: float, kept_bytes: int) -> float:
    """Points of accuracy (percent) for each 1,000 bytes kept.

    Raises:
        UndefinedFigure: If nothing is kept: such a method pays in another way.
    """
    if kept_bytes <= 0:
        raise UndefinedFigure("accuracy per kept kilobyte", reason="nothing is kept")
    return 100 * accuracy / (kept_bytes / 1000)


def _reset_peak() -> None:
    """Linux forgets the peak on a 5 (man 5 proc_pid_clear_refs); elsewhere there is no such file."""
    with suppress(OSError):
        _RESET.write_text("5")


def _peak_bytes() -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None
