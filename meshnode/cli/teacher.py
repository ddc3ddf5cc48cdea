"""``meshnode teacher``: the models that experts are distilled from."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshnode.cli.output import listing
from meshnode.cli.session import Session
from meshnode.cli.teacher_experts import experts_of_teacher
from meshnode.errors import ResourceAbsent

if TYPE_CHECKING:
    from experts.teachers.sections import Section

__all__ = ["teacher"]

teacher = typer.Typer(help="The models that experts are distilled from.")


@teacher.callback()
def _group() -> None:
    """The models that experts are distilled from."""


@teacher.command("sections")
def list_sections_of(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="file:X.safetensors, package:efficientnet-lite0, timm:NAME, torchvision:NAME, or hf:FOLDER.",
        ),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The teacher's class names, one a line, if it has none of its own."),
    ] = None,
) -> None:
    """List where a teacher can be cut, in order of execution.

    A section, the part before a cut, serves as a trunk, or as what experts learn to match. A cut is valid if all that
    follows depends on it alone. A portable section can be the trunk of a mesh; any other serves on this machine only.
    """
    # Torch is for this command only.
    import torch  # noqa: PLC0415

    from experts.errors import ExpertsError  # noqa: PLC0415
    from experts.teachers.named import load_teacher  # noqa: PLC0415
    from experts.teachers.sections import list_sections  # noqa: PLC0415

    # One image at a time gains nothing from several threads, which spin against each other on a busy machine.
    torch.set_num_threads(1)
    try:
        loaded = load_teacher(name, classes=classes)
        sections = list_sections(loaded)
    except ExpertsError as exc:
        raise ResourceAbsent(str(exc), hint="docs/teachers.md says which names there are and what each needs.") from exc
    document = {
        "schema": "meshnode.teacher-sections/1",
        "teacher": name,
        "digest": loaded.digest,
        "num_classes": len(loaded.classes),
        "input": asdict(loaded.form),
        "sections": [asdict(section) for section in sections],
    }
    columns = ("CUT", "OUTPUT", "PARAMETERS", "MFLOPS", "VALID", "PORTABLE")
    output = Session.of(context).output
    output.result(document, listing(columns, [_row(section) for section in sections]))


teacher.command("experts")(experts_of_teacher)


def _row(section: "Section") -> Sequence[object]:
    return (
        section.cut,
        "x".join(map(str, section.output_shape)),
        section.num_parameters,
        f"{section.flops / 1e6:.3f}",
        "yes" if section.valid else "no",
        "yes" if section.portable else "no",
    )
