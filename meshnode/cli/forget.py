"""``meshnode forget``: a task, or what a peer contributed, as if it had never been learned."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.output import listing
from meshnode.cli.session import Session

__all__ = ["forget"]

ANSWER_S = 3600.0
"""The trainer may be at a task, and experts may have to be distilled anew."""


def forget(
    context: typer.Context,
    *,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="A task of this node, by its file's name.")] = None,
    peer: Annotated[
        str | None, typer.Option(metavar="PEER", help="A node's name or peer id: what it contributed to the router.")
    ] = None,
    keep_experts: Annotated[
        bool, typer.Option("--keep-experts", help="Leave experts that learned from the task; only name them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of everything.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it be learned, or pulled, again.")] = False,
) -> None:
    """Forget a task that this node has learned, or what a peer has contributed.

    Of a task goes all that was learned from it: its share in the router, here and at the peers, its images in the
    replay memory, its teacher, and the experts that learned from it, which are distilled anew without it where that is
    possible. What cannot be forgotten is named. The task's file stays, and is not learned while the task is
    forgotten; a file that this node has found in a stream goes too.
    """
    if (task is None) == (peer is None):
        raise typer.BadParameter("give one of --task and --peer")
    if undo and (keep_experts or dry_run):
        raise typer.BadParameter("--undo takes neither --keep-experts nor --dry-run")
    if peer is not None and keep_experts:
        raise typer.BadParameter("--keep-experts goes with --task")
    session = Session.of(context)
    wanted = {"task": task, "peer": peer, "undo": undo, "keep_experts": keep_experts, "dry_run": dry_run}
    body = json.dumps(wanted).encode()
    document = session.client().post_bytes("forget", body, {}, media_type="application/json", wait_s=ANSWER_S)
    session.output.result(document, _shown(document))
    if dry_run:
        session.output.note("Nothing was changed.")


def _shown(document: Mapping[str, Any]) -> Group | Text:
    if document["undo"]:
        return Text("it may be learned again" if document["task"] else "what it contributes is taken again")
    dropped = [
        (gone["kind"], gone["name"], gone["count"], gone["note"] or "")
        for gone in sorted(document["dropped"], key=lambda gone: (gone["kind"], gone["name"]))
    ]
    experts = [
        *(("erased", fate["expert"][:12], ", ".join(fate["classes"]), fate["reason"]) for fate in document["retired"]),
        *(
            ("distilled anew", fate["expert"][:12], ", ".join(fate["classes"]), _without(fate))
            for fate in document["redistilled"]
        ),
    ]
    left = [(one["kind"], one["name"][:24], one["reason"]) for one in document["not_forgotten"]]
    sections = (
        ("Dropped:", ("WHAT", "OF", "NUMBER", ""), dropped),
        ("Experts that learned from it:", ("NOW", "EXPERT", "CLASSES", "BECAUSE"), experts),
        ("Not forgotten:", ("WHAT", "OF", "BECAUSE"), left),
    )
    told = [(Text(title), listing(columns, rows)) for title, columns, rows in sections if rows]
    return Group(*told[0], *(part for section in told[1:] for part in (Text(), *section))) if told else Text("nothing")


def _without(fate: Mapping[str, Any]) -> str:
    known = ", ".join(fate["tasks"])
    return f"{fate['reason']}; it knows {known}" if known else str(fate["reason"])
