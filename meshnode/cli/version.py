"""``meshnode version``: what runs here, for bug reports and for comparing two machines."""

import importlib.metadata
import platform

import typer

from meshnode.cli.output import facts
from meshnode.cli.session import Session

__all__ = ["version"]

_ENGINES = ("hivemind", "torch", "numpy")
"""The dependencies whose version changes what a node does; read from their metadata, none is imported."""


def version(context: typer.Context) -> None:
    """Show the versions that matter to a bug report."""
    document = {
        "schema": "meshnode.version/1",
        "version": importlib.metadata.version("modulemesh"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in _ENGINES},
    }
    lines = [
        ("meshnode", document["version"]),
        ("python", document["python"]),
        ("platform", document["platform"]),
        *((name, importlib.metadata.version(name)) for name in _ENGINES),
    ]
    Session.of(context).output.result(document, facts(lines))
