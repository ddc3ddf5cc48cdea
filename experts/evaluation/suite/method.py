"""A method of the table with its settings, before a seed makes it one that learns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from experts.evaluation.baselines.base import Baseline

__all__ = ["Input", "Method"]

Input = Literal["pixels", "trunk"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    input: Input
    make: Callable[[int], Baseline]
    """A fresh one, from a seed."""
    settings: str
    """What tells it from another of its name."""

    @property
    def row(self) -> str:
        """The row's name."""
        return f"{self.name}, {self.input}"
