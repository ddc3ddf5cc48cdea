"""What `meshnode run` says of the node when it is up."""

from collections.abc import Mapping
from typing import Any

from meshnode.printable import printable

__all__ = ["banner"]


def banner(status: Mapping[str, Any]) -> str:
    """A status document as a few lines for the terminal that the node was started from."""
    mesh = status["mesh"]
    mesh_line = f"{mesh['name']}  {mesh['id']}" if mesh else "none yet; `meshnode why mesh` says what is missing"
    lines = [
        f"ModuleMesh {status['version']}, node {status['name']}",
        f"  peer id    {status['peer_id']}",
        f"  mesh       {mesh_line}",
        f"  device     {status['device']['used']} ({status['device']['reason']})",
        *(f"  listening  {address}" for address in status["addresses"]),
        *(f"  bootstrap  {_bootstrap(entry)}" for entry in status["bootstrap"]),
        f"  api        {status['url']}",
    ]
    return "\n".join(map(printable, lines))


def _bootstrap(entry: Mapping[str, Any]) -> str:
    """An address, how it stands, and why."""
    error = f" ({entry['error']})" if entry["error"] else ""
    return f"{entry['address']}  {entry['state']}{error}"
