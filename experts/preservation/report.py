"""What became of an expert's units on their way into another architecture."""

from dataclasses import dataclass

__all__ = ["LayerReport", "TransferReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One layer of the new architecture."""

    layer: str
    source: str
    """The old layer that it goes on from; ``identity`` for one that passes on what is before it."""
    old_units: int
    new_units: int
    mapped: int
    """Old units with a place in the new layer."""
    duplicated: int
    """New units that are doubles of others."""
    merged: int
    """Old units without a place that another one speaks for."""
    dropped: int
    """Old units of which only the mean is left."""
    new: int
    """New units that go on from none, and are random."""
    importance_kept: float
    """Share of the importance that the mapped units have, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferReport:
    """What became of the units, layer by layer, and of the classes."""

    layers: tuple[LayerReport, ...]
    """The last one's units are classes."""
    classes_kept: tuple[str, ...]
    classes_new: tuple[str, ...]
    """The new expert's, of which the old one knew nothing."""
    classes_dropped: tuple[str, ...]
    """The old expert's that the new one does not answer for."""
