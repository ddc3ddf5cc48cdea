"""``meshnode infer``: ask the mesh about images."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from meshnode.cli.output import listing
from meshnode.cli.session import Session

__all__ = ["infer"]

_PATIENCE_S = 60.0
"""Without --timeout the node's own limit decides; this only keeps a hung daemon from holding the terminal."""


def infer(  # noqa: PLR0913, PLR0917  # a parameter an option
    context: typer.Context,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="FILE|-",
            help="An .npy or .npz array (key images), or a PNG or JPEG; - is stdin.",
        ),
    ],
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Experts asked per image; the mesh's own setting if not given."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="The images' task, in a mesh that tells tasks apart.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show which expert on which peer answered.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, max=3600, metavar="SECONDS", help="Longest wait for the answer.")
    ] = None,
    via: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Ask the node at this address, no daemon of one's own; may be repeated."),
    ] = None,
) -> None:
    """Classify images with the experts of the mesh.

    The home's own daemon is asked, which sends features only. With --via the node there is sent the images themselves.
    """
    from meshnode.cli.pictures import npy_of, read_images  # noqa: PLC0415  # numpy and Pillow are for this command only

    session = Session.of(context)
    if via:
        from meshnode.cli.thin import infer_via  # noqa: PLC0415  # torch and hivemind are for this option only

        document = infer_via(via, read_images(source), top_k=top_k, task=task, timeout_s=timeout)
        session.output.result(document, _answer(document, explain=explain))
        return
    client = session.client()
    query = {"top_k": top_k, "task": task, "timeout_s": timeout}
    document = client.post_bytes(
        "infer",
        npy_of(read_images(source)),
        {name: str(value) for name, value in query.items() if value is not None},
        media_type="application/x-npy",
        # The node keeps to the timeout and says what was missing; it is given a moment to say so.
        wait_s=_PATIENCE_S if timeout is None else timeout + 5.0,
    )
    session.output.result(document, _answer(document, explain=explain))


def _answer(document: Mapping[str, Any], *, explain: bool) -> RenderableType:
    answers = [
        (row, predicted, f"{max(outputs):.3f}", f"{missing:.3f}")
        for row, (predicted, outputs, missing) in enumerate(
            zip(document["predictions"], document["outputs"], document["missing_mass"], strict=True)
        )
    ]
    predictions = listing(("ROW", "CLASS", "SCORE", "MISSING"), answers)
    if not explain:
        return predictions
    route = [
        (
            hop["row"],
            hop["expert"][:12],
            hop.get("peer_name", hop["peer"]),
            f"{hop['gate']:.3f}",
            f"{hop['ms']:.1f}",
            "yes" if hop["ok"] else "no",
        )
        for hop in document["route"]
    ]
    elapsed = Text(f"{document['elapsed_ms']:.1f} ms in all")
    return Group(
        predictions,
        Text(),
        listing(("ROW", "EXPERT", "PEER", "GATE", "MS", "ANSWERED"), route),
        Text(),
        elapsed,
    )
