"""Amounts as people write them in settings: "5s", "2h", "8GB"."""

import re
from collections.abc import Mapping

__all__ = ["parse_bytes", "parse_duration_s"]

# At most 15 digits: every such number is exact as a float, and no text can make an infinite one.
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)", re.ASCII)

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_BYTES = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def parse_duration_s(text: str) -> float:
    """A span in seconds.

    Args:
        text: A number and ms, s, m or min, h, d; seconds if no unit is written. Upper and lower case are one.

    Raises:
        ValueError: Anything else; a sign or an exponent, for instance.
    """
    return _parse(text, _SECONDS, "a duration such as 500ms, 5s or 2h")


def parse_bytes(text: str) -> int:
    """A size in whole bytes, rounded down.

    Args:
        text: A number and B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024); bytes if
            no unit is written. Upper and lower case are one.

    Raises:
        ValueError: Anything else.
    """
    return int(_parse(text, _BYTES, "a size such as 512MiB or 8GB"))


def _parse(text: str, units: Mapping[str, float], wanted: str) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not {wanted}")
    return float(match[1]) * factor
