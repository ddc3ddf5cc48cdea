"""Errors carry what went wrong as data, and say it in words."""

import inspect

import pytest

from experts import errors
from experts.errors import (
    ExpertsError,
    NotPositiveDefinite,
    RowsUnanswered,
    ShapeMismatch,
    UnknownClasses,
    UnknownDataset,
)


def test_every_error_of_the_package_has_the_one_base() -> None:
    found = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)]
    assert all(issubclass(error, ExpertsError) for error in found)
    assert sorted(error.__name__ for error in found) == errors.__all__


@pytest.mark.parametrize(
    ("error", "data", "words"),
    [
        (
            ShapeMismatch("features", expected=("B", 3), got=(2, 4)),
            {"name": "features", "expected": ("B", 3), "got": (2, 4)},
            "features: expected shape (B, 3), got (2, 4)",
        ),
        (
            ShapeMismatch("rows", expected=(None,), got=()),
            {"expected": (None,), "got": ()},
            "rows: expected shape (any), got ()",
        ),
        (
            RowsUnanswered([4, 1], experts={"y", "x"}),
            {"rows": (4, 1), "experts": ("x", "y")},
            "rows 4, 1 unanswered: silent experts x, y",
        ),
        (
            UnknownClasses({"yak"}, known=["b", "a"]),
            {"classes": ("yak",), "known": ("a", "b")},
            "classes yak are not among a, b",
        ),
        (
            UnknownDataset("x", known={"b", "a"}),
            {"name": "x", "known": ("a", "b")},
            "unknown data set 'x'; known: a, b",
        ),
        (
            NotPositiveDefinite(size=3, ridge=1e-4),
            {"size": 3, "ridge": 1e-4},
            "the 3 x 3 system is not positive definite at ridge 0.0001",
        ),
    ],
)
def test_an_error_says_in_words_what_it_holds_as_data(error: ExpertsError, data: dict[str, object], words: str) -> None:
    assert {name: getattr(error, name) for name in data} == data
    assert str(error) == words
