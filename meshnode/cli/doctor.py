"""``meshnode doctor``: this home and machine looked over, and mended where the program can."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from meshnode.cli.session import Session
from meshnode.errors import ExitCode
from meshnode.printable import printable

__all__ = ["doctor"]

_STYLES = {"ok": "green", "note": "cyan", "problem": "bold red", "fixed": "bold green"}


def doctor(
    context: typer.Context,
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Also mend what can be: modes of files, and what a kill has left behind.")
    ] = False,
) -> None:
    """Check the node's folder and this machine.

    Ends with 10 if a problem remains. Without --fix nothing is changed. A running daemon is never disturbed.
    """
    from meshnode.doctor.examine import examine  # noqa: PLC0415  # with pydantic and cryptography
    from meshnode.doctor.finding import Finding  # noqa: PLC0415

    session = Session.of(context)

    def ask() -> dict[str, Any]:
        return session.client().get("status")

    findings: Sequence[Finding] = examine(session.home, ask, fix=fix)
    well = all(finding.outcome != "problem" for finding in findings)
    document = {
        "schema": "meshnode.doctor/1",
        "ok": well,
        "findings": [finding.document() for finding in findings],
    }
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = Text(finding.outcome, style=_STYLES[finding.outcome])
        table.add_row(mark, Text(finding.check, style="bold"), Text(printable(finding.message), overflow="fold"))
        if finding.hint:
            hint = Text(printable(finding.hint), overflow="fold", style="dim")
            table.add_row("", "", Padding(hint, (0, 0, 0, 2), expand=False))
    session.output.result(document, table)
    if not well:
        raise typer.Exit(ExitCode.CHECK_FAILED)
