"""``meshnode experts align``: an expert's file in the order of units of another, so that the two can be averaged."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.output import listing
from meshnode.cli.session import Session
from meshnode.errors import Refused, ResourceAbsent
from meshnode.home import create_atomically, write_atomically

__all__ = ["align_expert"]

FILE_MODE = 0o644

_SafeTensors = typer.Argument(metavar="FILE.safetensors", exists=True, dir_okay=False, help="Written by `export`.")


def align_expert(
    context: typer.Context,
    path: Annotated[Path, _SafeTensors],
    *,
    reference: Annotated[
        Path,
        typer.Option(
            "--to", metavar="FILE.safetensors", exists=True, dir_okay=False, help="A replica of the same expert."
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="Task files with images of its classes.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", dir_okay=False, help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
) -> None:
    """Bring a replica that began with other weights into the order of units of this mesh's.

    It computes the same as before, and then descends, for the mesh, from the weights that the other one descends from:
    `meshnode experts import --replace` takes it, and the next round averages the two.
    """
    session = Session.of(context)
    # Torch is for this command only.
    from experts.errors import ExpertsError  # noqa: PLC0415
    from meshnode.aligning import aligned_file  # noqa: PLC0415
    from meshnode.kept_experts import kept_mesh  # noqa: PLC0415

    if out.exists() and not force:
        raise Refused(f"{out} is there already", hint="--force replaces it.")
    mesh = kept_mesh(session.home)
    try:
        result = aligned_file(mesh, path.read_bytes(), reference.read_bytes(), data)
    except ExpertsError as exc:
        raise ResourceAbsent(str(exc), hint="Alignment needs task files with images of the expert's classes.") from exc
    if force:
        write_atomically(out.absolute(), result.data, FILE_MODE)
    elif not create_atomically(out.absolute(), result.data, FILE_MODE):
        raise Refused(f"{out} is there already", hint="--force replaces it.")
    layers = [
        {"layer": layer, "moved": result.moved[layer], "correlation": alike}
        for layer, alike in result.correlations.items()
    ]
    document = {
        "schema": "meshnode.expert-align/1",
        "uid": result.uid,
        "file": str(out),
        "images": result.num_images,
        "layers": layers,
    }
    rows = [(layer["layer"], layer["moved"], f"{layer['correlation']:.2f}") for layer in layers]
    told = Text(f"{result.uid[:12]}, by {result.num_images} images, in {out}")
    session.output.result(document, Group(listing(("LAYER", "UNITS MOVED", "ALIKE"), rows), told))
