"""``meshnode teacher experts``: a whole teacher taken apart into experts of the home's mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.expert_migrate import ScoreName
from meshnode.cli.form_settings import form_settings
from meshnode.cli.human import size
from meshnode.cli.output import listing
from meshnode.cli.session import Session
from meshnode.errors import Refused, ResourceAbsent
from meshnode.home import create_atomically, write_atomically

if TYPE_CHECKING:
    from meshnode.dismantling import Piece

__all__ = ["experts_of_teacher"]

FILE_MODE = 0o644

WEIGHTS = "weights:"


class Activation(StrEnum):
    """Of hidden units: see `experts.preservation.chain`."""

    RELU = "relu"
    GELU = "gelu"
    SILU = "silu"
    TANH = "tanh"
    IDENTITY = "identity"


def experts_of_teacher(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="As for `sections`; or weights:X.safetensors, of dense layers that nothing is known of but a name "
            "for each output (--classes).",
        ),
    ],
    *,
    data: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="Task files with images to look at.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where the experts' files are written.")],
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The teacher's class names, one a line, if it has none of its own."),
    ] = None,
    activation: Annotated[
        Activation, typer.Option(metavar="|".join(Activation), help="Between the layers of weights:X.safetensors.")
    ] = Activation.RELU,
    mapping: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE.toml", help="Which of its classes are which of the mesh's; see docs."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,...", help="Classes of one expert; may be repeated. Unless given, a task file's."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="KIND", help="Form of the experts; the mesh's own unless given.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of that form, such as hidden=16."),
    ] = None,
    score: Annotated[
        ScoreName, typer.Option(metavar="|".join(ScoreName), help="What a unit's importance is.")
    ] = ScoreName.GATE,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Take a teacher apart into experts, a file each.

    The dense layers at its end are carried over, group by group, to experts that read this mesh's features: units that
    tell the group's classes apart are kept. Nothing is trained. `meshnode experts import` hosts such a file.
    """
    if name.startswith(WEIGHTS) and classes is None:
        raise typer.BadParameter("weights alone name no classes: --classes does")
    if settings and to is None:
        raise typer.BadParameter("--set describes a form: it goes with --to")
    session = Session.of(context)
    # Torch is for this command only.
    from experts.errors import ExpertsError  # noqa: PLC0415

    try:
        pieces = _pieces(
            session,
            name,
            data,
            classes=classes,
            activation=activation,
            mapping=mapping,
            groups=[_group(names) for names in group or ()],
            to=to,
            settings=form_settings(settings or (), "--set"),
            score=score,
        )
    except ExpertsError as exc:
        raise ResourceAbsent(str(exc), hint="docs/teachers.md says what can be taken apart, and with what.") from exc
    out.mkdir(parents=True, exist_ok=True)
    written = [_write(piece, out, force=force) for piece in pieces]
    document = {"schema": "meshnode.teacher-experts/1", "teacher": name, "experts": written}
    columns = ("EXPERT", "CLASSES", "UNITS", "IMPORTANCE KEPT", "TEACHER", "EXPERT'S", "IMAGES", "FILE")
    told = Text("Accuracies are on held-out images of the classes, the teacher's asked for these classes alone.")
    session.output.result(document, Group(listing(columns, [_row(each) for each in written]), told))


def _pieces(  # noqa: PLR0913
    session: Session,
    name: str,
    data: Path,
    *,
    classes: Path | None,
    activation: Activation,
    mapping: Path | None,
    groups: Sequence[tuple[str, ...]],
    to: str | None,
    settings: Mapping[str, object],
    score: ScoreName,
) -> "list[Piece]":
    from experts.preservation.transfer import TransferConfig  # noqa: PLC0415
    from experts.preservation.weights_alone import teacher_of_weights  # noqa: PLC0415
    from experts.teachers.capability import read_mapping  # noqa: PLC0415
    from experts.teachers.named import load_teacher  # noqa: PLC0415
    from experts.teachers.weights import path_given  # noqa: PLC0415
    from meshnode.dismantling import groups_in, images_in, look_at, take_out  # noqa: PLC0415
    from meshnode.forms import chosen_form  # noqa: PLC0415
    from meshnode.kept_experts import kept_mesh  # noqa: PLC0415

    mesh = kept_mesh(session.home)
    if name.startswith(WEIGHTS) and classes is not None:
        path = path_given(name.removeprefix(WEIGHTS))
        teacher = teacher_of_weights(path, classes=classes, activation=activation.value)
    else:
        teacher = load_teacher(name, classes=classes)
    of = {own: own for own in teacher.classes} if mapping is None else read_mapping(mapping)
    groups = groups or groups_in(data, set(of.values()))
    named = None
    if to is not None:
        named = chosen_form(to, settings, feature_dim=mesh.spec.feature_dim, feature_map=mesh.trunk.feature_map)
    wanted = {name for names in groups for name in names}
    images = images_in(data, wanted)
    session.output.note(f"{len(images)} images of {len(wanted)} classes")
    looked = look_at(mesh, teacher, {own: ours for own, ours in of.items() if ours in wanted}, images)
    pieces = []
    for names in groups:
        form = named or mesh.form_for(len(names))
        piece = take_out(mesh, looked, names, form, TransferConfig(score=score.value), seed=0)
        session.output.note(f"{', '.join(names)}: {piece.accuracy:.1%} of {piece.teacher_accuracy:.1%}")
        pieces.append(piece)
    return pieces


def _group(names: str) -> tuple[str, ...]:
    """The classes that a --group names."""
    if classes := tuple(sorted({name.strip() for name in names.split(",")} - {""})):
        return classes
    raise typer.BadParameter("--group names no class")


def _write(piece: "Piece", out: Path, *, force: bool) -> dict[str, Any]:
    path = (out / f"{piece.uid[:12]}.safetensors").absolute()
    if force:
        write_atomically(path, piece.data, FILE_MODE)
    elif not create_atomically(path, piece.data, FILE_MODE):
        raise Refused(f"{path} is there already", hint="--force replaces it.")
    return {
        "uid": piece.uid,
        "classes": list(piece.classes),
        "file": str(path),
        "size_bytes": len(piece.data),
        "teacher_accuracy": piece.teacher_accuracy,
        "accuracy": piece.accuracy,
        "held_out_images": piece.num_held_out,
        "layers": [asdict(layer) for layer in piece.report.layers],
    }


def _row(expert: Mapping[str, Any]) -> Sequence[object]:
    hidden = expert["layers"][:-1]
    return (
        expert["uid"][:12],
        ", ".join(expert["classes"]),
        ", ".join(f"{layer['old_units']} -> {layer['new_units']}" for layer in hidden) or "none",
        ", ".join(f"{layer['importance_kept']:.0%}" for layer in hidden) or "all",
        f"{expert['teacher_accuracy']:.1%}",
        f"{expert['accuracy']:.1%}",
        expert["held_out_images"],
        f"{expert['file']} ({size(expert['size_bytes'])})",
    )
