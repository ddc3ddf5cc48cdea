"""Run the benchmarks again and make a report of what came of them.

Results go to a folder of their own, never to the records in docs/results. A benchmark that has been run on the same
source is not run again; one that was interrupted begins again; one that fails is named, and the others go on. The exit
code is 0 if everything was measured and, with --all, every target is met; 10 if a target is missed, 1 if something
failed.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reproduce_cells import FULL, QUICK, Cell, hours, source_digest
from reproduce_run import Outcome, run_cells

from meshnode.errors import ExitCode, NodeError
from meshnode.report import Report, write_report

OUT = Path("reproduce-out")


def main(arguments: Sequence[str], *, full: Sequence[Cell] = FULL, quick: Sequence[Cell] = QUICK) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments, full, quick)
    cells = [cell for cell in (quick if options.quick else full) if not options.only or cell.name in options.only]
    if options.list:
        listed = {"schema": "modulemesh.cells/1", "cells": [_listed(cell) for cell in cells], "hours": hours(cells)}
        print(json.dumps(listed) if options.json else _list(cells))
        return ExitCode.OK
    out = options.out or OUT / ("quick" if options.quick else "all")
    # A terminated run cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _tell(f"{len(cells)} benchmark(s), about {_span(cells)}; results in {out}")
    try:
        outcomes = run_cells(cells, out, digest=source_digest(), tell=_tell)
        report = write_report(out, out / "report") if any(one.state in ("done", "cached") for one in outcomes) else None
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on with what is left")
        return ExitCode.INTERRUPTED
    except NodeError as failure:
        _tell(f"no report: {failure.message}. {failure.hint or ''}")
        return ExitCode.FAILURE
    print(json.dumps(_document(out, outcomes, report)) if options.json else _summary(outcomes, report))
    if any(one.state == "failed" for one in outcomes) or report is None:
        return ExitCode.FAILURE
    # On so little data, targets are told, and nobody can be held to them.
    return ExitCode.CHECK_FAILED if _missed(report) and not options.quick else ExitCode.OK


def _parse(arguments: Sequence[str], full: Sequence[Cell], quick: Sequence[Cell]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/reproduce", description=__doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--all", action="store_true", help=f"every benchmark at full size: {_span(full)}")
    how.add_argument("--quick", action="store_true", help=f"some of them on little data: {_span(quick)}")
    parser.add_argument("--list", action="store_true", help="say what is run and how long it takes; run nothing")
    names = list(dict.fromkeys(cell.name for cell in (*full, *quick)))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where results go ({OUT}/all, {OUT}/quick)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the summary")
    options = parser.parse_args(arguments)
    if not (options.all or options.quick or options.only or options.list):
        parser.error(f"say what to run: --all ({_span(full)}), --quick ({_span(quick)}) or --only NAME")
    missing = set(options.only or ()) - {cell.name for cell in (quick if options.quick else full)}
    if missing:
        parser.error(f"there is no {'quick ' if options.quick else ''}run of {', '.join(sorted(missing))}")
    return options


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _span(cells: Sequence[Cell]) -> str:
    return f"{hours(cells):.1f} h" if hours(cells) >= 1 else f"{60 * hours(cells):.0f} min"


def _list(cells: Sequence[Cell]) -> str:
    width = max(len(cell.name) for cell in cells)
    lines = []
    for cell in cells:
        lacking = ", ".join(cell.lacking())
        here = f"  (not installed: {lacking})" if lacking else ""
        lines.append(f"{cell.name:{width}} {cell.minutes:4g} min  {cell.command}{here}")
    return "\n".join([*lines, f"{'all':{width}} about {_span(cells)} on two cores"])


def _listed(cell: Cell) -> dict[str, Any]:
    return {"name": cell.name, "command": cell.command, "minutes": cell.minutes, "lacking": cell.lacking()}


def _missed(report: Report) -> list[str]:
    missed: list[str] = report.to_dict()["targets"]["missed"]
    return missed


def _document(out: Path, outcomes: Sequence[Outcome], report: Report | None) -> dict[str, Any]:
    return {
        "schema": "modulemesh.reproduce/1",
        "out": str(out),
        "cells": [
            {
                "name": one.cell.name,
                "command": one.cell.command,
                "state": one.state,
                "seconds": round(one.seconds, 1),
                "reason": one.reason or None,
            }
            for one in outcomes
        ],
        "report": None if report is None else report.to_dict(),
    }


def _summary(outcomes: Sequence[Outcome], report: Report | None) -> str:
    width = max(len(one.cell.name) for one in outcomes)
    lines = []
    for one in outcomes:
        took = f"{one.seconds:6.0f} s" if one.state == "done" else ""
        lines.append(f"{one.cell.name:{width}}  {one.state:15} {took}{one.reason}".rstrip())
    if report is None:
        return "\n".join([*lines, "nothing was measured, so there is no report"])
    missed = _missed(report)
    lines += ["", f"targets: {report.to_dict()['targets']['met']} met, {len(missed)} missed"]
    lines += [f"  MISSED {name}" for name in missed]
    lines += ["outcomes:", *(f"  {one.verdict}: {one.expected}" for one in report.outcomes)]
    return "\n".join([*lines, f"report: {report.html}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
