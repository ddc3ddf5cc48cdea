"""The ridge router: its equation, its priors, and the edges of solving."""

import equations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import NotPositiveDefinite, SettingOutOfRange, ShapeMismatch
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, merge


def long_tailed(seed: int, *, size: int = 40, dim: int = 4) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    labels = ["cat"] * (size - 8) + ["dog"] * 5 + ["emu"] * 3
    features = torch.randn(size, dim, generator=generator)
    features[:, 0] += torch.tensor([float(len(label) * (label[0] == "d")) for label in labels])
    return features, labels


@settings(deadline=None)
@given(seed=st.integers(0, 1000), ridge=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_empirical_prior_is_plain_ridge_regression(seed: int, ridge: float) -> None:
    features, labels = long_tailed(seed)
    stats = ClassStatistics.from_features(features, labels)
    router = solve_ridge(stats, RouterConfig(prior="empirical", ridge=ridge))
    wanted = equations.ridge_regression(features.tolist(), labels, ridge=ridge)
    np.testing.assert_allclose(router.weights, wanted, rtol=1e-8, atol=1e-10)


def test_the_uniform_prior_is_one_over_the_number_of_classes() -> None:
    features, labels = long_tailed(1)
    router = solve_ridge(ClassStatistics.from_features(features, labels), RouterConfig())
    prior = {"cat": 1 / 3, "dog": 1 / 3, "emu": 1 / 3}
    wanted = equations.ridge_weights(features.tolist(), labels, ridge=1e-4, prior=prior)
    assert router.classes == ("cat", "dog", "emu")
    np.testing.assert_allclose(router.weights, wanted, rtol=1e-8, atol=1e-10)


def test_with_equally_frequent_classes_both_priors_agree() -> None:
    features, _ = long_tailed(2, size=30)
    stats = ClassStatistics.from_features(features, ["a", "b", "c"] * 10)
    uniform = solve_ridge(stats, RouterConfig(prior="uniform")).weights
    torch.testing.assert_close(solve_ridge(stats, RouterConfig(prior="empirical")).weights, uniform)


def test_the_uniform_prior_finds_a_rare_class_that_plain_ridge_overlooks() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1010, 3, generator=generator)
    features[1000:, 0] += 2.0
    stats = ClassStatistics.from_features(features, ["common"] * 1000 + ["rare"] * 10)
    centre_of_rare = torch.tensor([[2.0, 0.0, 0.0]])
    assert solve_ridge(stats, RouterConfig(prior="empirical")).class_argmax(centre_of_rare) == ("common",)
    assert solve_ridge(stats, RouterConfig(prior="uniform")).class_argmax(centre_of_rare) == ("rare",)


def test_a_merged_router_is_the_central_one() -> None:
    features, labels = long_tailed(3, size=200, dim=12)
    parts = [ClassStatistics.from_features(features[i::2], labels[i::2]) for i in range(2)]
    central = solve_ridge(ClassStatistics.from_features(features, labels), RouterConfig()).weights
    merged = solve_ridge(merge(parts[1], parts[0]), RouterConfig()).weights
    assert torch.linalg.norm(merged - central) <= 1e-9 * torch.linalg.norm(central)


@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_more_features_than_samples_and_a_class_of_one_part_only(prior: str) -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(90, 600, generator=generator)
    labels = [f"class {i % 9}" for i in range(90)]
    features += 3 * torch.nn.functional.one_hot(torch.arange(90) % 9, 600)
    first = ClassStatistics.from_features(features[:80], labels[:80])
    second = ClassStatistics.from_features(features[80:], ["only here"] * 10)
    router = solve_ridge(merge(first, second), RouterConfig(prior=prior))  # type: ignore[arg-type]
    assert torch.isfinite(router.weights).all()
    assert router.class_argmax(features[80:]) == ("only here",) * 10
    assert router.class_argmax(features[:80]) == tuple(labels[:80])


def test_a_single_class_can_be_solved() -> None:
    stats = ClassStatistics.from_features(torch.ones(1, 3), ["alone"])
    assert solve_ridge(stats, RouterConfig()).class_argmax(torch.randn(4, 3)) == ("alone",) * 4


def test_scores_are_kappa_times_the_linear_form() -> None:
    features, labels = long_tailed(5)
    router = solve_ridge(ClassStatistics.from_features(features, labels), RouterConfig(kappa=7.0))
    scores = router.scores(features)
    assert scores.dtype == torch.float32
    for row, score in zip(features.tolist(), scores, strict=True):
        wanted = equations.class_scores(router.weights.tolist(), row, 7.0)
        np.testing.assert_allclose(score, wanted, rtol=1e-5, atol=1e-5)


def test_scores_of_other_features_are_refused() -> None:
    features, labels = long_tailed(6)
    router = solve_ridge(ClassStatistics.from_features(features, labels), RouterConfig())
    with pytest.raises(ShapeMismatch):
        router.scores(torch.zeros(2, 5))


def test_statistics_of_no_samples_are_named_not_solved() -> None:
    features, labels = long_tailed(7)
    stats = ClassStatistics.from_features(features, labels)
    impossible = ClassStatistics(stats.counts, stats.means, -stats.scatter)
    with pytest.raises(NotPositiveDefinite) as caught:
        solve_ridge(impossible, RouterConfig())
    assert caught.value.size == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kappa", 0.0),
        ("tau", -1.0),
        ("ridge", float("nan")),
        ("ridge", 0.0),
        ("top_k", 0),
        ("prior", "other"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingOutOfRange) as caught:
        RouterConfig(**{name: value})  # type: ignore[arg-type]
    assert caught.value.name == name
