"""What is known of one replica that is hosted here, and of weights that come to be one.

Legend: P parameters, B batch, C the expert's classes.
"""

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from experts.architectures.base import Architecture
from meshnode.forms import form_of
from meshnode.state.rows import Reached, Standing
from protocol.identifiers import Digest, ExpertUid
from protocol.records import ExpertAdvert

__all__ = [
    "FOLLOWED",
    "IMPORTED",
    "MIGRATED",
    "PLACED",
    "REDISTILLED",
    "TRAINED",
    "Answer",
    "Descent",
    "HostedExpert",
]

TRAINED, IMPORTED, REDISTILLED = "trained", "imported", "redistilled"
"""Causes of generations that hold something which no other replica has."""

MIGRATED, FOLLOWED = "migrated", "followed"
"""Causes of a successor's first generation: made here of the expert that it succeeds, or pulled from a peer."""


PLACED = "placed"
"""Cause of the first generation of a replica that is hosted only because the mesh had too few of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An expert's output for a batch, and which generation gave it."""

    probabilities: np.ndarray
    """float32 ``(B, C)`` over ``classes``."""
    classes: tuple[str, ...]
    generation: int
    weights: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Where weights come from that an expert is to be hosted with."""

    cause: str = "adopted"
    """From a peer, `PLACED` if this node was not asked to; or `IMPORTED`: then the group does not have them yet."""
    round: int = 0
    """Number of the last averaging round that they hold."""
    origin: Digest | None = None
    """Of the weights that they descend from; None for the first ones of the lineage, or without one for the initial
    ones."""
    lineage: bytes | None = None
    """The document that says which experts this one succeeds, checked; None if it succeeds none."""
    tasks: Collection[str] | None = ()
    """Names of this node's tasks that they were trained on; None where that is unknown."""


@dataclass(slots=True)
class HostedExpert:
    """One replica. `module` is replaced, never changed, so whoever holds it can go on using it."""

    uid: ExpertUid
    classes: tuple[str, ...]
    architecture: Architecture
    module: nn.Module
    generation: int
    weights: Digest
    committed_at: float
    """When these parameters were committed, in seconds since the epoch."""
    since: float
    """From when on it has been hosted without a break, in seconds since the epoch by the DHT's clock."""
    origin: Digest
    """Of the weights that these descend from."""
    ancestors: tuple[ExpertUid, ...] = ()
    """The experts that it succeeds, the oldest first."""
    lineage: Digest | None = None
    """Of the document that says how; None without ancestors."""
    standing: Standing = "current"
    placed: bool = False
    """Whether it is hosted only because the mesh had too few replicas: then it may be given back."""
    round: int = 0
    """Number of the last averaging round that these parameters hold; 0 before any."""
    reference: np.ndarray | None = None
    """What the replica has learned since is its own alone: the mean of the last round, or what it was adopted with,
    float32 ``(P,)``; None if it is not known any more."""
    reference_digest: Digest | None = None
    drift: float = math.inf
    """Distance of the parameters from the reference, relative to its norm; infinite without one."""
    reached: Reached | None = None
    """The last training run that these parameters hold: what an interrupted one goes on from."""
    deltas: list[np.ndarray] | None = None
    """Deltas committed since the current training run began, float32 ``(P,)`` each; None while none is under way."""
    changed: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def num_parameters(self) -> int:
        return self.architecture.num_parameters

    @property
    def num_bytes(self) -> int:
        """Of its parameters, float32."""
        return 4 * self.num_parameters

    @property
    def line(self) -> tuple[ExpertUid, ...]:
        """Its ancestors and itself: the ancestors of an expert that succeeds it."""
        return (*self.ancestors, self.uid)

    def advert(self) -> ExpertAdvert:
        return ExpertAdvert(
            uid=self.uid,
            form=form_of(self.architecture),
            classes=self.classes,
            since=self.since,
            round=self.round,
            generation=self.generation,
            weights=self.weights,
            ancestors=self.ancestors,
            lineage=self.lineage,
        )
