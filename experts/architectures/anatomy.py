"""What the layers of an architecture are for: the little that has to be known to carry units from one to another."""

from dataclasses import dataclass

__all__ = ["Anatomy", "Role"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One layer of weights, in the order in which they are applied.

    Its weights are those of a linear layer, or of a convolution with zeros around the map (``same``).
    """

    name: str
    """The module has parameters ``{name}.weight`` and, perhaps, ``{name}.bias``."""
    activation: str = "identity"
    """What is applied to each unit: relu, gelu, silu, tanh or identity."""
    norm: str | None = None
    """Name of a layer normalisation between weights and activation, with gain and bias; None for none."""
    pooled: bool = False
    """Whether a unit is a map, whose mean over positions is passed on."""
    skip: bool = False
    """Whether the scaled features are added to the output: its units are then the features themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """An architecture's layers, and what is done to the features before the first."""

    roles: tuple[Role, ...]
    """The last one's units are the classes."""
    input_scale: float = 1.0
    """Factor on the features."""
    input_map: tuple[int, int, int] | None = None
    """Channels, height and width that the features are reshaped to; None if they stay a vector."""
