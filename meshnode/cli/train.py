"""``meshnode train``: what this node learns from its task files."""

from collections.abc import Sequence
from typing import Any

import typer
from rich.text import Text

from meshnode.cli.human import span
from meshnode.cli.output import listing
from meshnode.cli.session import Session

__all__ = ["train"]

train = typer.Typer(help="What this node learns from its task files.")


@train.callback()
def _group() -> None:
    """What this node learns from its task files."""


@train.command("now")
def train_now(context: typer.Context) -> None:
    """Look for new task files now.

    Without this, that happens when the node starts and after each task.
    """
    session = Session.of(context)
    document = session.client().post("train/now")
    session.output.result(document, Text("looking for task files; `meshnode train history` shows what came of them"))


@train.command("history")
def history(context: typer.Context) -> None:
    """List the tasks learned or failed since the node started."""
    session = Session.of(context)
    document = session.client().get("train")
    rows = [_row(entry) for entry in document.get("history", ())]
    session.output.result(document, listing(("TASK", "OUTCOME", "IMAGES", "TOOK", "TEACHER %", "REASON"), rows))
    if not rows:
        session.output.note("Nothing yet since the node started; `meshnode why training` says what it waits for.")


def _row(entry: dict[str, Any]) -> Sequence[object]:
    seconds, accuracy = entry.get("seconds"), entry.get("teacher_accuracy")
    return (
        entry["task"],
        entry["outcome"],
        sum(entry["classes"].values()),
        "-" if seconds is None else span(seconds),
        "-" if accuracy is None else f"{100 * accuracy:.1f}",
        entry.get("reason", "-"),
    )
