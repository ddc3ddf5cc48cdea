"""Which of an expert's replicas average with one another in a round, so that all of them come to one mean.

All at once is exact after one round, but every member then sends something to every other. So a group has at most
so many members, and more replicas mix along the axes of a grid, one axis a round (Ryabinin et al. 2021, Moshpit SGD,
section 3.1): where the grid is full, all of them hold the mean of all after as many rounds as it has axes. Pairs are
the other way: along the edges of a hypercube, which is a grid of twos, or at random (Boyd et al. 2006).
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Literal

from protocol.codec import encode
from protocol.identifiers import digest_of
from protocol.wiretypes import PeerId

__all__ = ["MixingMethod", "cycle_of", "grid_of", "group_in_round", "rounds_to_mean"]

MixingMethod = Literal["group", "hypercube", "random"]
"""``group``: everybody with everybody, up to the group's size, and along a grid beyond it. The others are pairs."""


def group_in_round(
    me: PeerId, replicas: Sequence[PeerId], number: int, *, method: MixingMethod, most: int
) -> tuple[PeerId, ...]:
    """Those that ``me`` averages with in round ``number``, itself among them, in the order of ``replicas``.

    The groups of one round part the replicas: who is in my group has the same group.

    Args:
        me: One of ``replicas``.
        replicas: All of them, sorted; the same at every member.
        number: The round's.
        method: How replicas mix.
        most: Members of a group, at least 2; of no matter for pairs.
    """
    if method == "random":
        return _random_pair(me, replicas, number)
    shape = _shape(len(replicas), method, most)
    if not shape:
        return (me,)
    stride = math.prod(shape[number % len(shape) + 1 :])
    rank = replicas.index(me)
    first = rank - rank // stride % shape[number % len(shape)] * stride
    cells = range(first, first + stride * shape[number % len(shape)], stride)
    return tuple(replicas[cell] for cell in cells if cell < len(replicas))


def grid_of(num_replicas: int, most: int) -> tuple[int, ...]:
    """Sides of the grid that this many replicas mix along; empty for a single one.

    Of the grids with the fewest axes it is the one with the fewest empty cells, and of those the one with the
    smallest groups.

    Args:
        num_replicas: At least 1.
        most: The longest side, at least 2.
    """
    if num_replicas == 1:
        return ()
    axes = 1
    while most**axes < num_replicas:
        axes += 1
    # The longest side follows from the others: what they must at least be multiplied with.
    shapes = [
        (*others, side)
        for others in combinations_with_replacement(range(2, most + 1), axes - 1)
        if (side := -(-num_replicas // math.prod(others))) <= most and side >= max(others, default=2)
    ]
    return min(shapes, key=lambda shape: (math.prod(shape), max(shape), shape))


def cycle_of(num_replicas: int, *, method: MixingMethod, most: int) -> int:
    """Rounds after which what one replica learned has come to all: exactly, or at random to nearly all of them."""
    if method == "random":
        return 2 * math.ceil(math.log2(num_replicas))
    return len(_shape(num_replicas, method, most))


def rounds_to_mean(num_replicas: int, *, method: MixingMethod, most: int) -> int | None:
    """Rounds after which all replicas hold the mean of all, exactly; None if that is only approached."""
    if method == "random":
        return 0 if num_replicas == 1 else 1 if num_replicas == 2 else None
    shape = _shape(num_replicas, method, most)
    return len(shape) if math.prod(shape) == num_replicas else None


def _shape(num_replicas: int, method: MixingMethod, most: int) -> tuple[int, ...]:
    return (2,) * math.ceil(math.log2(num_replicas)) if method == "hypercube" else grid_of(num_replicas, most)


def _random_pair(me: PeerId, replicas: Sequence[PeerId], number: int) -> tuple[PeerId, ...]:
    """By an order that everybody can work out and nobody can foretell long before; the last of an odd number rests."""
    shuffled = sorted(replicas, key=lambda peer: digest_of(encode(["modulemesh/pair", number, peer])))
    first = shuffled.index(me) // 2 * 2
    return tuple(sorted(shuffled[first : first + 2]))
