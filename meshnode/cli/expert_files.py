"""``meshnode experts export`` and ``import``: an expert as a file, through the daemon or, if none runs, in the home."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from meshnode.cli.choosing import single_expert
from meshnode.cli.client import ApiClient
from meshnode.cli.human import size
from meshnode.cli.session import Session
from meshnode.errors import DaemonNotRunning, ExpertFileRefused, Refused
from meshnode.home import create_atomically, write_atomically
from protocol.limits import MAX_FRAME_BYTES

__all__ = ["export_expert", "import_expert"]

CHECK_S = 60.0
"""The daemon checks a file behind its other work, such as solving the router."""

FILE_MODE = 0o644
"""Weights are public: every peer of the mesh serves them."""


def export_expert(
    context: typer.Context,
    uid: Annotated[str, typer.Argument(metavar="UID", help="Of an expert hosted here, or how it begins.")],
    path: Annotated[Path, typer.Argument(metavar="FILE.safetensors", dir_okay=False, help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
) -> None:
    """Write an expert to a file.

    Another machine can import it: beside the weights it says mesh, uid, classes, form, generation and digest.
    """
    session = Session.of(context)
    if path.exists() and not force:  # looked at again when it is written; this spares the work
        raise _is_there(path)
    client = _daemon(session)
    if client is None:
        from meshnode.kept_experts import export_kept  # noqa: PLC0415  # with torch, for whoever has no daemon to ask

        data = export_kept(session.home, uid)
    else:
        hosted = single_expert(client.get("experts", {"scope": "local"})["experts"], uid)
        data = client.get_bytes(f"experts/{hosted['uid']}/file", wait_s=CHECK_S)
    if force:
        write_atomically(path.absolute(), data, FILE_MODE)
    elif not create_atomically(path.absolute(), data, FILE_MODE):
        raise _is_there(path)
    expert = _expert_in(data)
    document = {"schema": "meshnode.expert-export/1", "expert": expert, "file": str(path), "size_bytes": len(data)}
    told = f"{expert['uid'][:12]}, generation {expert['generation']}: {size(len(data))} in {path}"
    session.output.result(document, Text(told))


def import_expert(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="FILE.safetensors", exists=True, dir_okay=False, help="Written by `export`.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Put its weights in the place of those of the replica hosted here.")
    ] = False,
) -> None:
    """Host the expert of a file.

    All of the file is checked: mesh, uid, form, classes, tensors, digest. What it brings is averaged with the other
    replicas in the next round. If no daemon runs it is kept in the home.
    """
    session = Session.of(context)
    if path.stat().st_size > MAX_FRAME_BYTES:
        raise ExpertFileRefused(f"it has more than {size(MAX_FRAME_BYTES)}")
    data = path.read_bytes()
    client = _daemon(session)
    if client is None:
        from meshnode.kept_experts import import_kept  # noqa: PLC0415  # with torch

        advert = import_kept(session.home, data, replace=replace)
        document: dict[str, Any] = {
            "schema": "meshnode.expert-import/1",
            "expert": {
                "uid": advert.uid,
                "classes": list(advert.classes),
                "generation": advert.generation,
                "weights": advert.weights,
            },
        }
    else:
        query = {"replace": "true"} if replace else {}
        document = client.post_bytes(
            "experts/import", data, query, media_type="application/octet-stream", wait_s=CHECK_S
        )
    expert = document["expert"]
    where = "kept here: the next daemon hosts it" if client is None else "hosted here from now on"
    shown = f"{expert['uid'][:12]} is {where}, as generation {expert['generation']}; classes"
    session.output.result(document, Text(f"{shown} {', '.join(expert['classes'])}"))


def _daemon(session: Session) -> ApiClient | None:
    """A client of the daemon; None if the home is this command's to open.

    Raises:
        DaemonNotRunning: None runs, and one was named with ``--api``, or none ever has on this home.
    """
    try:
        return session.client()
    except DaemonNotRunning:
        if session.api_url is not None or not session.home.ledger.exists():
            raise
        return None


def _expert_in(data: bytes) -> dict[str, Any]:
    """What a file that this command was given says of its expert."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    expert = json.loads(header["__metadata__"]["modulemesh"])["expert"]
    assert isinstance(expert, dict)
    return expert


def _is_there(path: Path) -> Refused:
    return Refused(f"{path} is there already", hint="--force replaces it.")
