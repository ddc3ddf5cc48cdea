"""Private statistics: the analytic Gaussian mechanism, exact sensitivity, the noise's scale, and the accounting."""

from math import exp, pi, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.continual.gaussian import composed, gaussian_delta, gaussian_epsilon, largest_mu
from experts.continual.privacy import SENSITIVITY, PrivacyConfig, PrivatePublisher, Sums, clipped
from experts.errors import (
    CorruptState,
    PrivacyBudgetSpent,
    SettingOutOfRange,
    ShapeMismatch,
    UnknownClasses,
    UnsafeStatistics,
)
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics, merge

D = 4


def config(**settings: float) -> PrivacyConfig:
    fields = {"epsilon": 1.0, "delta": 1e-5, "num_increments": 3, "max_norm": 2.0, "min_samples": 50, **settings}
    return PrivacyConfig(**fields)  # type: ignore[arg-type]


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, D, generator=torch_generator(seed, "rows"))


def publisher(seed: int = 0, **settings: float) -> PrivatePublisher:
    return PrivatePublisher(D, config(**settings), torch_generator(seed, "noise"), fingerprint="f" * 64)


def same(first: ClassStatistics | None, second: ClassStatistics | None) -> bool:
    assert first is not None
    assert second is not None
    return first.to_bytes() == second.to_bytes()


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 0.5), (0.3, 0.2), (1.0, 1.0), (2.5, 0.9), (4.0, 3.0)])
def test_delta_is_the_mass_by_which_one_gaussian_exceeds_e_to_the_epsilon_times_another(
    epsilon: float, mu: float
) -> None:
    step, total = 1e-3, 0.0
    for number in range(-10_000, 14_000):
        x = number * step
        p, q = (exp(-((x - centre) ** 2) / 2) / sqrt(2 * pi) for centre in (mu, 0.0))
        total += step * max(0.0, p - exp(epsilon) * q)
    assert gaussian_delta(epsilon, mu) == pytest.approx(total, rel=1e-4, abs=1e-9)


def test_the_classical_calibration_is_beaten_and_extremes_have_values() -> None:
    # Dwork and Roth 2014, theorem A.1: sigma = sqrt(2 log(1.25 / delta)) / epsilon, for epsilon below 1.
    classical_mu = 0.5 / sqrt(2 * 11.736069)  # log(1.25 / 1e-5)
    assert largest_mu(0.5, 1e-5) > 1.1 * classical_mu
    assert gaussian_delta(1e4, 5.0) == 0.0
    assert gaussian_delta(0.0, 100.0) == pytest.approx(1.0)
    assert gaussian_delta(1.0, 0.0) == 0.0
    assert gaussian_epsilon(0.5, 0.1) == 0.0


@settings(deadline=None, max_examples=50)
@given(epsilon=st.floats(0.01, 20), delta=st.floats(1e-12, 0.1))
def test_calibration_epsilon_and_delta_invert_each_other(epsilon: float, delta: float) -> None:
    mu = largest_mu(epsilon, delta)
    assert gaussian_delta(epsilon, mu) <= delta
    assert gaussian_delta(epsilon, mu * 1.001) > delta
    assert gaussian_epsilon(delta, mu) == pytest.approx(epsilon, rel=1e-6)


def q_of(sums: Sums, max_norm: float) -> torch.Tensor:
    return torch.cat([sums.counts_C, (sums.sums_CD / max_norm).flatten(), (sums.moment_DD / max_norm**2).flatten()])


@settings(deadline=None, max_examples=50)
@given(length=st.floats(0.0, 10.0), seed=st.integers(0, 1000))
def test_one_sample_changes_what_is_published_by_at_most_the_square_root_of_3(length: float, seed: int) -> None:
    direction = torch.nn.functional.normalize(rows(1, seed).double())
    others = clipped(rows(6, seed + 1).double(), 2.0)
    one = clipped(direction * length, 2.0)
    names = ["a", "b", "a", "b", "a", "a"]
    without = q_of(Sums.of(others, names, ("a", "b")), 2.0)
    change = float((q_of(Sums.of(torch.cat([others, one]), [*names, "b"], ("a", "b")), 2.0) - without).norm())
    r = min(1.0, length / 2.0)
    assert change == pytest.approx(sqrt(1 + r**2 + r**4), rel=1e-9)
    assert change <= SENSITIVITY + 1e-9


def test_noise_has_its_deviation_on_every_coordinate() -> None:
    sums = Sums.of(torch.zeros(0, D), [], ("a", "b"))
    draws = [sums.noised(3.0, 2.0, torch_generator(seed, "noise")) for seed in range(3000)]
    counts = torch.stack([draw.counts_C for draw in draws])
    means = torch.stack([draw.sums_CD / 2 for draw in draws])
    moments = torch.stack([draw.moment_DD / 4 for draw in draws])
    assert torch.equal(moments, moments.mT)
    # 3000 draws give a deviation to within 1.3%; five times that is no chance.
    assert counts.std(dim=0) == pytest.approx(3.0, rel=0.065)
    assert means.std(dim=0).flatten() == pytest.approx(3.0, rel=0.065)
    assert moments.std(dim=0).diagonal() == pytest.approx(3.0, rel=0.065)
    assert moments.std(dim=0)[0, 1] == pytest.approx(3.0 / sqrt(2), rel=0.065)
    # In the Frobenius norm, symmetric noise is that of D (D + 1) / 2 independent numbers.
    energy = moments.square().sum(dim=(1, 2)).mean()
    assert float(energy) == pytest.approx(9 * D * (D + 1) / 2, rel=0.05)


