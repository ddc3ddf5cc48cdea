"""``meshnode id``: who this node is, and where others reach it."""

from typing import Any

import typer

from meshnode.cli.output import facts
from meshnode.cli.session import Session
from meshnode.errors import DaemonNotRunning, ResourceAbsent

__all__ = ["identity"]


def identity(context: typer.Context) -> None:
    """Show the node's peer id and addresses."""
    session = Session.of(context)
    try:
        document = session.client().get("id")
    except DaemonNotRunning:
        document = _at_rest(session)
    lines: list[tuple[str, object]] = [("peer id", document["peer_id"])]
    if document.get("name"):
        lines.insert(0, ("node", document["name"]))
    lines += [("address" if number == 0 else "", address) for number, address in enumerate(document["addresses"])]
    session.output.result(document, facts(lines))


def _at_rest(session: Session) -> dict[str, Any]:
    """The identity of a node that is not running, read from its key, which is never made by asking."""
    if not session.home.identity_key.exists():
        raise ResourceAbsent(
            f"there is no identity in {session.home.path}",
            hint="`meshnode init` makes one, and so does the first `meshnode run`.",
        )
    from meshnode.identity import load_or_create_identity  # noqa: PLC0415  # with cryptography

    session.output.note("The daemon is not running, so there are no addresses to show.")
    key = load_or_create_identity(session.home)
    return {"schema": "meshnode.id/1", "peer_id": str(key.peer_id), "addresses": []}
