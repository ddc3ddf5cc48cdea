"""Metrics: each figure by its equation, and class-incremental prediction."""

import json

import equations_continual
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch, UndefinedFigure, UnknownClasses
from experts.evaluation.metrics import AccuracyMatrix, accuracy, class_incremental_accuracy, spread

shares = st.floats(0.01, 1.0)
square = st.integers(2, 5).flatmap(
    lambda size: st.lists(st.lists(shares, min_size=size, max_size=size), min_size=size, max_size=size)
)


def recorded(rows: list[list[float]]) -> AccuracyMatrix:
    matrix = AccuracyMatrix(len(rows))
    for t, row in enumerate(rows):
        for i, value in enumerate(row):
            matrix.record(t, i, value)
    return matrix


@given(rows=square)
def test_the_figures_follow_their_equations(rows: list[list[float]]) -> None:
    matrix = recorded(rows)
    ratios = equations_continual.retention(rows)
    assert matrix.average_accuracy() == pytest.approx(equations_continual.average_accuracy(rows))
    assert matrix.forgetting() == pytest.approx(equations_continual.forgetting(rows))
    assert matrix.retention() == pytest.approx(ratios)
    assert matrix.mean_retention() == pytest.approx(sum(ratios) / len(ratios))
    assert matrix.least_retention() == pytest.approx(min(ratios))


def test_a_worked_example() -> None:
    matrix = recorded([[1.0, 0.0, 0.0], [0.8, 0.9, 0.0], [0.5, 0.9, 1.0]])
    assert matrix.average_accuracy() == pytest.approx(0.8)
    assert matrix.forgetting() == pytest.approx(0.25)
    assert matrix.retention() == (0.5, 1.0)


def test_forgetting_counts_from_the_best_ever_even_before_the_task_was_learned() -> None:
    assert recorded([[0.5, 0.9], [0.5, 0.6]]).forgetting() == 0.0
    assert recorded([[0.5, 0.95, 0], [0.5, 0.9, 0], [0.5, 0.9, 1]]).forgetting() == pytest.approx(0.025)
    assert recorded([[0.5, 0, 0], [0.7, 0.9, 0], [0.6, 0.9, 1]]).forgetting() == pytest.approx(0.05)


def test_a_single_task_forgets_nothing() -> None:
    matrix = recorded([[0.75]])
    assert (matrix.forgetting(), matrix.mean_retention(), matrix.least_retention()) == (0.0, 1.0, 1.0)


def test_a_task_never_learned_has_nothing_to_lose() -> None:
    assert recorded([[0.0, 0.0], [0.0, 1.0]]).retention() == (1.0,)


def test_the_matrix_is_json_with_gaps_shown() -> None:
    matrix = AccuracyMatrix(2)
    for t, i, value in ((0, 0, 1.0), (1, 0, 0.5), (1, 1, 0.75)):
        matrix.record(t, i, value)
    assert json.loads(json.dumps(matrix.to_dict())) == {
        "accuracy_matrix": [[1.0, None], [0.5, 0.75]],
        "average_accuracy_ratio": 0.625,
        "forgetting_ratio": 0.5,
        "retention_mean_ratio": 0.5,
        "retention_least_ratio": 0.5,
    }


@pytest.mark.parametrize("entry", [(2, 0, 0.5), (0, -1, 0.5), (0, 0, 1.5), (0, 0, float("nan"))])
def test_entries_out_of_range_are_refused(entry: tuple[int, int, float]) -> None:
    with pytest.raises(SettingOutOfRange):
        AccuracyMatrix(2).record(*entry)


def test_a_missing_entry_is_not_taken_for_zero() -> None:
    matrix = AccuracyMatrix(2)
    matrix.record(1, 1, 1.0)
    with pytest.raises(KeyError):
        matrix.average_accuracy()


def test_class_incremental_prediction_is_among_the_classes_seen() -> None:
    outputs = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.0, 0.1, 0.9]])
    labels = ["b", "a", "c"]
    assert class_incremental_accuracy(outputs, "abc", labels, {"a", "b", "c"}) == pytest.approx(2 / 3)
    assert class_incremental_accuracy(outputs, "abc", labels, {"a", "b"}) == pytest.approx(2 / 3)
    assert class_incremental_accuracy(outputs, "abc", labels, {"a", "z"}) == pytest.approx(1 / 3)
    with pytest.raises(UnknownClasses):
        class_incremental_accuracy(outputs, "abc", labels, {"z"})
    with pytest.raises(ShapeMismatch):
        class_incremental_accuracy(outputs, "ab", labels, {"a"})


