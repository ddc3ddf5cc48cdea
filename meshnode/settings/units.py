"""Amounts as people write them in settings: "5s", "2h", "8GB", "2MB/s"."""

import re
from collections.abc import Iterable, Mapping

__all__ = [
    "DURATION_PATTERN",
    "RATE_PATTERN",
    "format_duration_s",
    "format_rate",
    "parse_bytes",
    "parse_duration_s",
    "parse_rate",
]

# 15 digits before the point: such a number is exact as a float, and no text can make an infinite one. 20 after it:
# as many as a float of a thousandth or more is ever written with.
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,20})?"
_AMOUNT = re.compile(rf"({_NUMBER}) *([A-Za-z]*)")

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_BYTES = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def _in_any_case(units: Iterable[str]) -> str:
    """A pattern of these units: a regular expression of JSON Schema has no flag for the case."""
    return "|".join("".join(f"[{letter}{letter.upper()}]" for letter in unit) for unit in units if unit)


DURATION_PATTERN = rf"^ *{_NUMBER} *({_in_any_case(_SECONDS)})? *$"
"""What `parse_duration_s` takes, as a regular expression of JSON Schema."""

RATE_PATTERN = rf"^ *{_NUMBER} *({_in_any_case(_BYTES)})? *(/[sS])? *$"
"""What `parse_rate` takes, likewise."""


def parse_duration_s(text: str) -> float:
    """A span in seconds.

    Args:
        text: A number and ms, s, m or min, h, d; seconds if no unit is written. Upper and lower case are one.

    Raises:
        ValueError: Anything else; a sign or an exponent, for instance.
    """
    return _parse(text, _SECONDS, "a duration such as 500ms, 5s or 2h")


def format_duration_s(span_s: float) -> str:
    """A span as people write it, in the largest unit that it is a whole number of: ``2h``, ``90s``, ``500ms``.

    Args:
        span_s: 0, or from a millisecond to 10^11 s. `parse_duration_s` makes exactly this number of the text again.
    """
    for unit in ("d", "h", "m", "s", "ms"):
        amount = round(span_s / _SECONDS[unit])
        if amount and amount * _SECONDS[unit] == span_s:
            return f"{amount}{unit}"
    return f"{span_s!r}s" if span_s else "0s"


def parse_bytes(text: str) -> int:
    """A size in whole bytes, rounded down.

    Args:
        text: A number and B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024); bytes if
            no unit is written. Upper and lower case are one.

    Raises:
        ValueError: Anything else.
    """
    return int(_parse(text, _BYTES, "a size such as 512MiB or 8GB"))


def parse_rate(text: str) -> int:
    """Whole bytes a second, rounded down.

    Args:
        text: A size as `parse_bytes` reads it, and ``/s`` or nothing.

    Raises:
        ValueError: Anything else.
    """
    amount = text.strip().lower().removesuffix("/s")
    return int(_parse(amount, _BYTES, "a rate such as 500kB/s or 2MB/s", written=text))


def format_rate(bytes_per_second: int) -> str:
    """Bytes a second as people write them, in the largest decimal unit that they are a whole number of: ``2MB/s``."""
    for unit in ("TB", "GB", "MB", "kB"):
        if bytes_per_second and bytes_per_second % _BYTES[unit.lower()] == 0:
            return f"{bytes_per_second // _BYTES[unit.lower()]}{unit}/s"
    return f"{bytes_per_second}B/s"


def _parse(text: str, units: Mapping[str, float], wanted: str, *, written: str | None = None) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{written or text!r} is not {wanted}")
    return float(match[1]) * factor
