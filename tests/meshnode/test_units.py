"""Amounts with units."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshnode.settings.units import (
    DURATION_PATTERN,
    RATE_PATTERN,
    format_duration_s,
    format_rate,
    parse_bytes,
    parse_duration_s,
    parse_rate,
)


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
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate(text)


@given(st.text())
def test_no_text_makes_another_failure_or_an_infinite_amount(text: str) -> None:
    for parse in (parse_duration_s, parse_bytes, parse_rate):
        try:
            amount = parse(text)
        except ValueError:
            continue
        assert 0 <= amount < float("inf")


@pytest.mark.parametrize(
    ("span_s", "text"),
    [
        (5.0, "5s"),
        (0.5, "500ms"),
        (1.5, "1500ms"),
        (90.0, "90s"),
        (120.0, "2m"),
        (7200.0, "2h"),
        (86400.0, "1d"),
        (0.3, "300ms"),
        (0.0, "0s"),
    ],
)
def test_a_span_is_written_in_the_largest_unit_it_is_a_whole_number_of(span_s: float, text: str) -> None:
    assert format_duration_s(span_s) == text


SPANS_S = st.one_of(st.floats(0.001, 86_400), st.floats(0.001, 1e11), st.integers(1, 10**9).map(lambda ms: ms / 1000))


@given(SPANS_S)
@example(0.1 + 0.2)
@example(0.0012345678901234567)
def test_a_written_span_is_read_as_exactly_the_same(span_s: float) -> None:
    text = format_duration_s(span_s)
    assert parse_duration_s(text) == span_s
    assert re.search(DURATION_PATTERN, text)


@given(st.one_of(st.text(), st.from_regex(DURATION_PATTERN)))
@example("5 S")
@example(" 1.5mIn ")
@example("5\u00a0s")
def test_the_pattern_takes_what_is_read_as_a_duration(text: str) -> None:
    try:
        parse_duration_s(text)
    except ValueError:
        assert not re.search(DURATION_PATTERN, text)
    else:
        assert re.search(DURATION_PATTERN, text.strip())


@pytest.mark.parametrize(
    ("text", "rate"),
    [("2MB/s", 2_000_000), ("500 kb/S", 500_000), ("1MiB/s", 2**20), ("64000", 64_000), (" 1.5MB /s ", 1_500_000)],
)
def test_rates_are_read_with_and_without_their_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@given(st.integers(0, 10**13))
def test_a_written_rate_is_read_as_exactly_the_same(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate
    assert re.search(RATE_PATTERN, format_rate(rate))


@given(st.one_of(st.text(), st.from_regex(RATE_PATTERN)))
@example("5 KiB /S")
def test_the_pattern_takes_what_is_read_as_a_rate(text: str) -> None:
    try:
        parse_rate(text)
    except ValueError:
        assert not re.search(RATE_PATTERN, text)
    else:
        assert re.search(RATE_PATTERN, text.strip())
