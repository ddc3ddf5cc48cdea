"""``meshnode experts``: what the mesh, or this node, can answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.choosing import single_expert
from meshnode.cli.expert_align import align_expert
from meshnode.cli.expert_drop import drop_expert
from meshnode.cli.expert_files import export_expert, import_expert
from meshnode.cli.expert_lineage import show_lineage
from meshnode.cli.expert_migrate import migrate_expert, roll_back_expert
from meshnode.cli.expert_pull import pull_expert
from meshnode.cli.output import facts, listing
from meshnode.cli.session import Session
from meshnode.errors import ResourceAbsent

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
    if single := [expert["uid"][:12] for expert in document["experts"] if _is_single(expert)]:
        held = ", ".join(single)
        session.output.note(f"At one node only, and lost with it: {held}. `meshnode why replicas` tells why.")
    if not document["experts"]:
        session.output.note("No experts yet. A node makes them from a folder of task files: `meshnode run --data DIR`.")


def _is_single(expert: Mapping[str, Any]) -> bool:
    """Whether the mesh would lose it with one node; of one that was succeeded, the successor counts."""
    return expert.get("holders") in {0, 1} and expert["superseded_by"] is None and bool(expert["replicas"])


def _row(expert: dict[str, Any]) -> Sequence[object]:
    return (
        expert["uid"][:12],
        expert["kind"],
        ", ".join(expert["classes"]),
        expert["parameters"],
        "yes" if expert["local"] else expert["standing"] or "no",
        _replicas(expert),
    )


def _replicas(expert: Mapping[str, Any]) -> str:
    """Who holds it at which generation."""
    return ", ".join(
        f"{replica['name']} ({replica['generation']}{', leaving' if replica.get('leaving') else ''})"
        for replica in expert["replicas"]
    )


@experts.command("show")
def show_expert(
    context: typer.Context,
    uid: Annotated[str, typer.Argument(metavar="UID", help="The expert's uid, or how it begins.")],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, help="Draw who works for which class, for all experts."),
    ] = None,
) -> None:
    """Show one expert: its form, its replicas, and which classes send it how much gate mass.

    The gates are those on the tasks that this node has learned, as its trainer last measured them.
    """
    session = Session.of(context)
    client = session.client()
    expert = single_expert(client.get("experts", {"scope": "mesh"})["experts"], uid)
    specialization = client.get("specialization")
    measured = specialization["measured"]
    if plot is not None:
        if not measured or not measured["classes"] or not measured["experts"]:
            raise ResourceAbsent(
                "there is nothing to draw: no gates were measured yet",
                hint="They are once this node has learned a task and is idle; see `meshnode why training`.",
            )
        _draw(measured, plot)
    document = {
        "schema": "meshnode.expert/1",
        "expert": expert,
        "specialization": _own_part(measured, expert["uid"]),
        "mesh": measured,
        "plot": None if plot is None else str(plot),
    }
    session.output.result(document, Group(facts(_facts(document)), *_table(measured)))


experts.command("pull")(pull_expert)
experts.command("drop")(drop_expert)
experts.command("export")(export_expert)
experts.command("import")(import_expert)
experts.command("align")(align_expert)
experts.command("migrate")(migrate_expert)
experts.command("rollback")(roll_back_expert)
experts.command("lineage")(show_lineage)


def _own_part(measured: Mapping[str, Any] | None, uid: str) -> dict[str, Any] | None:
    """What the measurement says of one expert; None if there is none, or the expert is newer than it."""
    if not measured or uid not in measured["experts"]:
        return None
    column = measured["experts"].index(uid)
    mass = {name: row[column] for name, row in zip(measured["classes"], measured["mass"], strict=True)}
    total = sum(mass.values())
    return {
        "entropy_nats": measured["entropy_nats"][column],
        "usage_ratio": measured["usage_ratio"][column],
        "class_share_ratio": {name: value / total for name, value in mass.items() if value} if total else {},
    }


def _facts(document: Mapping[str, Any]) -> list[tuple[str, object]]:
    expert, own, mesh = document["expert"], document["specialization"], document["mesh"]
    config = ", ".join(f"{name} {value}" for name, value in expert["config"].items())
    lines: list[tuple[str, object]] = [
        ("expert", expert["uid"]),
        ("form", f"{expert['kind']}: {config}"),
        ("classes", ", ".join(expert["classes"])),
        ("parameters", expert["parameters"]),
        ("replicas", f"{_replicas(expert)}{_here(expert)}"),
        *([("single", "lost with that node; `meshnode why replicas` tells why")] if _is_single(expert) else []),
    ]
    if own is None:
        return [*lines, ("gates", "not measured yet")]
    shares = sorted(own["class_share_ratio"].items(), key=lambda item: -item[1])
    entropy = "none: nothing is sent to it" if own["entropy_nats"] is None else f"{own['entropy_nats']:.3f} nats"
    return [
        *lines,
        ("works for", ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares) or "no class"),
        ("S", entropy),
        ("usage", f"{100 * own['usage_ratio']:.1f}% of the gate mass"),
        ("I(E;C)", f"{mesh['mutual_information_nats']:.3f} nats over {len(mesh['experts'])} experts"),
        *([("plot", document["plot"])] if document["plot"] else []),
    ]


def _here(expert: Mapping[str, Any]) -> str:
    if not expert["local"]:
        return ""
    return ", one of them here" + (" by placement" if expert.get("placed") else "")


def _table(measured: Mapping[str, Any] | None) -> list[Any]:
    """Gate mass by class, in percent of the class's images, a column an expert."""
    if not measured or not measured["experts"]:
        return []
    columns = ("CLASS", "IMAGES", *(uid[:12] for uid in measured["experts"]))
    rows = [
        (name, count, *(f"{100 * mass / max(1, count):.1f}" for mass in row))
        for name, count, row in zip(measured["classes"], measured["num_samples"], measured["mass"], strict=True)
    ]
    return [Text("\nGate mass by class, % of its images:"), listing(columns, rows)]


def _draw(measured: Mapping[str, Any], path: Path) -> None:
    import torch  # noqa: PLC0415  # with matplotlib, for those who draw

    from experts.evaluation.specialization_plot import specialization_png  # noqa: PLC0415
    from experts.router.specialization import Specialization  # noqa: PLC0415

    specialization = Specialization(
        classes=tuple(measured["classes"]),
        uids=tuple(measured["experts"]),
        mass_CE=torch.tensor(measured["mass"], dtype=torch.float64),
        num_samples_C=torch.tensor(measured["num_samples"], dtype=torch.int64),
    )
    try:
        path.write_bytes(specialization_png(specialization))
    except OSError as exc:
        raise ResourceAbsent(f"the plot cannot be written to {path}: {exc.strerror}") from exc
