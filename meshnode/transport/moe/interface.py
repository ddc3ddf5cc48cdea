"""What hivemind's own expert protocol asks of a node and offers it, in words that are not hivemind's.

A *cell* is hivemind's name of an expert, ``<name>.<a>.<b>.<c>``; see `protocol.grid`.

Legend: B batch, D feature, W width of a mesh's outputs there.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["CellAnswers", "ExpertInfo", "MoeNetwork"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertInfo:
    """What a server tells of an expert: one float32 tensor goes in, one comes out, row by row."""

    inputs: tuple[int, ...]
    """Shape of a row of the inputs."""
    outputs: tuple[int, ...]
    """Shape of a row of the outputs."""
    expert: str | None = None
    """Uid in its mesh; None of an expert of another system."""
    classes: tuple[str, ...] = ()
    """What the first columns of the outputs are the probabilities of; empty if that is not told."""


class CellAnswers(Protocol):
    """Answers for the experts in this node's cells. Each call raises `ModuleMeshError` for what it cannot answer."""

    def describe(self, cell: str) -> ExpertInfo:
        """Raises: UnknownExpert: None of this node's is there."""
        ...

    async def forward(self, cell: str, features_BD: np.ndarray) -> np.ndarray:
        """Outputs, float32 ``(B, W)``, for finite float32 ``(B, D)``."""
        ...

    async def backward(self, cell: str, features_BD: np.ndarray, grad_outputs_BW: np.ndarray) -> np.ndarray:
        """Gradient of ``sum(outputs * grad_outputs)`` with respect to the features, float32 ``(B, D)``."""
        ...


class MoeNetwork(Protocol):
    """A network that hivemind's own clients and servers are part of."""

    def answering(self, answers: CellAnswers) -> AbstractAsyncContextManager[None]:
        """Answer hivemind's clients within the block; on leaving it, finish what is under way."""
        ...

    async def declare(self, cells: Sequence[str], *, expires_at: float) -> bool:
        """Say in the DHT until `expires_at` that these cells are this peer's. False if some entry was not taken."""
        ...

    async def holders(self, cells: Sequence[str]) -> Mapping[str, str]:
        """Which peer has declared each cell that any has, as far as the DHT knows; unsigned, so anyone may say it."""
        ...
