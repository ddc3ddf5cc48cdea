"""Cells run one after another, and what is kept of them: a document each, and beside it what it was made from.

A cell's document stands in the folder only once the cell has ended well, so one that was interrupted begins again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reproduce_cells import ROOT, Cell

__all__ = ["LONGEST_S", "Outcome", "run_cells"]

LONGEST_S = 30 * 60.0
"""A cell that takes longer is ended, and counts as failed."""

TOLD_EVERY_S = 30.0

END_WITHIN_S = 20.0
"""For a benchmark that was asked to end: it ends its own daemons first."""

MEASURED = (0, 10)
"""Exit codes of a benchmark that has measured everything: all targets met, or one missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one cell."""

    cell: Cell
    state: Literal["done", "cached", "failed", "impossible here"]
    seconds: float
    reason: str = ""
    """Why it failed or cannot be run."""


def run_cells(
    cells: Sequence[Cell], out: Path, *, digest: str, tell: Callable[[str], None], longest_s: float = LONGEST_S
) -> list[Outcome]:
    """Run what has not been run on the same source, and go on where one fails.

    Args:
        cells: In their order.
        out: Documents go there as ``NAME.json``, and what commands say as ``logs/NAME.log``.
        digest: Of the source.
        tell: Takes a line of progress.
        longest_s: For one cell, in seconds.
    """
    for folder in (out / "cells", out / "logs", out / "parts"):
        folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for number, cell in enumerate(cells, 1):
        began_s = time.monotonic()
        place = f"[{number}/{len(cells)}] {cell.name}"
        lacking = cell.lacking()
        if lacking:
            outcome = Outcome(
                cell=cell, state="impossible here", seconds=0, reason=f"not installed: {', '.join(lacking)}"
            )
        elif _is_cached(cell, out, digest):
            outcome = Outcome(cell=cell, state="cached", seconds=0)
        else:
            tell(f"{place}: {cell.command}, about {cell.minutes:g} min")
            reason = _run(cell, out, digest, lambda words, place=place: tell(f"{place}: {words}"), longest_s)
            state: Literal["done", "failed"] = "failed" if reason else "done"
            outcome = Outcome(cell=cell, state=state, seconds=time.monotonic() - began_s, reason=reason)
        words = f" in {outcome.seconds:.0f} s" if outcome.state == "done" else ""
        tell(f"{place}: {outcome.state}{words}{f': {outcome.reason}' if outcome.reason else ''}")
        outcomes.append(outcome)
    return outcomes


def _is_cached(cell: Cell, out: Path, digest: str) -> bool:
    try:
        made = json.loads((out / "cells" / f"{cell.name}.json").read_text(encoding="utf-8"))
        json.loads(_kept(cell, out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(made == _made(cell, digest))


def _kept(cell: Cell, out: Path) -> Path:
    """Its document; that of a part lies where no report looks."""
    return out / ("parts" if cell.is_part else "") / f"{cell.name}.json"


def _made(cell: Cell, digest: str) -> dict[str, Any]:
    return {"source": digest, "arguments": list(cell.arguments)}


def _run(cell: Cell, out: Path, digest: str, tell: Callable[[str], None], longest_s: float) -> str:
    """Run a cell and keep its document; returns why it failed, or nothing."""
    kept, made, log = _kept(cell, out), out / "cells" / f"{cell.name}.json", out / "logs" / f"{cell.name}.log"
    for stale in (made, kept):  # the note first: a document alone counts for nothing
        stale.unlink(missing_ok=True)
    partial = out / "cells" / f"{cell.name}.partial"
    runs = (out / "runs" / digest[:16]).absolute()  # the benchmark runs elsewhere, and of another source none counts
    with partial.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *cell.arguments, *(["--resume", str(runs)] if cell.resumes else [])],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # a Ctrl+C is for this script, which then ends the cell in good order
        )
        try:
            code = _wait(process, log, tell, longest_s)
        finally:
            _end(process)
    if code is None:
        return f"it took longer than {longest_s / 60:g} min; see {log}"
    if code not in MEASURED:
        return f"it ended with {code}; {_last_line(log) or f'see {log}'}"
    try:
        document = json.loads(partial.read_text(encoding="utf-8"))
    except ValueError as exc:
        return f"what it printed is no JSON ({exc}); see {partial}"
    # A benchmark may leave out of its command that it was a quick one; this one is what was really run.
    partial.write_text(json.dumps({**document, "command": cell.command}, indent=2) + "\n", encoding="utf-8")
    partial.replace(kept)
    made.write_text(json.dumps(_made(cell, digest)) + "\n", encoding="utf-8")
    return ""


def _wait(process: "subprocess.Popen[bytes]", log: Path, tell: Callable[[str], None], longest_s: float) -> int | None:
    """Its exit code, or None if it takes too long."""
    began_s = time.monotonic()
    while (left_s := began_s + longest_s - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(TOLD_EVERY_S, left_s))
        words = _last_line(log)
        tell(f"{time.monotonic() - began_s:.0f} s{f': {words}' if words else ''}")
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Nothing of it goes on: first it may end its daemons, then its whole group is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> Mapping[str, str]:
    """One thread for each process, as all figures of the record were measured; this repository's packages."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:160] if lines else ""