def test_without_noise_sums_are_the_statistics() -> None:
    psi, names = rows(40), ["a"] * 25 + ["b"] * 15
    found = Sums.of(psi, names, ("a", "b")).statistics(None)
    expected = ClassStatistics.from_features(psi, names)
    assert found.counts == expected.counts
    assert torch.allclose(found.scatter, expected.scatter)
    assert torch.allclose(found.stacked_means(), expected.stacked_means())


def test_what_is_published_is_safe_to_read_and_to_merge() -> None:
    sender = publisher()
    first = sender.publish(rows(200), ["a"] * 100 + ["b"] * 100, ["a", "b"])
    second = sender.publish(rows(100, 1), ["b"] * 100, ["a", "b"])
    assert first is not None
    assert second is not None
    assert second.classes == ("b",)
    read = ClassStatistics.from_bytes(first.to_bytes())
    assert read.fingerprint == "f" * 64
    assert merge(first, second).counts["b"] == first.counts["b"] + second.counts["b"]


def test_with_much_privacy_to_spend_the_statistics_are_nearly_exact() -> None:
    psi, names = rows(400), ["a"] * 250 + ["b"] * 150
    shared = publisher(epsilon=1e6, max_norm=50.0).publish(psi, names, ["a", "b"])
    assert shared is not None
    expected = ClassStatistics.from_features(psi, names)
    assert (shared.scatter - expected.scatter).norm() < 0.1 * expected.scatter.norm()


def test_a_class_of_few_samples_waits_and_leaves_no_trace_in_what_is_shared() -> None:
    many, few = rows(200), 1.5 * rows(5, 1)
    alone = publisher()
    beside = publisher()
    names = ["a", "rare"]
    assert same(
        alone.publish(many, ["a"] * 200, names),
        beside.publish(torch.cat([many, few]), ["a"] * 200 + ["rare"] * 5, names),
    )
    assert (alone.num_waiting, beside.num_waiting) == (0, 5)
    shared = beside.publish(rows(300, 2), ["rare"] * 300, names)
    assert shared is not None
    assert shared.classes == ("rare",)
    assert beside.num_waiting == 0
    # 305 samples, to within noise of deviation sigma.
    assert abs(shared.counts["rare"] - 305) < 6 * config().sums_sigma


def test_an_increment_of_nothing_shared_is_charged_too() -> None:
    sender = publisher()
    assert sender.publish(rows(0), [], ["a"]) is None
    assert sender.num_published == 1
    assert sender.epsilon_spent(1e-5) > 0


def test_all_increments_together_spend_what_was_promised_and_no_more_are_published() -> None:
    sender = publisher()
    for number in range(3):
        sender.publish(rows(200, number), ["a"] * 200, ["a"])
        mu = composed([config().count_mu, config().sums_mu] * (number + 1))
        assert sender.epsilon_spent(1e-5) == pytest.approx(gaussian_epsilon(1e-5, mu))
    assert sender.epsilon_spent(1e-5) == pytest.approx(1.0, rel=1e-6)
    assert sender.epsilon_of_sample(1e-5) < 0.75
    with pytest.raises(PrivacyBudgetSpent):
        sender.publish(rows(200), ["a"] * 200, ["a"])
    assert sender.num_waiting == 0


def test_noise_is_what_the_promise_asks_for() -> None:
    settings = config(num_increments=1, count_share=0.25)
    mu = largest_mu(1.0, 1e-5)
    assert composed([settings.count_mu, settings.sums_mu]) == pytest.approx(mu)
    assert settings.count_sigma == pytest.approx(1 / (mu / 2))
    assert settings.sums_sigma == pytest.approx(sqrt(3) / (mu * sqrt(0.75)))


def test_a_restart_remembers_what_waits_what_was_told_and_the_noise_to_come() -> None:
    sender = publisher()
    sender.publish(rows(120), ["a"] * 117 + ["rare"] * 3, ["a", "rare"])
    restarted = PrivatePublisher.from_bytes(sender.to_bytes(), config(), fingerprint="f" * 64)
    assert (restarted.num_published, restarted.num_waiting) == (1, 3)
    more = (rows(200, 1), ["rare"] * 200, ["a", "rare"])
    assert same(sender.publish(*more), restarted.publish(*more))


def test_another_promise_or_damaged_bytes_are_refused() -> None:
    data = publisher().to_bytes()
    for bad, promise in ((data, config(epsilon=9.0)), (data[:-1], config()), (b"", config())):
        with pytest.raises(CorruptState):
            PrivatePublisher.from_bytes(bad, promise)


def test_bad_input_is_refused_and_nothing_is_charged() -> None:
    sender = publisher()
    with pytest.raises(ShapeMismatch):
        sender.publish(torch.zeros(2, D + 1), ["a", "a"], ["a"])
    with pytest.raises(ShapeMismatch):
        sender.publish(torch.zeros(2, D), ["a"], ["a"])
    with pytest.raises(UnsafeStatistics):
        sender.publish(torch.full((1, D), float("nan")), ["a"], ["a"])
    with pytest.raises(UnknownClasses):
        sender.publish(torch.zeros(1, D), ["b"], ["a"])
    assert (sender.num_published, sender.num_waiting) == (0, 0)


@pytest.mark.parametrize(
    "field",
    [
        {"epsilon": 0.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"num_increments": 0},
        {"max_norm": 0.0},
        {"min_samples": 0},
        {"count_share": 1.0},
    ],
)
def test_promises_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(SettingOutOfRange):
        config(**field)
