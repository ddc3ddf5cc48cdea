"""The table of methods: the same ones on either input, runs that add up to rows, replay of as many bytes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from baseline_examples import FlatInputs, task

from experts.data.dataset import ImageDataset
from experts.evaluation.inputs import FlatPixelInputs, PixelInputs
from experts.evaluation.metrics import AccuracyMatrix
from experts.evaluation.scenarios.base import Kind, Scenario, ScenarioTask
from experts.evaluation.suite.method import Method
from experts.evaluation.suite.methods import METHOD_NAMES, VECTOR_SIDE, on_features, on_pixels
from experts.evaluation.suite.networks import fewest_passes, head_setup, network_method, pixel_inputs
from experts.evaluation.suite.settings import EXPERT_HIDDEN, SAME_BYTES, Settings
from experts.evaluation.suite.table import MethodTable, constant_answer

TERMS = ("no trunk",)


def scenario(kind: Kind = "class-incremental") -> Scenario:
    second = task("east", "south", seed=1) if kind == "class-incremental" else task("north", "west", inverted=True)
    return Scenario(name="places", kind=kind, tasks=(as_task(task("north", "west")), as_task(second)))


def as_task(part: ImageDataset) -> ScenarioTask:
    return ScenarioTask(name=part.labels[0], classes=part.classes, train=part, test=part)


def methods(*names: str, kind: Kind = "class-incremental") -> list[Method]:
    offered = on_features(scenario(kind), FlatInputs(), expert_steps=100)
    return [method for name in names for method in offered if method.name == name]


@pytest.mark.parametrize("kind", ["class-incremental", "domain-incremental", "task-incremental"])
def test_every_method_is_there_on_pixels_and_on_the_trunk(kind: Kind) -> None:
    on_either = [
        {method.name for method in offered}
        for offered in (on_pixels(scenario(kind)), on_features(scenario(kind), FlatInputs()))
    ]
    expected = set(METHOD_NAMES) - {SAME_BYTES}
    if kind != "domain-incremental":
        expected -= {"router argmax by domain", "projected ridge by domain"}
    assert on_either == [expected] * 2


def test_a_vector_of_pixels_has_them_all_in_rows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    inputs = FlatPixelInputs(PixelInputs(channels=1, pixels=8))
    assert inputs.shape == (64,)
    assert torch.allclose(255 * inputs(images), torch.from_numpy(images.reshape(3, 64)).float(), atol=1e-3)


def test_large_images_are_made_smaller_before_they_become_a_vector() -> None:
    draw = np.random.default_rng(0)
    large = ImageDataset(draw.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8), ("a", "b", "a", "b"))
    places = dataclasses.replace(scenario(), tasks=(as_task(large),))
    assert pixel_inputs(places).shape == (3, 96, 96)
    assert FlatPixelInputs(pixel_inputs(places, VECTOR_SIDE)).shape == (3 * VECTOR_SIDE**2,)


def test_passes_multiply_the_fewest_and_a_mixture_on_the_trunk_has_experts_as_large_as_ours() -> None:
    places = scenario()  # of 48 images a task
    assert fewest_passes(places) == 83
    chosen = Settings(lr=0.01, passes=4)
    setup = head_setup(places, FlatInputs())
    assert "epochs=332" in network_method("SGD", "trunk", setup, places, chosen).settings
    mixture = network_method("mixture of experts", "trunk", setup, places, chosen).make(0)
    experts, router = 5 * (65 * EXPERT_HIDDEN["class-incremental"] + 9 * 4), 65 * 16 + 17 * 5
    assert mixture.holdings().num_parameters == experts + router


def test_orders_add_up_to_rows_which_forgetting_and_transfer_count_from(tmp_path: Path) -> None:
    told: list[str] = []
    table = MethodTable(terms=TERMS, folder=tmp_path, tell=told.append)
    chosen = methods("SGD", "nearest mean", "joint", kind="task-incremental")
    for order in range(2):
        table.run_order(scenario("task-incremental"), chosen, order)
    figures = table.figures()
    assert {row: len(runs) for row, runs in table.runs.items()} == dict.fromkeys(figures, 2)
    assert figures["nearest mean, trunk"]["std"] == 0.0  # it draws nothing
    assert figures["joint, trunk"]["excess_forgetting"] == 0.0
    assert figures["SGD, trunk"]["forward_transfer"] is not None
    assert np.shape(table.accuracy_matrices()["SGD, trunk"]) == (2, 2, 2)
    assert sum("SGD, trunk: " in line and "%" in line for line in told) == 2


def test_a_kept_run_is_told_from_a_new_one(tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        MethodTable(terms=TERMS, folder=tmp_path, tell=told.append).run_order(scenario(), methods("SLDA"), 0)
    assert "kept from before" not in told[0]
    assert told[1].endswith("kept from before")


def test_a_single_task_has_figures_but_for_what_needs_two(tmp_path: Path) -> None:
    alone = dataclasses.replace(scenario(), tasks=scenario().tasks[:1])
    table = MethodTable(terms=TERMS, folder=tmp_path, tell=lambda _: None)
    table.run_order(alone, methods("SLDA"), 0)
    row = table.figures()["SLDA, trunk"]
    assert row["accuracy"] > 90
    assert row["backward_transfer"] is None


ONE_ANSWER = {
    "class-incremental": ([0.5, 0.0], [0.5, 0.1]),
    "domain-incremental": ([0.5, 0.5], [0.5, 0.6]),
    "task-incremental": ([0.5, 0.5], [0.5, 1.0]),
}


@pytest.mark.parametrize("kind", ONE_ANSWER)
def test_one_answer_to_every_image_is_told_from_others(kind: Kind) -> None:
    constant, other = ONE_ANSWER[kind]
    assert constant_answer(AccuracyMatrix.from_rows([[1.0, 0.0], constant]), scenario(kind))
    assert not constant_answer(AccuracyMatrix.from_rows([[1.0, 0.0], other]), scenario(kind))


def test_a_run_beside_the_table_becomes_no_row() -> None:
    table = MethodTable(terms=TERMS, folder=None, tell=lambda _: None)
    result = table.run(methods("nearest mean")[0], scenario(), seed=3)
    assert result.matrix.average_accuracy() > 0.9
    assert not table.runs


@pytest.mark.parametrize("names", [("nearest mean",), ("routed experts",)])
def test_what_keeps_as_many_bytes_as_experts_is_told_how_many_these_are(names: tuple[str, ...]) -> None:
    asked: list[int] = []

    def beside(kept_bytes: int) -> list[Method]:
        asked.append(kept_bytes)
        return methods("SLDA")

    table = MethodTable(terms=TERMS, folder=None, tell=lambda _: None)
    table.run_order(scenario(), methods(*names), 0, same_bytes=beside)
    if names == ("routed experts",):
        assert asked == [table.runs["routed experts, trunk"][0].costs[-1].kept_bytes]
        assert set(table.figures()) == {"routed experts, trunk", "SLDA, trunk"}
    else:
        assert not asked
