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
    """At most ``capacity`` inputs with their columns; a `Memory`."""

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
        self._inputs: Tensor | None = None  # (capacity, ...) from the first item on
        self._columns = torch.zeros(capacity, dtype=torch.int64)

    def __len__(self) -> int:
        return min(self.capacity, self.num_seen)

    def draw(self) -> tuple[Tensor, Tensor] | None:
        """Distinct items, uniformly."""
        if self._inputs is None:
            return None
        rows = torch.randperm(len(self), generator=self._generator)[: self._draw_size]
        return self._inputs[rows], self._columns[rows]

    def keep(self, inputs_B: Tensor, columns_B: Tensor) -> None:
        """The next items of the stream."""
        if self._inputs is None:
            self._inputs = inputs_B.new_zeros((self.capacity, *inputs_B.shape[1:]))
        places = self._places(len(columns_B))
        for item, place in enumerate(places):
            if place < self.capacity:
                self._inputs[place] = inputs_B[item]
                self._columns[place] = columns_B[item]

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
