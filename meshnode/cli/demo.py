"""``meshnode demo``: a mesh of real node processes on this machine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meshnode.cli.session import Session

__all__ = ["demo"]


class _Dataset(StrEnum):
    DIGITS = "digits"
    FASHION_MNIST = "fashion-mnist"


def demo(
    context: typer.Context,
    *,
    dataset: Annotated[
        _Dataset, typer.Option(metavar="digits|fashion-mnist", help="What the nodes learn.")
    ] = _Dataset.DIGITS,
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where the table and the picture go.")
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of every random choice.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the nodes' folders and logs in place.")] = False,
) -> None:
    """Run a whole mesh on this machine.

    Several nodes start, learn and answer together; one is killed, and the mesh recovers from it.
    """
    from meshnode.demo import run_demo  # noqa: PLC0415  # with torch

    session = Session.of(context)
    raise typer.Exit(run_demo(dataset=dataset.value, out=out, seed=seed, keep=keep, as_json=session.output.as_json))
