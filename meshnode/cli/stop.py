"""``meshnode stop``: the running node finishes what is under way, tells the mesh, and ends."""

import time
from collections.abc import Mapping
from typing import Any

import typer
from rich.text import Text

from meshnode.cli.client import ApiClient
from meshnode.cli.session import Session
from meshnode.doctor.holder import find_holder
from meshnode.errors import NodeError, Timeout

__all__ = ["stop"]

_PATIENCE_S = 15.0
"""Draining is bounded by a few seconds each for answers under way, the goodbye and the trainer. Handing over, which
comes before, has a bound of its own."""

_LOOK_AGAIN_S = 0.05

_TELL_AFTER_S = 2.0
"""Of handing over: what is over sooner needs no word of patience."""


def stop(context: typer.Context) -> None:
    """Stop the running node in good order, and wait until it has ended.

    What only this node holds it serves until another node has taken it over, for place.handover at most. What was not
    taken over is told at the end.

    With --api only the request is made: whether that daemon has ended cannot be seen from here.
    """
    session = Session.of(context)
    client = session.client()
    pid = client.get("status")["pid"]
    client.post("shutdown")
    handover = _handed_over(session, client) if session.api_url is None else None
    began_s = time.monotonic()
    # The lock, not the process: its number may be another's, or a zombie's that nobody has buried.
    while session.api_url is None and (holder := find_holder(session.home)) is not None and holder.pid == pid:
        if time.monotonic() - began_s > _PATIENCE_S:
            raise Timeout(f"the end of process {pid}", _PATIENCE_S)
        time.sleep(_LOOK_AGAIN_S)
    stopped = session.api_url is None
    document = {"schema": "meshnode.stop/1", "pid": pid, "stopped": stopped, "handover": handover}
    words = [f"process {pid} has {'stopped' if stopped else 'been asked to stop'}", *_last_words(handover)]
    session.output.result(document, Text("\n".join(words)))


def _handed_over(session: Session, client: ApiClient) -> Mapping[str, Any] | None:
    """What became of what only this node held, once that is over; None if the daemon ends without telling."""
    is_told = False
    while True:
        try:
            handover = client.get("handover", {"wait_s": f"{_TELL_AFTER_S:g}"})
        except NodeError:
            return None
        if handover["over"]:
            return {name: handover[name] for name in ("taken", "left", "reason")}
        if handover["under_way"] and not is_told:
            session.output.note(
                "Handing over to other nodes what only this one holds; a second signal to it ends that."
            )
            is_told = True


def _last_words(handover: Mapping[str, Any] | None) -> list[str]:
    if handover is None:
        return []
    taken = [f"{uid[:12]} was taken over by {name}" for uid, name in handover["taken"].items()]
    left = [f"{uid[:12]} was not taken over: {handover['reason']}" for uid in handover["left"]]
    return [*taken, *left]
