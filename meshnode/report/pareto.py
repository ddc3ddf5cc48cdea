"""Which of several ways nobody beats in accuracy and in cost at once."""

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Where the points stand that no other dominates, by rising cost.

    Args:
        points: ``(cost, accuracy)`` of each: less cost is better, and more accuracy.

    Returns: Indices. One point dominates another if it is no worse in both and better in one; of equal points all stay.
    """
    front: list[int] = []
    best = float("-inf")
    best_cost = float("-inf")
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        cost, accuracy = points[index]
        if accuracy > best or (accuracy == best and cost == best_cost):
            front.append(index)
            best, best_cost = accuracy, cost
    return front
