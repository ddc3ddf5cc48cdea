"""Amounts with units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.units import parse_bytes, parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("1.5 m", 90.0),
        ("2min", 120.0),
        ("2h", 7200.0),
        ("1D", 86400.0),
        ("7", 7.0),
    ],
)
def test_durations_are_read_in_the_unit_written(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("8GiB", 8 * 2**30),
        ("1.5kB", 1500),
        ("2MiB", 2**21),
        ("1tb", 10**12),
        ("12", 12),
    ],
)
def test_decimal_and_binary_sizes_differ(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "s", "-5s", "+5s", "1e3s", "5 parsecs", "nan", "inf", "5s5", "\u0665s", "9" * 400]
)
def test_anything_else_is_refused_with_what_was_written(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_s(text)
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


@given(st.text())
def test_no_text_makes_another_failure_or_an_infinite_amount(text: str) -> None:
    for parse in (parse_duration_s, parse_bytes):
        try:
            amount = parse(text)
        except ValueError:
            continue
        assert 0 <= amount < float("inf")
