"""Amounts as people read them, and foreign text that cannot steer a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.cli.human import size, span
from meshnode.printable import printable


@given(text=st.text())
def test_no_control_character_survives(text: str) -> None:
    assert printable(text).isprintable()


@given(text=st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_what_can_be_printed_is_left_alone(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[31mb", "a\\x1b[31mb"), ("a\nb", "a\\x0ab"), ("\u202eabc", "\\x202eabc"), (7, "7")],
)
def test_escapes_are_shown_as_what_they_are(text: object, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_spans_are_told_in_their_two_largest_units(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (999.9, "1 kB"), (1_234_567, "1.23 MB"), (5e15, "5e+03 TB")],
)
def test_sizes_have_three_digits_and_a_decimal_unit(num_bytes: float, shown: str) -> None:
    assert size(num_bytes) == shown
