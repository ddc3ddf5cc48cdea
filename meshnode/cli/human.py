"""Quantities as people read them in a terminal."""

import itertools
from collections.abc import Mapping
from typing import Any

__all__ = ["size", "span", "streams_told"]


def size(num_bytes: float) -> str:
    """Bytes in decimal units, three digits: ``1.24 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def span(seconds: float) -> str:
    """Seconds in the two largest units that matter: ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 d 1 h``."""
    whole = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, length), (smaller, smaller_length) in itertools.pairwise(units):
        if whole >= length:
            rest = whole % length // smaller_length
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def streams_told(training: Mapping[str, Any]) -> list[str]:
    """How far each stream is: ``sensors: 12 batches seen, 2 tasks found, 3 wait``."""
    lines = []
    for stream in training.get("streams") or ():
        told = [f"{stream['batches']} batches seen", f"{stream['tasks']} tasks found", f"{stream['waiting']} wait"]
        if stream["gathered"]:
            told.append(f"{stream['gathered']} known images gathered")
        if stream["dropped"]:
            told.append(f"{stream['dropped']} batches given up")
        lines.append(f"{stream['name']}: {', '.join(told)}")
    return lines
