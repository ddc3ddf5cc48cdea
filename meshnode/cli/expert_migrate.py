"""``meshnode experts migrate`` and ``rollback``: an expert in another form, and back."""

import json
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.choosing import single_expert
from meshnode.cli.client import ApiFailure
from meshnode.cli.form_settings import form_settings
from meshnode.cli.human import span
from meshnode.cli.output import facts, listing
from meshnode.cli.session import Session

__all__ = ["ScoreName", "migrate_expert", "roll_back_expert"]

LOOK_AGAIN_S = 0.2
TELL_EVERY_S = 2.0
ANSWER_S = 5.0

Uid = Annotated[str, typer.Argument(metavar="UID", help="The expert's uid, or how it begins.")]


class ScoreName(StrEnum):
    """What a unit's importance is: see `experts.preservation.scores`."""

    GATE = "gate"
    FISHER_SUM = "fisher_sum"
    FISHER_THETA2 = "fisher_theta2"
    MAGNITUDE = "magnitude"


class _Similarity(StrEnum):
    ROLE = "role"
    STATISTICS = "statistics"
    CORRELATION = "correlation"


def migrate_expert(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    uid: Uid,
    *,
    to: Annotated[
        str, typer.Option(metavar="KIND", help="The new form: mlp, deep, linear, conv, adapter or an installed one.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of that form, such as hidden=16; may be repeated. Others stay as the old form has them.",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="How far the new form's held-out accuracy may be below the old one's; preserve.margin if not given.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Distillation steps after it, with the old form as teacher; 100 if not given."
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Weight of what is carried over; 1 unless given."),
    ] = None,
    score: Annotated[
        ScoreName | None,
        typer.Option(metavar="|".join(ScoreName), help="What a unit's importance is; gate unless given."),
    ] = None,
    similarity: Annotated[
        _Similarity | None,
        typer.Option(metavar="|".join(_Similarity), help="By what old and new units are alike; role unless given."),
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit", help="Whether layers are fitted to what they came to; they are unless told."
        ),
    ] = None,
) -> None:
    """Carry an expert over into another form, and have that serve in its place.

    The node's trainer does it between two tasks, on what the node still has of the expert's classes. The new form takes
    the old one's place only if it is about as good on images held out. Ctrl+C leaves the daemon to it; the same
    command looks on.
    """
    session = Session.of(context)
    client = session.client()
    expert = single_expert(client.get("experts", {"scope": "mesh"})["experts"], uid)
    path = f"experts/{expert['uid']}/migrate"
    wanted = {
        "to": {"kind": to, "settings": form_settings(settings or (), "--set")},
        "margin": margin,
        "steps": steps,
        "beta": beta,
        "score": score,
        "similarity": similarity,
        "refit": refit,
    }
    body = json.dumps({name: value for name, value in wanted.items() if value is not None}).encode()
    migration = client.post_bytes(path, body, {}, media_type="application/json", wait_s=ANSWER_S)
    told_s = time.monotonic()
    while migration["state"] not in {"done", "refused", "failed"}:
        time.sleep(LOOK_AGAIN_S)
        migration = client.get(path)
        if time.monotonic() - told_s >= TELL_EVERY_S:
            session.output.note(_progress(migration))
            told_s = time.monotonic()
    if migration["error"] is not None:
        error = migration["error"]
        raise ApiFailure(error["code"], error["message"], hint=error["hint"])
    session.output.result(migration, Group(facts(_facts(expert, migration)), *_layers(migration)))


def roll_back_expert(context: typer.Context, uid: Uid) -> None:
    """Have what an expert succeeded serve again in its place, with the weights it had then.

    The successor is kept, and not followed again; migrating into the same form has it back.
    """
    session = Session.of(context)
    client = session.client()
    expert = single_expert(client.get("experts", {"scope": "local"})["experts"], uid)
    document = client.post(f"experts/{expert['uid']}/rollback")
    current = document["expert"]
    shown = f"{current['uid'][:12]} serves again in the place of {expert['uid'][:12]}"
    session.output.result(document, Text(f"{shown}; classes {', '.join(current['classes'])}"))


def _progress(migration: Mapping[str, Any]) -> str:
    match migration["state"]:
        case "waiting":
            return "waiting until the trainer has learned the task it is at"
        case "following":
            return "a peer has made the same: pulling that, and asking it about this node's own images"
        case "distilling":
            left_s = migration["left_s"]
            left = "" if left_s is None else f", {span(left_s)} left"
            return f"distilling: {migration['done']} of {migration['total']} steps{left}"
        case state:
            return str(state)


def _facts(expert: Mapping[str, Any], migration: Mapping[str, Any]) -> list[tuple[str, object]]:
    accuracy = migration["accuracy"]
    config = ", ".join(f"{name} {value}" for name, value in migration["config"].items())
    how = "; a peer had made it already" if migration["followed"] else ""
    return [
        ("expert", f"{migration['successor']}{how}"),
        ("instead of", expert["uid"]),
        ("form", f"{migration['kind']}: {config}"),
        ("classes", ", ".join(expert["classes"])),
        (
            "accuracy",
            f"{100 * accuracy['old']:.1f}% -> {100 * accuracy['new']:.1f}% of {accuracy['samples']} held-out images",
        ),
    ]


def _layers(migration: Mapping[str, Any]) -> list[Any]:
    if not migration["layers"]:
        return []
    columns = ("LAYER", "FROM", "UNITS", "MAPPED", "DUPLICATED", "MERGED", "DROPPED", "IMPORTANCE KEPT")
    rows = [
        (
            layer["name"],
            layer["source"] or "-",
            f"{layer['old_units']} -> {layer['new_units']}",
            layer["mapped"],
            layer["duplicated"],
            layer["merged"],
            layer["dropped"],
            f"{100 * layer['importance_kept']:.1f}%",
        )
        for layer in migration["layers"]
    ]
    return [Text(), listing(columns, rows)]
