"""``meshnode train``: what this node learns from its task files."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.text import Text

from meshnode.cli.human import span, streams_told
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
    """List what was decided on tasks and what came of them.

    DISTANCE is how far the task is from what was known, and what it was held against; GAIN what a short trial brought
    the experts that learned it, or would have. With --json, all of the evidence.
    """
    session = Session.of(context)
    document = session.client().get("train")
    rows = [_row(entry) for entry in document.get("history", ())]
    heads = ("TASK", "OUTCOME", "ACTION", "IMAGES", "DISTANCE", "UNSEEN", "GAIN", "TOOK", "TEACHER %", "REASON")
    session.output.result(document, listing(heads, rows))
    for line in streams_told(document):
        session.output.note(f"stream {line}")
    if not rows:
        session.output.note("Nothing yet; `meshnode why training` says what it waits for.")


def _row(entry: Mapping[str, Any]) -> Sequence[object]:
    decision = entry.get("decision") or {}
    assessment = decision.get("assessment") or {}
    seconds, accuracy = entry.get("seconds"), entry.get("teacher_accuracy")
    unlabelled = entry.get("unlabelled") or 0
    return (
        entry["task"],
        entry["outcome"],
        decision.get("action", "-"),
        f"{sum(entry['classes'].values()) + unlabelled}" + (f" ({unlabelled} unlabelled)" if unlabelled else ""),
        _distance(assessment),
        ", ".join(assessment.get("unseen_labels") or ()) or "-",
        _gain(decision.get("gain")),
        "-" if seconds is None else span(seconds),
        "-" if accuracy is None else f"{100 * accuracy:.1f}",
        entry.get("reason") or _reason(decision),
    )


def _reason(decision: Mapping[str, Any]) -> str:
    """The decision's, and what was tried to begin the expert that it spawned."""
    start, reason = decision.get("start"), str(decision.get("reason", "-"))
    if start is None or start["accuracy_transferred"] is None:
        return reason
    way = f"as {start['source'][:12]}" if start["chosen"] == "transferred" else "at random"
    random, transferred = 100 * start["accuracy_random"], 100 * start["accuracy_transferred"]
    return f"{reason}; it begins {way}: {transferred:.1f} % as {start['source'][:12]}, {random:.1f} % at random"


def _distance(assessment: Mapping[str, Any]) -> str:
    distance, threshold = assessment.get("distance"), assessment.get("threshold")
    if distance is None:
        return "-"
    if threshold is None:
        return f"{distance:.1f}"
    return f"{distance:.1f} {'>' if distance > threshold else '<='} {threshold:.1f}"


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "-"
    return f"{100 * gain['accuracy_now']:.1f} -> {100 * gain['accuracy_updated']:.1f} % of {gain['num_items']}"
