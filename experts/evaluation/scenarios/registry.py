"""Scenarios by name, from whoever knows where the data sets are."""

from collections.abc import Callable, Mapping

from experts.errors import UnknownScenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.four_sets import four_sets
from experts.evaluation.scenarios.rotated import rotated_fashion_mnist
from experts.evaluation.scenarios.split import Parts, split_digits, split_fashion_mnist, split_mnist_5k

__all__ = ["SCENARIO_NAMES", "make_scenario"]

Load = Callable[[str], Parts]
"""From the name of a data set to its training and test part."""


def make_scenario(name: str, load: Load, *, order: int = 0) -> Scenario:
    """A scenario by its name.

    Args:
        name: One of `SCENARIO_NAMES`.
        load: Called for each data set that it is made of.
        order: Which class order, order of tasks or draw of images; the same number gives the same scenario everywhere.

    Raises: UnknownScenario: If there is no such name. What ``load`` raises.
    """
    if name not in _MAKERS:
        raise UnknownScenario(name, known=SCENARIO_NAMES)
    return _MAKERS[name](load, order)


def _four_sets(load: Load, order: int) -> Scenario:
    return four_sets(load("fashion-mnist"), load("mnist-5k"), load("digits"), order=order)


_MAKERS: Mapping[str, Callable[[Load, int], Scenario]] = {
    "four-sets": _four_sets,
    "rotated-fashion-mnist": lambda load, order: rotated_fashion_mnist(load("fashion-mnist"), order=order),
    "split-digits": lambda load, order: split_digits(load("digits"), order=order),
    "split-fashion-mnist": lambda load, order: split_fashion_mnist(load("fashion-mnist"), order=order),
    "split-fashion-mnist-60k": lambda load, order: split_fashion_mnist(
        load("fashion-mnist"), order=order, train_images=None
    ),
    "split-mnist-5k": lambda load, order: split_mnist_5k(load("mnist-5k"), order=order),
}

SCENARIO_NAMES = tuple(sorted(_MAKERS))
"""Every name that `make_scenario` knows. The split ones take the first 20,000 images, ``-60k`` all of them."""
