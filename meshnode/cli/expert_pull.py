"""``meshnode experts pull``: host a replica of an expert that the mesh knows."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from meshnode.cli.choosing import single_expert, single_replica
from meshnode.cli.client import ApiFailure
from meshnode.cli.human import size
from meshnode.cli.session import Session

__all__ = ["pull_expert"]

LOOK_AGAIN_S = 0.2
TELL_EVERY_S = 2.0


def pull_expert(
    context: typer.Context,
    uid: Annotated[str, typer.Argument(metavar="UID", help="The expert's uid, or how it begins.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PEER", help="Take it from this peer only: its name, or how its id begins."),
    ] = None,
) -> None:
    """Host a replica of an expert of the mesh.

    Its newest weights are pulled from the peers that have them. A pull that was interrupted goes on where it stopped.
    Ctrl+C leaves the daemon to it; the same command looks on.
    """
    session = Session.of(context)
    client = session.client()
    expert = single_expert(client.get("experts", {"scope": "mesh"})["experts"], uid)
    query = {} if source is None else {"peer": single_replica(expert, source)["peer_id"]}
    path = f"experts/{expert['uid']}/pull"
    pull = client.post(path, query)
    told_s = time.monotonic()
    while pull["state"] in {"waiting", "pulling"}:
        time.sleep(LOOK_AGAIN_S)
        pull = client.get(path)
        if time.monotonic() - told_s >= TELL_EVERY_S:
            session.output.note(_progress(pull))
            told_s = time.monotonic()
    if pull["error"] is not None:
        error = pull["error"]
        raise ApiFailure(error["code"], error["message"], hint=error["hint"])
    classes = ", ".join(expert["classes"])
    shown = "was hosted here already" if expert["local"] else f"is hosted here from now on; it answers for {classes}"
    session.output.result(pull, Text(f"{expert['uid'][:12]} {shown}"))


def _progress(pull: Mapping[str, Any]) -> str:
    if pull["state"] == "waiting":
        return "waiting for another pull to end"
    if pull["total_bytes"] is None:
        return "asking the peers that have it"
    return f"{size(pull['done_bytes'])} of {size(pull['total_bytes'])}"
