"""``meshnode report``: what benchmarks have measured, as one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshnode.cli.output import facts
from meshnode.cli.session import Session
from meshnode.errors import ResourceAbsent

if TYPE_CHECKING:
    from meshnode.report import Report

__all__ = ["report"]

RECORDS = Path("docs") / "results"
"""Where this repository keeps its own, from its root."""


def report(
    context: typer.Context,
    *,
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="Of the results, *.json as benchmarks write them; docs/results if none."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where report.html and report.md go.")
    ] = Path("report-out"),
) -> None:
    """Make one page of what benchmarks have measured, with plots, tables and the targets that are met and missed.

    report.html holds everything and asks nobody for anything; report.md is the same, with its pictures beside it.
    """
    folder = results or RECORDS
    if results is None and not folder.is_dir():
        raise ResourceAbsent(
            f"there is no {RECORDS} here, where this project keeps its results",
            hint="Give the folder of the results, `meshnode report FOLDER`, or go to the root of the repository.",
        )
    from meshnode.report import write_report  # noqa: PLC0415  # with matplotlib

    session = Session.of(context)
    written = write_report(folder, out)
    session.output.result(written.to_dict(), facts(_facts(written)))


def _facts(written: "Report") -> list[tuple[str, object]]:
    targets = [target for document in written.found.documents for target in document.targets]
    met = sum(target.is_met for target in targets)
    return [
        ("page", written.html),
        ("markdown", f"{written.markdown}, with {len(written.pictures)} pictures"),
        ("results", len(written.found.documents)),
        ("targets", f"{met} met, {len(targets) - met} missed"),
        *(
            ("" if place else "outcomes", f"{one.verdict}: {one.expected}")
            for place, one in enumerate(written.outcomes)
        ),
    ]
