"""``meshnode experts drop``: host a replica no more."""

from typing import Annotated

import typer
from rich.text import Text

from meshnode.cli.choosing import single_expert
from meshnode.cli.session import Session

__all__ = ["drop_expert"]


def drop_expert(
    context: typer.Context,
    uid: Annotated[str, typer.Argument(metavar="UID", help="The expert's uid, or how it begins.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also if no other node holds it: the mesh then loses what it knows.")
    ] = False,
) -> None:
    """Stop hosting a replica of an expert.

    Refused while no other node shows that it holds one, and while it is in training. It does not come back by itself
    for some hours; `meshnode experts pull` brings it back at once.
    """
    session = Session.of(context)
    client = session.client()
    expert = single_expert(client.get("experts", {"scope": "local"})["experts"], uid)
    document = client.post(f"experts/{expert['uid']}/drop", {"force": "true"} if force else {})
    classes = ", ".join(document["classes"])
    session.output.result(document, Text(f"{expert['uid'][:12]} is hosted here no more; it answers for {classes}"))
