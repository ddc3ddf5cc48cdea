"""``meshnode experts lineage``: the experts that one was made from, as a table and as a picture."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.choosing import single_expert
from meshnode.cli.output import facts, listing
from meshnode.cli.session import Session
from meshnode.errors import ResourceAbsent

__all__ = ["show_lineage"]


def show_lineage(
    context: typer.Context,
    uid: Annotated[str, typer.Argument(metavar="UID", help="The expert's uid, or how it begins.")],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, help="Draw accuracy and size along the line."),
    ] = None,
) -> None:
    """Show where an expert comes from: each form that its knowledge was carried through, the oldest first.

    What stands there of methods and accuracies is the word of the node that made the step.
    """
    session = Session.of(context)
    client = session.client()
    expert = single_expert(client.get("experts", {"scope": "mesh"})["experts"], uid)
    document = client.get(f"experts/{expert['uid']}/lineage")
    if plot is not None:
        if all(made["accuracy"] is None for made in document["experts"]):
            raise ResourceAbsent(
                "there is nothing to draw: the expert has never changed its form",
                hint="`meshnode experts migrate` carries it over into another one.",
            )
        _draw(document, plot)
    lines = [("expert", document["uid"]), ("classes", ", ".join(document["classes"]))]
    if plot is not None:
        lines.append(("plot", str(plot)))
    columns = ("EXPERT", "FORM", "PARAMETERS", "UNITS", "METHOD", "ACCURACY", "MADE", "BY")
    rows = [_row(made) for made in document["experts"]]
    session.output.result(
        {**document, "plot": None if plot is None else str(plot)},
        Group(facts(lines), Text(), listing(columns, rows)),
    )


def _row(made: Mapping[str, Any]) -> tuple[object, ...]:
    config = ", ".join(f"{name} {value}" for name, value in made["config"].items() if name != "feature_dim")
    form = f"{made['kind']}: {config}" if config else made["kind"]
    parameters = "?" if made["parameters"] is None else made["parameters"]
    if made["parent"] is None:
        return made["uid"][:12], form, parameters, "-", "-", "-", "-", "-"
    return (
        made["uid"][:12],
        form,
        parameters,
        ", ".join(f"{layer['name']} {layer['old_units']} -> {layer['new_units']}" for layer in made["layers"]),
        _method(made["method"], made["source"]),
        _accuracy(made["accuracy"]),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(made["made_at"])),
        made["peer_name"] or made["peer_id"],
    )


def _method(method: Mapping[str, Any], source: Mapping[str, Any] | None) -> str:
    began = [] if source is None else [f"began as {source['uid'][:12]} ({', '.join(source['classes'])})"]
    parts = [*began, f"{method['similarity']} x {method['score']}", f"beta {method['beta']:g}"]
    if method["refit"]:
        parts.append("refit")
    if method["distillation_steps"]:
        parts.append(f"{method['distillation_steps']} steps")
    return ", ".join(parts)


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return "not measured"
    return f"{100 * accuracy['old']:.1f}% -> {100 * accuracy['new']:.1f}% of {accuracy['samples']}"


def _draw(document: Mapping[str, Any], path: Path) -> None:
    from meshnode.cli.lineage_picture import lineage_png  # noqa: PLC0415  # with matplotlib, for those who draw

    try:
        path.write_bytes(lineage_png(document))
    except OSError as exc:
        raise ResourceAbsent(f"the plot cannot be written to {path}: {exc.strerror}") from exc
