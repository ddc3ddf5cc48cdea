"""``meshnode privacy``: what leaves this machine, and with which protection."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Group
from rich.text import Text

from meshnode.cli.output import facts, listing
from meshnode.cli.session import Session

__all__ = ["privacy"]


def privacy(context: typer.Context) -> None:
    """List what leaves this machine: of its data, its experts and itself, and in how many bytes.

    Images and labels do not, and neither do teachers; docs/privacy.md tells what each thing says of them.
    """
    session = Session.of(context)
    document = session.client().get("privacy")
    session.output.result(document, _shown(document))


def _shown(document: Mapping[str, Any]) -> Group:
    record, mesh, listen = document["record"], document["mesh"], document["listen"]
    seen = "this machine alone" if listen["loopback"] else "whoever reaches it"
    sent = ", ".join(f"{kind} {count:,} B" for kind, count in document["sent_bytes"].items())
    return Group(
        facts(
            [
                ("seen by", f"{seen} ({listen['host']})"),
                ("record", f"{record['name']}, {record['peer_id']}, its address, when it is online"),
                ("advertises", "its experts" if record["advertises"] else "nothing"),
                (
                    "activations",
                    "features of what is asked about; and of thin clients' images, which come here whole"
                    if document["thin_clients"]
                    else "features of what is asked about",
                ),
                ("mesh", f"{mesh['name']}; of its founder's data: {mesh['calibration']}"),
                *([("broker", f"{document['mqtt']}: names and figures")] if document["mqtt"] else []),
                *(
                    [("hivemind", "outputs and gradients of the experts, to its clients")]
                    if document["hivemind"]
                    else []
                ),
                ("sent", sent or "nothing yet"),
                ("shared from", _least(document["protection"]["min_samples"])),
                ("noise", _noise(document["protection"]["noise"])),
            ]
        ),
        *_section(
            "Parameters of experts, to whoever asks:",
            ("EXPERT", "CLASSES", "GENERATION", "LEARNED FROM", "REPLICAS AT"),
            [_expert(expert) for expert in document["parameters"]],
        ),
        *_section(
            "Feature statistics, signed and passed on:",
            ("TASK", "CLASS", "VERSION", "SHARED", "WAITING"),
            _statistics(document),
        ),
        *_section("Taken back or refused:", ("WHAT", "NAME"), _forgotten(document)),
    )


def _least(number: int) -> str:
    return "one image of a class" if number == 1 else f"{number} new images of a class on; fewer wait"


def _noise(noise: Mapping[str, Any] | None) -> str:
    if noise is None:
        return "none"
    if noise["norm"] is None:
        return "asked for, but this mesh's spec names no norm: no statistics are published"
    promise = f"epsilon {noise['epsilon']:g}, delta {noise['delta']:g} an increment"
    total = f"epsilon {noise['total_epsilon']:.3g}, delta {noise['total_delta']:g}"
    return f"{promise}; {noise['increments']} so far, together {total}"


def _expert(expert: Mapping[str, Any]) -> Sequence[object]:
    tasks = "unknown" if expert["tasks"] is None else ", ".join(expert["tasks"]) or "-"
    return (
        expert["expert"][:12],
        ", ".join(expert["classes"]),
        expert["generation"],
        tasks,
        ", ".join(expert["peers"]) or "-",
    )


def _statistics(document: Mapping[str, Any]) -> list[Sequence[object]]:
    """A row a task and class, of what is shared or waits."""
    shared = {of["task"]: of for of in document["statistics"]}
    rows: list[Sequence[object]] = []
    for task in sorted({*shared, *document["waiting"]}):
        samples = shared[task]["samples"] if task in shared else {}
        waiting = document["waiting"].get(task, {})
        version = shared[task]["version"] if task in shared else "-"
        rows += [
            (task, name, version, samples.get(name, 0), waiting.get(name, 0)) for name in sorted({*samples, *waiting})
        ]
    return rows


def _forgotten(document: Mapping[str, Any]) -> list[Sequence[object]]:
    withdrawn = [("statistics withdrawn", of["task"]) for of in document["withdrawn"]]
    tasks = [("task not learned again", name) for name in document["forgotten"]["tasks"]]
    peers = [("peer not listened to", name) for name in document["forgotten"]["peers"]]
    return [*withdrawn, *tasks, *peers]


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[Any]:
    return [Text(), Text(title), listing(columns, rows)] if rows else []
