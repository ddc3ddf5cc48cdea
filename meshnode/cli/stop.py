"""``meshnode stop``: the running node finishes what is under way, tells the mesh, and ends."""

import time

import typer
from rich.text import Text

from meshnode.cli.client import is_alive
from meshnode.cli.session import Session
from meshnode.errors import Timeout

__all__ = ["stop"]

_PATIENCE_S = 15.0
"""Draining is bounded by a few seconds each for answers under way, the goodbye and the trainer."""

_LOOK_AGAIN_S = 0.05


def stop(context: typer.Context) -> None:
    """Stop the running node in good order, and wait until it has ended."""
    session = Session.of(context)
    client = session.client()
    pid = client.get("status")["pid"]
    client.post("shutdown")
    began_s = time.monotonic()
    while is_alive(pid):
        if time.monotonic() - began_s > _PATIENCE_S:
            raise Timeout(f"the end of process {pid}", _PATIENCE_S)
        time.sleep(_LOOK_AGAIN_S)
    took_s = round(time.monotonic() - began_s, 3)
    document = {"schema": "meshnode.stop/1", "pid": pid, "took_s": took_s}
    session.output.result(document, Text(f"process {pid} has ended"))
