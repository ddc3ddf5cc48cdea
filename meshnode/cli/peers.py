"""``meshnode peers``: who is in the mesh."""

import typer

from meshnode.cli.human import span
from meshnode.cli.output import listing
from meshnode.cli.session import Session

__all__ = ["peers"]

peers = typer.Typer(help="The peers of the mesh.")


@peers.callback()
def _group() -> None:
    """The peers of the mesh."""


@peers.command("ls")
def list_peers(context: typer.Context) -> None:
    """List the live peers.

    This node is among them. HOLDS FOR is how long a peer counts as alive without renewing its record.
    """
    session = Session.of(context)
    document = session.client().get("peers")
    rows = [
        (
            peer["name"] + (" (this node)" if peer["self"] else ""),
            peer["peer_id"],
            peer["experts"],
            span(peer["expires_in_s"]),
        )
        for peer in document["peers"]
    ]
    session.output.result(document, listing(("NAME", "PEER", "EXPERTS", "HOLDS FOR"), rows))
    if not rows:
        session.output.note("No peers yet. A node that starts alone waits for others to join it.")
