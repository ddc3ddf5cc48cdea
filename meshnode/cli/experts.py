"""``meshnode experts``: what the mesh, or this node, can answer."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from meshnode.cli.output import listing
from meshnode.cli.session import Session

__all__ = ["experts"]

experts = typer.Typer(help="The experts and where their replicas are.")


@experts.callback()
def _group() -> None:
    """The experts and where their replicas are."""


@experts.command("ls")
def list_experts(
    context: typer.Context,
    local: Annotated[
        bool, typer.Option("--local/--mesh", help="Those hosted here, or (as usual) the whole mesh's.")
    ] = False,
) -> None:
    """List experts with their classes and replicas."""
    session = Session.of(context)
    document = session.client().get("experts", {"scope": "local" if local else "mesh"})
    columns = ("EXPERT", "KIND", "CLASSES", "PARAMETERS", "HERE", "REPLICAS (GENERATION)")
    session.output.result(document, listing(columns, [_row(expert) for expert in document["experts"]]))
    if not document["experts"]:
        session.output.note("No experts yet. A node makes them from a folder of task files: `meshnode run --data DIR`.")


def _row(expert: dict[str, Any]) -> Sequence[object]:
    replicas = (f"{replica['name']} ({replica['generation']})" for replica in expert["replicas"])
    return (
        expert["uid"][:12],
        expert["kind"],
        ", ".join(expert["classes"]),
        expert["parameters"],
        "yes" if expert["local"] else "no",
        ", ".join(replicas),
    )