def test_accuracy_needs_as_many_predictions_as_labels_and_at_least_one() -> None:
    assert accuracy(["a", "b"], ["a", "a"]) == 0.5
    with pytest.raises(ShapeMismatch):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(NothingToLearnFrom):
        accuracy([], [])


@given(data=st.data())
def test_transfers_and_excess_forgetting_follow_their_equations(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 5))
    rows = st.lists(st.lists(shares, min_size=size, max_size=size), min_size=size, max_size=size)
    own, joint = data.draw(rows), data.draw(rows)
    untrained = data.draw(st.lists(shares, min_size=size, max_size=size))
    matrix = recorded(own)
    assert matrix.backward_transfer() == pytest.approx(equations_continual.backward_transfer(own))
    assert matrix.forward_transfer(untrained, classes_grow=False) == pytest.approx(
        equations_continual.forward_transfer(own, untrained)
    )
    assert matrix.excess_forgetting(recorded(joint)) == pytest.approx(equations_continual.excess_forgetting(own, joint))
    assert matrix.excess_forgetting(matrix) == 0.0


def test_what_every_model_loses_to_more_classes_is_no_excess_forgetting() -> None:
    joint = recorded([[1.0, 0.0], [0.8, 0.9]])
    own = recorded([[0.9, 0.0], [0.7, 0.9]])
    assert own.forgetting() == pytest.approx(0.2)
    assert own.excess_forgetting(joint) == pytest.approx(0.0)
    assert recorded([[0.9, 0.0], [0.4, 0.9]]).excess_forgetting(joint) == pytest.approx(0.3)


def test_what_was_known_before_a_task_was_learned_is_not_in_its_excess_forgetting() -> None:
    own, joint = [[0.9, 0.9, 0], [0.9, 0.5, 0], [0.9, 0.5, 1]], [[0.9, 0.0, 0], [0.9, 0.5, 0], [0.9, 0.5, 1]]
    assert recorded(own).excess_forgetting(recorded(joint)) == 0.0


def test_excess_forgetting_needs_a_joint_model_of_the_same_tasks() -> None:
    with pytest.raises(SettingOutOfRange):
        recorded([[1.0, 0.0], [0.5, 1.0]]).excess_forgetting(recorded([[1.0]]))
    assert recorded([[1.0]]).excess_forgetting(recorded([[0.5]])) == 0.0


def test_a_transfer_that_is_not_defined_is_an_error_and_not_zero() -> None:
    two = recorded([[1.0, 0.2], [0.5, 1.0]])
    with pytest.raises(UndefinedFigure, match="cannot be named"):
        two.forward_transfer([0.1, 0.1], classes_grow=True)
    with pytest.raises(UndefinedFigure, match="one task"):
        recorded([[1.0]]).forward_transfer([0.1], classes_grow=False)
    with pytest.raises(UndefinedFigure, match="one task"):
        recorded([[1.0]]).backward_transfer()
    with pytest.raises(ShapeMismatch):
        two.forward_transfer([0.1], classes_grow=False)
    gap = AccuracyMatrix.from_rows([[1.0, None], [0.5, 1.0]])
    with pytest.raises(UndefinedFigure, match="no answer"):
        gap.forward_transfer([0.1, 0.1], classes_grow=False)


def test_a_matrix_is_its_rows() -> None:
    rows = [[1.0, None], [0.5, 0.75]]
    assert AccuracyMatrix.from_rows(rows).rows() == rows
    with pytest.raises(ShapeMismatch):
        AccuracyMatrix.from_rows([[1.0, 0.5]])
    with pytest.raises(SettingOutOfRange):
        AccuracyMatrix.from_rows([])


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_mean_and_deviation_over_runs(values: list[float]) -> None:
    mean, deviation = equations_continual.mean_and_deviation(values)
    found = spread(values)
    assert (found.mean, found.deviation, found.num_runs) == (pytest.approx(mean), pytest.approx(deviation), len(values))


def test_one_run_has_no_deviation_and_none_no_mean() -> None:
    assert (spread([3.0]).mean, spread([3.0]).deviation) == (3.0, None)
    with pytest.raises(UndefinedFigure):
        spread([])
    with pytest.raises(UndefinedFigure):
        spread([1.0, float("nan")])
