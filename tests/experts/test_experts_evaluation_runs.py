"""Runs: the whole matrix, what a task costs, what replay keeps, and going on from finished runs."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.data.dataset import ImageDataset
from experts.errors import NothingToLearnFrom, SettingOutOfRange, UndefinedFigure
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.ridge_state import ridge_flops
from experts.evaluation.cost import Holdings, accuracy_per_kilobyte, count_flops, count_solves, measured, solve_flops
from experts.evaluation.inputs import PixelInputs, TrunkInputs
from experts.evaluation.reservoir import Reservoir
from experts.evaluation.runner import RunProgress, RunResult, kept_run, run_scenario, untrained_row
from experts.evaluation.scenarios.base import Scenario, ScenarioTask
from experts.router.ridge import RidgeRouter, RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened

CLASSES = ("a", "b", "c", "d")


class Memoriser(Baseline):
    """Reads the class off the first pixel; of old tasks it forgets a stated share."""

    name = "memoriser"

    def __init__(self, *, forgets: bool = False, foresees: bool = False) -> None:
        super().__init__()
        self._last: tuple[str, ...] = ()
        self._forgets = forgets
        self._foresees = foresees

    def scores(self, images: np.ndarray, allowed: Sequence[str]) -> torch.Tensor:
        scores = torch.full((len(images), len(allowed)), -torch.inf)
        for column, name in enumerate(allowed):
            if name in self.seen or self._foresees:
                known = name in self._last or not self._forgets
                says = torch.from_numpy((images[:, 0, 0] == CLASSES.index(name)).astype(np.float32))
                scores[:, column] = says if known else 0.5 - says
        return scores

    def holdings(self) -> Holdings:
        number = len(self.seen)
        return Holdings(
            num_parameters=10 * number, num_updated=10, kept_bytes=number, sent_bytes=100 * number, flops=1000 * number
        )

    def _learn(self, task: ImageDataset) -> None:
        self._last = task.classes


def part(classes: str) -> ImageDataset:
    labels = tuple(classes) * 3
    images = np.zeros((len(labels), 4, 4), np.uint8)
    images[:, 0, 0] = [CLASSES.index(label) for label in labels]
    return ImageDataset(images, labels)


def scenario(kind: str = "class-incremental", groups: Sequence[str] = ("ab", "cd")) -> Scenario:
    tasks = tuple(
        ScenarioTask(name=group, train=part(group), test=part(group), classes=tuple(group)) for group in groups
    )
    return Scenario(name="small", kind=kind, tasks=tasks)  # type: ignore[arg-type]


def test_a_run_fills_both_matrices_and_says_what_each_task_cost() -> None:
    told: list[RunProgress] = []
    result = run_scenario(Memoriser(forgets=True), scenario(), on_progress=told.append)
    # A class not seen cannot be named; after the second task the first one's classes are read the wrong way round.
    assert result.matrix.rows() == [[1.0, 0.0], [0.0, 1.0]]
    assert result.task_matrix.rows() == [[1.0, None], [0.0, 1.0]]
    assert [(step.task, step.num_tasks, step.name) for step in told] == [(1, 2, "ab"), (2, 2, "cd")]
    assert [(cost.flops, cost.parameters_added, cost.parameters_updated) for cost in result.costs] == [
        (2000, 20, 10)
    ] * 2
    assert [(cost.num_parameters, cost.kept_bytes, cost.sent_bytes) for cost in result.costs] == [
        (20, 2, 200),
        (40, 4, 200),
    ]
    assert all(cost.seconds >= 0 for cost in result.costs)


def test_a_task_not_yet_learned_has_no_entry_unless_the_method_answers() -> None:
    silent = run_scenario(Memoriser(), scenario("task-incremental")).matrix
    assert silent.rows() == [[1.0, None], [1.0, 1.0]]
    with pytest.raises(UndefinedFigure):
        silent.forward_transfer([0.5, 0.5], classes_grow=False)
    foreseeing = run_scenario(Memoriser(foresees=True), scenario("task-incremental")).matrix
    assert foreseeing.rows() == [[1.0, 1.0], [1.0, 1.0]]
    assert foreseeing.forward_transfer([0.5, 0.5], classes_grow=False) == 0.5


def test_domains_are_asked_among_all_classes_from_the_start() -> None:
    result = run_scenario(Memoriser(), scenario("domain-incremental", ("abcd", "abcd")))
    assert result.matrix.rows() == result.task_matrix.rows() == [[1.0, 1.0], [1.0, 1.0]]


def test_of_a_later_task_the_classes_already_seen_may_be_named() -> None:
    result = run_scenario(Memoriser(), scenario(groups=("ab", "bc")))
    # Half of the second task's images are of b, which the first task taught.
    assert result.matrix.rows() == [[1.0, 0.5], [1.0, 1.0]]


def test_methods_see_the_same_tasks_whatever_one_before_them_draws() -> None:
    tasks = scenario()
    before = tasks.digest()

    class Drawing(Memoriser):
        def _learn(self, task: ImageDataset) -> None:
            torch.rand(7)
            np.random.default_rng().random(3)
            super()._learn(task)

    run_scenario(Drawing(), tasks)
    assert tasks.digest() == before == scenario().digest()


def test_the_untrained_row_is_asked_among_each_tasks_classes() -> None:
    assert untrained_row(Memoriser(foresees=True), scenario()) == (1.0, 1.0)
    with pytest.raises(NothingToLearnFrom):
        untrained_row(Memoriser(), scenario())


def test_a_study_goes_on_from_its_finished_runs(tmp_path: Path) -> None:
    made = []

    def run() -> RunResult:
        made.append(1)
        return run_scenario(Memoriser(), scenario("task-incremental"))

    first = kept_run(tmp_path, ["x", "1"], run)
    again = kept_run(tmp_path, ["x", "1"], run)
    assert len(made) == 1
    assert json.dumps(again.to_dict()) == json.dumps(first.to_dict())
    kept_run(tmp_path, ["x", "2"], run)
    assert len(made) == 2
    for path in tmp_path.iterdir():
        path.write_text('{"matrix": [[1.0, 2.0]]}')
    kept_run(tmp_path, ["x", "1"], run)
    kept_run(None, ["x", "1"], run)
    assert len(made) == 4
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".json"]


def test_flops_are_those_of_products_forward_and_back() -> None:
    x = torch.ones(5, 3)
    w = torch.ones(3, 2, requires_grad=True)
    _, flops = count_flops(lambda: (x @ w).sum().backward())  # type: ignore[no-untyped-call]
    assert flops == 2 * 2 * 5 * 3 * 2


def test_the_count_of_a_solve_is_that_of_its_loops() -> None:
    size, columns = 30, 4
    products = sum(row - column for row in range(size) for column in range(row + 1))
    # Two triangular solves a column, each a product for every entry below the diagonal.
    below = 2 * columns * size * (size - 1) // 2
    assert solve_flops(size, columns) == pytest.approx(2 * (products + below), rel=0.15)


def test_what_a_ridge_costs_is_counted_where_it_is_solved_and_other_products_are_not() -> None:
    features_ND = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    labels = ["cat", "dog"] * 100

    def solve() -> RidgeRouter:
        return solve_ridge(ClassStatistics.from_features(features_ND, labels), RouterConfig())

    router, flops = count_solves(solve)
    assert flops == pytest.approx(ridge_flops(200, 40, 2), rel=0.02)
    assert torch.equal(router.weights, solve().weights)
    _, flops = count_solves(lambda: features_ND.T @ features_ND)
    assert flops == 0


def test_peak_memory_is_that_of_the_task_alone() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell")

    def hold(megabytes: int) -> int:
        cost = measured(lambda: torch.ones(megabytes * 250_000).sum() and None, Memoriser().holdings)
        assert cost.peak_memory_bytes is not None
        return cost.peak_memory_bytes

    large, small = hold(200), hold(1)
    assert large - small > 100e6


def test_accuracy_per_kept_kilobyte() -> None:
    assert accuracy_per_kilobyte(0.9, 45_000) == pytest.approx(2.0)
    with pytest.raises(UndefinedFigure):
        accuracy_per_kilobyte(0.9, 0)


@given(capacity=st.integers(1, 9), batches=st.lists(st.integers(1, 5), max_size=8), draw=st.integers(1, 6))
@settings(deadline=None)
def test_a_reservoir_holds_a_sample_of_the_stream_and_draws_distinct_items(
    capacity: int, batches: list[int], draw: int
) -> None:
    reservoir = Reservoir(capacity, draw_size=draw, generator=torch.Generator().manual_seed(1))
    assert reservoir.draw() is None
    seen = 0
    for size in batches:
        numbers = torch.arange(seen, seen + size)
        reservoir.keep(numbers[:, None].float(), numbers)
        seen += size
        drawn = reservoir.draw()
        assert drawn is not None
        items, columns = drawn
        assert len(reservoir) == min(capacity, seen)
        assert len(columns) == min(draw, len(reservoir)) == len(set(columns.tolist()))
        assert torch.equal(items[:, 0].long(), columns)
        assert columns.max() < seen


def test_every_item_stays_with_the_same_probability() -> None:
    kept: Counter[int] = Counter()
    for seed in range(2000):
        reservoir = Reservoir(4, draw_size=4, generator=torch.Generator().manual_seed(seed))
        for start in (0, 6):
            numbers = torch.arange(start, start + 6)
            reservoir.keep(numbers[:, None].float(), numbers)
        drawn = reservoir.draw()
        assert drawn is not None
        kept.update(drawn[1].tolist())
    # Of 12 items four stay; five deviations of a binomial count of 2,000.
    assert all(abs(kept[item] - 2000 / 3) < 5 * (2000 * 2 / 9) ** 0.5 for item in range(12))


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_a_reservoir_of_nothing_is_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(SettingOutOfRange):
        Reservoir(numbers[0], draw_size=numbers[1], generator=torch.Generator())


def test_pixels_are_prepared_and_cost_nothing() -> None:
    inputs = PixelInputs(channels=1, pixels=8)
    images = np.full((2, 8, 8), 51, np.uint8)
    assert inputs(images).shape == (2, *inputs.shape)
    assert torch.allclose(inputs(images), torch.tensor(0.2))
    assert inputs.flops_per_image == 0


def test_features_of_an_array_are_computed_once_and_told_apart_from_anothers() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    trunk = fit_whitened(prepare_images(images, 1, 28), WhitenedConfig(num_patches=4), seed=0)
    asked = []

    def features(of: object, given_: np.ndarray) -> torch.Tensor:
        assert of is trunk
        asked.append(len(given_))
        return torch.full((len(given_), trunk.feature_dim), float(given_[0, 0, 0]))

    inputs = TrunkInputs(trunk, features)  # type: ignore[arg-type]
    first, second = images[:3].copy(), images[3:7].copy()
    for _ in range(2):
        assert inputs(first)[0, 0] == float(first[0, 0, 0])
        assert len(inputs(second)) == 4
    assert asked == [3, 4]
    assert inputs.flops_per_image > 0


def test_a_cost_is_plain_data() -> None:
    result = run_scenario(Memoriser(), scenario())
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict()))).costs == result.costs
    assert {field.name for field in dataclasses.fields(result.costs[0])} >= {"seconds", "peak_memory_bytes", "flops"}
