"""``meshnode stop``: the running node finishes what is under way, tells the mesh, and ends."""

import time

import typer
from rich.text import Text

from meshnode.cli.session import Session
from meshnode.doctor.holder import find_holder
from meshnode.errors import Timeout

__all__ = ["stop"]

_PATIENCE_S = 15.0
"""Draining is bounded by a few seconds each for answers under way, the goodbye and the trainer."""

_LOOK_AGAIN_S = 0.05


def stop(context: typer.Context) -> None:
    """Stop the running node in good order, and wait until it has ended.

    With --api only the request is made: whether that daemon has ended cannot be seen from here.
    """
    session = Session.of(context)
    client = session.client()
    pid = client.get("status")["pid"]
    client.post("shutdown")
    began_s = time.monotonic()
    # The lock, not the process: its number may be another's, or a zombie's that nobody has buried.
    while session.api_url is None and (holder := find_holder(session.home)) is not None and holder.pid == pid:
        if time.monotonic() - began_s > _PATIENCE_S:
            raise Timeout(f"the end of process {pid}", _PATIENCE_S)
        time.sleep(_LOOK_AGAIN_S)
    stopped = session.api_url is None
    document = {"schema": "meshnode.stop/1", "pid": pid, "stopped": stopped}
    session.output.result(document, Text(f"process {pid} has {'stopped' if stopped else 'been asked to stop'}"))
