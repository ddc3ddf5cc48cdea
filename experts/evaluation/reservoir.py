"""What experience replay keeps: a uniform sample of the stream, drawn from without replacement.

Algorithm R (Vitter 1985, "Random sampling with a reservoir", ACM TOMS 11(1)), as in Riemer et al. 2019
(arXiv:1810.11910): item t takes a place with probability capacity / t. Unlike a node's replay memory it holds inputs as
a network takes them, so that a step need not prepare them again.

Legend: B batch.
"""

import torch
from torch import Tensor

from experts.errors import SettingOutOfRange

__all__ = ["Reservoir"]


class Reservoir:
    """At most ``capacity`` items: inputs with their columns, and what else comes with each."""

    def __init__(self, capacity: int, *, draw_size: int, generator: torch.Generator) -> None:
        """
        Args:
            capacity: Items kept, at least 1.
            draw_size: Items replayed a step, at least 1; fewer while fewer are kept.
            generator: Decides who stays and who is replayed, and belongs to this reservoir alone.

        Raises:
            SettingOutOfRange: If a number is below 1.
        """
        for name, value in (("capacity", capacity), ("draw_size", draw_size)):
            if value < 1:
                raise SettingOutOfRange(name, value, allowed="at least 1")
        self.capacity = capacity
        self.num_seen = 0
        self._draw_size = draw_size
        self._generator = generator
        self._parts: tuple[Tensor, ...] = ()  # each (capacity, ...), from the first item on

    def __len__(self) -> int:
        return min(self.capacity, self.num_seen)

    @property
    def num_drawn(self) -> int:
        """Items of the next draw."""
        return min(self._draw_size, len(self))

    def draw(self) -> tuple[Tensor, ...] | None:
        """Distinct items, uniformly: what was kept of each, in the same order; None if nothing is kept yet."""
        if not self._parts:
            return None
        rows = torch.randperm(len(self), generator=self._generator)[: self._draw_size]
        return tuple(part[rows] for part in self._parts)

    def keep(self, *parts: Tensor) -> None:
        """The next items of the stream.

        Args:
            *parts: Inputs ``(B, ...)``, columns ``(B,)`` and whatever else there is of each, every time the same.
        """
        if not self._parts:
            self._parts = tuple(part.new_zeros((self.capacity, *part.shape[1:])) for part in parts)
        for item, place in enumerate(self._places(len(parts[0]))):
            if place < self.capacity:
                for kept, part in zip(self._parts, parts, strict=True):
                    kept[place] = part[item]

    def _places(self, num_items: int) -> list[int]:
        """Where each goes; at or beyond the capacity means nowhere."""
        numbers = torch.arange(self.num_seen, self.num_seen + num_items)
        self.num_seen += num_items
        if self.num_seen <= self.capacity:
            return [int(number) for number in numbers]
        # In float64 a uniform number times t is below t, and every place as likely to 2^-53.
        uniform = torch.rand(num_items, generator=self._generator, dtype=torch.float64)
        drawn = (uniform * (numbers + 1)).long()
        return [int(place) for place in torch.where(numbers < self.capacity, numbers, drawn)]
