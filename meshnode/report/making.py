"""Result documents as they are written: one schema for benchmarks and for evaluations of a user's own."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from meshnode import __version__
from meshnode.report.documents import SCHEMA

__all__ = ["bench_document", "rounded"]


def bench_document(
    command: str,
    seeds: Sequence[int],
    figures: Mapping[str, Any],
    *,
    targets: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    digits: int = 3,
) -> dict[str, Any]:
    """The document of one run.

    Args:
        command: The one that printed it, from the root of the repository.
        seeds: All that it used.
        figures: What was to be measured, by the names that others look for.
        targets: For a figure that has one, what it is held against and whether it is met.
        measured: What the figures were made from.
        digits: Decimals to keep of every float: no more than the measurement has.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "command": command,
        "seeds": list(seeds),
        "machine": _machine(),
        "versions": _versions(),
        "figures": rounded(figures, digits),
    }
    if targets is not None:
        document["targets"] = rounded(targets, digits)
    if measured is not None:
        document["measured"] = rounded(measured, digits)
    return document


def rounded(value: Any, digits: int = 3) -> Any:
    """Floats to so many decimals, wherever they stand."""
    if isinstance(value, Mapping):
        return {str(name): rounded(part, digits) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part, digits) for part in value]
    return round(value, digits) if isinstance(value, float) else value


def _machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names this one machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": models[0] if models else platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "hivemind")}
    return {"modulemesh": __version__, "python": platform.python_version(), **libraries}
