"""What the mesh has answered to a batch, and who in it.

Legend: B batch, C class.
"""

from dataclasses import dataclass

import numpy as np

from protocol.identifiers import ExpertUid, PeerId

__all__ = ["Call", "Prediction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One expert asked at one peer for some rows of a batch."""

    expert: ExpertUid
    """The one that was asked: what the gates chose, or an older one that it supersedes, in its place."""
    peer_id: PeerId
    peer_name: str
    rows: tuple[int, ...]
    gates: tuple[float, ...]
    """Gate weight of the expert that was chosen, for each of `rows`."""
    elapsed_ms: float
    """Of the call that carried the question, which may have carried those to other experts of the peer too."""
    error: str | None
    """Why the peer gave no answer; None when it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The mesh's answer to a batch."""

    classes: tuple[str, ...]
    """Columns of `outputs_BC`, sorted by name."""
    outputs_BC: np.ndarray
    """y, float32 ``(B, C)``, rows sum to at most 1."""
    missing_mass_B: np.ndarray
    """Gate weight of experts that did not answer, float32 ``(B,)``; above 0, the row's answer is a partial one."""
    calls: tuple[Call, ...]
    elapsed_ms: float

    @property
    def predictions(self) -> tuple[str, ...]:
        """The class with the largest output, a row."""
        return tuple(self.classes[column] for column in self.outputs_BC.argmax(axis=1))
