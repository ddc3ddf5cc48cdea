"""``meshnode why``: what is not happening, the cause, and what changes it."""

from collections.abc import Sequence
from typing import Annotated

import typer

from meshnode.cli.output import facts
from meshnode.cli.session import Session
from meshnode.doctor.holder import find_holder
from meshnode.errors import DaemonNotRunning, NodeError, Timeout, exit_code_of
from meshnode.home import Home
from meshnode.why import TOPICS, Reason, reasons, standing

__all__ = ["why"]


def _known(topic: str | None) -> str | None:
    if topic is not None and topic not in TOPICS:
        raise typer.BadParameter(f"{topic!r} is none of {', '.join(TOPICS)}")
    return topic


def why(
    context: typer.Context,
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", callback=_known, help=f"One of: {', '.join(TOPICS)}.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also what is as it should be.")] = False,
) -> None:
    """Tell why something is not happening, and how to change it.

    A TOPIC is shown even if all is well with it.
    """
    session = Session.of(context)
    try:
        status = session.client().get("status")
    except NodeError as failure:
        if failure.code not in (DaemonNotRunning.code, Timeout.code):
            raise
        _show(session, [_no_daemon(session, failure)])
        raise typer.Exit(exit_code_of(failure)) from failure
    if topic is None:
        told = standing(status) if everything else reasons(status)
    else:
        told = tuple(reason for reason in standing(status) if reason.topic == topic)
    _show(session, told)


def _show(session: Session, told: Sequence[Reason]) -> None:
    document = {"schema": "meshnode.why/1", "reasons": [reason.document() for reason in told]}
    lines: list[tuple[str, object]] = []
    for before, reason in zip([None, *told], told, strict=False):
        if before is not None and (before.why or reason.why):
            lines.append(("", ""))
        lines.append((reason.topic, reason.state))
        lines += [(name, text) for name, text in (("  why", reason.why), ("  change", reason.change)) if text]
    session.output.result(document, facts(lines) if lines else "Nothing is held up.")


def _no_daemon(session: Session, failure: NodeError) -> Reason:
    """What stands in the way of asking the daemon."""
    change = failure.hint or "`meshnode doctor` looks closer."
    if session.api_url is not None:
        return Reason("daemon", "no answer", failure.message, change)
    home = session.home
    holder = find_holder(home)
    if holder is None:
        return Reason("daemon", "not running", failure.message + _left_behind(home), "`meshnode run` starts one.")
    look_closer = "Wait some seconds. If it stays so, `meshnode doctor` looks closer."
    if isinstance(failure, DaemonNotRunning):
        why = f"{holder} holds {home.path} and has not told where it answers: it is still starting, or about to end"
        return Reason("daemon", "not ready", why, look_closer)
    return Reason("daemon", "no answer", f"{failure.message}, though {holder} holds {home.path}", look_closer)


def _left_behind(home: Home) -> str:
    """What a daemon that was killed has left, and that it does not matter."""
    note = home.read_daemon_note()
    if note is None:
        return ""
    return f"; the last one (process {note.pid}) was killed and left daemon.json, which the next one replaces"
