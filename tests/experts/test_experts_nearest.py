"""The nearest expert, against the equation in plain loops."""

import pytest
import torch

from experts.continual.nearest import nearest_expert
from experts.errors import NotPositiveDefinite
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics

D, RIDGE = 4, 1e-3
LABELS = [name for name in "abcd" for _ in range(30)]
CENTRES = {name: torch.randn(D, generator=torch_generator(0, name)) * 3 for name in "abcd"}
SPREAD = torch.tensor([0.1, 0.5, 1.0, 5.0])


def rows(names: list[str], seed: int) -> torch.Tensor:
    noise = torch.randn(len(names), D, generator=torch_generator(seed, "noise")) * SPREAD
    return torch.stack([CENTRES[name] for name in names]) + noise


STATISTICS = ClassStatistics.from_features(rows(LABELS, 1), LABELS)
EXPERTS = {"2": ("a", "b"), "1": ("c",), "3": ("d", "nobody has seen it")}


def by_loops(features: torch.Tensor) -> str:
    within = STATISTICS.scatter / STATISTICS.num_samples
    inverse = torch.linalg.inv(within + RIDGE * within.trace() / D * torch.eye(D, dtype=torch.float64))
    found = {}
    for uid, classes in EXPERTS.items():
        total = 0.0
        for row in features.double():
            of = [row - STATISTICS.means[name] for name in classes if name in STATISTICS.means]
            total += min(float(difference @ inverse @ difference) for difference in of)
        found[uid] = total / len(features)
    return min(found, key=lambda uid: found[uid])


@pytest.mark.parametrize("name", list("abcd"))
def test_items_of_a_class_are_nearest_to_its_expert(name: str) -> None:
    features = rows([name] * 20, 2)
    expected = next(uid for uid, classes in EXPERTS.items() if name in classes)
    assert nearest_expert(features, STATISTICS, EXPERTS) == by_loops(features) == expected


@pytest.mark.parametrize("seed", range(8))
def test_items_of_no_class_are_nearest_to_what_the_equation_says(seed: int) -> None:
    features = torch.randn(10, D, generator=torch_generator(seed, "else")) * 4
    assert nearest_expert(features, STATISTICS, EXPERTS) == by_loops(features)


def test_an_expert_of_whose_classes_nothing_is_known_is_not_near() -> None:
    assert nearest_expert(rows(["a"], 3), STATISTICS, {"x": ("q",)}) is None
    assert nearest_expert(rows(["a"], 3), STATISTICS, {}) is None
    assert nearest_expert(rows(["a"], 3), STATISTICS, {"y": ("d",), "x": ("d",)}) == "x"


def test_what_does_not_vary_has_no_distances() -> None:
    still = ClassStatistics.from_features(torch.ones(2, D), ["a", "b"])
    with pytest.raises(NotPositiveDefinite):
        nearest_expert(torch.ones(1, D), still, EXPERTS)
