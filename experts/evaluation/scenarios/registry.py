"""Scenarios by name, from whoever knows where the data sets are."""

from collections.abc import Callable, Mapping

from experts.data.decathlon import DECATHLON_SETS
from experts.data.domains import DOMAINNET_DOMAINS, OFFICE_HOME_DOMAINS
from experts.errors import UnknownScenario
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.collected import collected
from experts.evaluation.scenarios.four_sets import four_sets
from experts.evaluation.scenarios.permuted import permuted_fashion_mnist
from experts.evaluation.scenarios.rotated import drawn_angles, rotated_fashion_mnist
from experts.evaluation.scenarios.split import (
    Parts,
    split_cifar_100,
    split_digits,
    split_fashion_mnist,
    split_imagenet,
    split_mnist_5k,
)

__all__ = ["SCENARIO_NAMES", "make_scenario"]

Load = Callable[[str], Parts]
"""From the name of a data set to its training and test part."""


def make_scenario(name: str, load: Load, *, order: int = 0) -> Scenario:
    """A scenario by its name.

    Args:
        name: One of `SCENARIO_NAMES`.
        load: Called for each data set that it is made of, by a name of `DATASET_NAMES`.
        order: Which class order, order of tasks or draw of images; the same number gives the same scenario everywhere.

    Raises: UnknownScenario: If there is no such name. What ``load`` raises.
    """
    if name not in _MAKERS:
        raise UnknownScenario(name, known=SCENARIO_NAMES)
    return _MAKERS[name](load, order)


def _four_sets(load: Load, order: int) -> Scenario:
    return four_sets(load("fashion-mnist"), load("mnist-5k"), load("digits"), order=order)


def _domainnet(load: Load, order: int) -> Scenario:
    parts = {domain: load(f"domainnet/{domain}") for domain in DOMAINNET_DOMAINS}
    return collected("domainnet", "domain-incremental", parts, order=order)


def _office_home(load: Load, order: int) -> Scenario:
    parts = {domain: load(f"office-home/{domain}") for domain in OFFICE_HOME_DOMAINS}
    return collected("office-home", "domain-incremental", parts, order=order)


def _visual_decathlon(load: Load, order: int) -> Scenario:
    parts = {name: load(f"visual-decathlon/{name}") for name in DECATHLON_SETS}
    return collected("visual-decathlon", "task-incremental", parts, order=order)


_MAKERS: Mapping[str, Callable[[Load, int], Scenario]] = {
    "domainnet": _domainnet,
    "four-sets": _four_sets,
    "office-home": _office_home,
    "permuted-fashion-mnist": lambda load, order: permuted_fashion_mnist(load("fashion-mnist"), order=order),
    "rotated-fashion-mnist": lambda load, order: rotated_fashion_mnist(load("fashion-mnist"), order=order),
    "rotated-fashion-mnist-60k": lambda load, order: rotated_fashion_mnist(
        load("fashion-mnist"), order=order, angles=drawn_angles(order), images_per_domain=60_000
    ),
    "split-cifar-100": lambda load, order: split_cifar_100(load("cifar-100"), order=order),
    "split-digits": lambda load, order: split_digits(load("digits"), order=order),
    "split-fashion-mnist": lambda load, order: split_fashion_mnist(load("fashion-mnist"), order=order),
    "split-fashion-mnist-60k": lambda load, order: split_fashion_mnist(
        load("fashion-mnist"), order=order, train_images=None
    ),
    "split-imagenet": lambda load, order: split_imagenet(load("imagenet"), order=order),
    "split-mnist-5k": lambda load, order: split_mnist_5k(load("mnist-5k"), order=order),
    "visual-decathlon": _visual_decathlon,
}

SCENARIO_NAMES = tuple(sorted(_MAKERS))
"""Every name that `make_scenario` knows. ``split-fashion-mnist`` takes the first 20,000 images, ``-60k`` all;
``rotated-fashion-mnist`` deals 4,000 to each of five fixed angles, ``-60k`` shows all of them from five drawn ones."""
