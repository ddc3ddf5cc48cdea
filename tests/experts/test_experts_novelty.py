"""Assessment: distances as the equation has them, verdicts per batch, and none where there is no ground for one."""

import equations_continual
import pytest
import torch
from torch import Tensor

from experts.continual.novelty import (
    Assessment,
    MahalanobisScore,
    NoveltyConfig,
    NoveltyDetector,
    bootstrap_threshold,
    pooled,
)
from experts.errors import NothingToLearnFrom, NotPositiveDefinite, SettingOutOfRange, ShapeMismatch
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics, merge

D = 5
CENTRES = {"a": 0, "b": 1, "new": 2}


def rows(name: str, count: int, seed: int) -> Tensor:
    """A cloud for each class, stretched alike."""
    noise = torch.randn(count, D, generator=torch_generator(seed, name)) * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0])
    noise[:, CENTRES[name]] += 6
    return noise


def known(count: int = 200) -> ClassStatistics:
    return ClassStatistics.from_features(
        torch.cat([rows("a", count, 0), rows("b", count, 0)]), ["a"] * count + ["b"] * count
    )


def detector(config: NoveltyConfig | None = None, *, held_out: int = 400, seed: int = 0) -> NoveltyDetector:
    held_out_ND = torch.cat([rows("a", held_out // 2, 1), rows("b", held_out // 2, 1)])
    return NoveltyDetector(
        known(), held_out_ND, {"a", "b"}, config or NoveltyConfig(), torch_generator(seed, "novelty")
    )


def test_distances_are_those_of_the_equation_whatever_parts_the_statistics_came_in() -> None:
    features = torch.cat([rows("a", 7, 0), rows("b", 5, 0)])
    labels = ["a"] * 7 + ["b"] * 5
    parts = [ClassStatistics.from_features(features[s], labels[s]) for s in (slice(0, 3), slice(3, 9), slice(9, 12))]
    merged = merge(merge(parts[2], parts[0]), parts[1])
    asked = torch.cat([rows("new", 3, 2), rows("a", 3, 2)])
    found = MahalanobisScore(merged, ridge=1e-2).distances(asked)
    for row, distance in zip(asked.double().tolist(), found.tolist(), strict=True):
        expected = equations_continual.relative_mahalanobis(features.double().tolist(), labels, row, 1e-2)
        assert distance == pytest.approx(expected, rel=1e-9)


def test_without_the_second_term_the_mean_of_a_class_is_at_distance_0() -> None:
    stats = known()
    score = MahalanobisScore(stats, ridge=1e-3, relative=False)
    assert score.distances(stats.stacked_means()).abs().max() < 1e-9
    assert MahalanobisScore(stats, ridge=1e-3).distances(stats.stacked_means()).max() < 0


def test_of_a_single_class_the_first_term_counts_since_both_are_the_same() -> None:
    single = ClassStatistics.from_features(rows("a", 200, 0), ["a"] * 200)
    asked = rows("new", 5, 1)
    relative, plain = (MahalanobisScore(single, ridge=1e-3, relative=each).distances(asked) for each in (True, False))
    assert torch.equal(relative, plain)
    assert relative.min() > 0


def test_samples_that_do_not_vary_have_no_distance() -> None:
    one_each = ClassStatistics.from_features(torch.eye(2, D), ["a", "b"])
    with pytest.raises(NotPositiveDefinite):
        MahalanobisScore(one_each, ridge=1e-3)
    undecided = NoveltyDetector(
        one_each, rows("a", 200, 1), {"a", "b"}, NoveltyConfig(), torch_generator(0, "novelty")
    ).assess(rows("a", 64, 2), ["a"] * 64)
    assert (undecided.verdict, undecided.distance) == ("undecided", None)


def test_the_threshold_is_a_quantile_of_means_and_falls_as_batches_grow() -> None:
    found = detector()
    distances = MahalanobisScore(known(), ridge=1e-3).distances(torch.cat([rows("a", 200, 1), rows("b", 200, 1)]))
    # The central limit: mean + 2.326 s / sqrt(B) of the batch, and as much for s / sqrt(N) of the held-out rows.
    expected = float(distances.mean() + 2.326 * distances.std() * (1 / 8 + 1 / 20))
    assert found.threshold(64) == pytest.approx(expected, abs=0.1 * float(distances.std()))
    assert found.threshold(8) > found.threshold(64) > found.threshold(256)  # type: ignore[operator]


def test_with_a_quantile_of_half_half_of_the_bootstrap_batches_pass() -> None:
    config = NoveltyConfig(quantile=0.5, num_bootstrap=101)
    values = torch.arange(10, dtype=torch.float64)
    assert bootstrap_threshold(values, 4, config, torch_generator(0, "b")) == pytest.approx(4.5, abs=0.6)
    assert bootstrap_threshold(torch.ones(5), 4, config, torch_generator(0, "b")) == 1.0


def test_thresholds_do_not_depend_on_the_order_in_which_sizes_are_asked_for() -> None:
    first, second = detector(), detector()
    assert (first.threshold(64), first.threshold(10)) == (second.threshold(10), second.threshold(64))[::-1]


def test_false_alarms_are_rare_whichever_few_rows_were_held_out() -> None:
    # With 2 B rows held out, plain percentiles have more than 1 false alarm in 20 for many a sample of them.
    drawn = torch_generator(0, "normal")
    rates = []
    for number in range(40):
        held_out_N = torch.randn(128, generator=drawn, dtype=torch.float64)
        threshold = bootstrap_threshold(held_out_N, 64, NoveltyConfig(), torch_generator(number, "b"))
        batches = torch.randn(2000, 64, generator=drawn, dtype=torch.float64).mean(dim=1)
        rates.append(float((batches > threshold).double().mean()))
    assert sum(rate > 0.015 for rate in rates) <= 2


def test_pure_batches_are_told_apart_with_few_false_alarms() -> None:
    found = detector()
    # Known batches mix the classes as the held-out rows do.
    known_batches = [torch.cat([rows("a", 32, seed), rows("b", 32, seed)]) for seed in range(100, 300)]
    false_alarms = sum(found.assess(batch).verdict == "new" for batch in known_batches)
    assert false_alarms <= 10
    assert all(found.assess(rows("new", 64, seed)).verdict == "new" for seed in range(100, 150))


def test_a_label_that_nobody_has_seen_is_new_at_once_even_with_too_little_held_out_data() -> None:
    found = detector(held_out=20)
    labels = ["a"] * 3 + [None] * 4 + ["zebra"]
    assessment = found.assess(rows("a", 8, 2), labels)
    assert (assessment.verdict, assessment.unseen_labels, assessment.num_labelled) == ("new", ("zebra",), 4)
    assert assessment.threshold is None
    assert assessment.distance is not None


def test_too_little_held_out_data_is_undecided_with_labels_and_without() -> None:
    found = detector(held_out=126)
    assert found.assess(rows("new", 64, 2)).verdict == "undecided"
    assert found.assess(rows("a", 64, 2), ["a"] * 64).verdict == "undecided"
    assert detector(held_out=128).assess(rows("new", 64, 2)).verdict == "new"


def test_known_labels_do_not_make_another_domain_known() -> None:
    assert detector().assess(rows("new", 64, 2), ["a"] * 64).verdict == "new"


def test_everything_is_new_to_whoever_knows_nothing() -> None:
    nothing = NoveltyDetector(None, torch.zeros(0, D), (), NoveltyConfig(), torch_generator(0, "novelty"))
    assert nothing.assess(rows("a", 64, 2)).verdict == "new"


def test_a_task_is_judged_by_most_of_its_batches() -> None:
    found = detector()
    mixed = torch.cat([rows("new", 64, 1), *[torch.cat([rows("a", 32, s), rows("b", 32, s)]) for s in (5, 6, 7)]])
    assert found.assess(mixed[:64]).verdict == "new"
    whole = found.assess_all(mixed)
    assert (whole.verdict, whole.num_rows) == ("known", 256)
    assert found.assess_all(mixed, ["a"] * 255 + ["zebra"]).unseen_labels == ("zebra",)
    assert found.assess_all(mixed, ["a"] * 255 + ["zebra"]).verdict == "new"
    assert found.assess_all(mixed[:10]).num_rows == 10


def test_a_task_without_a_majority_is_undecided() -> None:
    fields = {"num_rows": 64, "num_labelled": 0, "unseen_labels": (), "distance": 1.0, "threshold": 2.0}
    parts = [Assessment(verdict=verdict, num_held_out=9, **fields) for verdict in ("known", "new")]  # type: ignore[arg-type]
    assert pooled(parts, num_labelled=0, unseen_labels=()).verdict == "undecided"


def test_input_that_does_not_fit_is_refused() -> None:
    found = detector()
    with pytest.raises(NothingToLearnFrom):
        found.assess(torch.zeros(0, D))
    with pytest.raises(ShapeMismatch):
        found.assess(torch.zeros(3, D + 1))
    with pytest.raises(ShapeMismatch):
        found.assess(torch.zeros(3, D), ["a"])


@pytest.mark.parametrize(
    "field", [{"batch_size": 0}, {"ridge": 0.0}, {"quantile": 1.0}, {"num_bootstrap": 0}, {"min_held_out": 0}]
)
def test_settings_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(SettingOutOfRange):
        NoveltyConfig(**field)  # type: ignore[arg-type]
