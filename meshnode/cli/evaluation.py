"""``meshnode eval``: methods of continual learning side by side, on public data or the user's own."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli.output import facts, listing
from meshnode.cli.session import Session

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["evaluation"]


class _On(StrEnum):
    TRUNK = "trunk"
    PIXELS = "pixels"
    BOTH = "both"


def evaluation(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    *,
    scenario: Annotated[
        str, typer.Argument(metavar="[SCENARIO|FILE.toml]", help="A scenario's name, or a file that describes one.")
    ] = "split-digits",
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One of the methods, such as EWC; may be repeated. All if none is given."),
    ] = None,
    on: Annotated[
        _On,
        typer.Option(metavar="trunk|pixels|both", help="What methods are fed: a frozen trunk's features, raw pixels."),
    ] = _On.TRUNK,
    runs: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Orders of the classes or tasks, each with its seed.")
    ] = 1,
    train: Annotated[int | None, typer.Option(min=1, metavar="N", help="Training images a task, at most.")] = None,
    test: Annotated[int | None, typer.Option(min=1, metavar="N", help="Test images a task, at most.")] = None,
    images_per_class: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Image files that are read of each class, at most.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First try six rates for each network on held-out training images.")
    ] = False,
    tap: Annotated[str, typer.Option(metavar="TAP", help="Where EfficientNet-Lite0 is cut to be the trunk.")] = "B4",
    pixels: Annotated[int, typer.Option(min=16, max=512, metavar="N", help="A side of the trunk's input.")] = 64,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Has a folder for each public data set that one has to get."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where figures, finished runs and the report go.")
    ] = Path("eval-out"),
    list_: Annotated[bool, typer.Option("--list", help="Name the scenarios and the methods; run nothing.")] = False,
) -> None:
    """Measure methods of continual learning on a scenario: accuracy, forgetting, and what it costs.

    Each learns the same tasks in the same order; ours stand beside their rivals on the same frozen trunk. What is
    finished is kept in --out, so the same line goes on where it was interrupted. docs/scenarios.md says how a folder of
    images, .npz or .csv becomes a scenario.
    """
    session = Session.of(context)
    # Torch and matplotlib are for this command only.
    from meshnode.evaluation import Plan, evaluate  # noqa: PLC0415

    if list_:
        _list(session)
        return
    plan = Plan(
        scenario=scenario,
        methods=tuple(method or ()),
        on=on.value,
        runs=runs,
        train_images=train,
        test_images=test,
        images_per_class=images_per_class,
        tune=tune,
        tap=tap,
        pixels=pixels,
        data=data,
    )
    try:
        done = evaluate(plan, out, session.output.note)
    except KeyboardInterrupt:
        kept, goes_on = f"finished runs are in {out / 'runs'}", "the same line goes on from them"
        if session.output.as_json:
            session.output.failure("interrupted", f"interrupted; {kept}", f"{goes_on.capitalize()}.")
        else:
            session.output.note(f"Interrupted: {kept}, and {goes_on}.")
        raise
    for row, number in done.document["measured"]["constant_runs"][plan.name].items():
        session.output.note(
            f"{row}: {number} of {runs} runs ended with one answer to every image: its settings do not suit this data."
            + ("" if tune else " `--tune` looks for a rate that does.")
        )
    document = {
        "schema": "meshnode.eval/1",
        "scenario": plan.name,
        "result": str(done.path),
        "report": str(done.report.html),
        "figures": done.document["figures"][plan.name],
        "settings": done.document["measured"]["settings"][plan.name],
    }
    session.output.result(document, _table(document["figures"]))
    session.output.note(f"report: {done.report.html}   figures: {done.path}")


def _list(session: Session) -> None:
    from experts.evaluation.scenarios.registry import SCENARIO_NAMES  # noqa: PLC0415
    from experts.evaluation.suite.methods import METHOD_NAMES  # noqa: PLC0415

    document = {"schema": "meshnode.eval-names/1", "scenarios": list(SCENARIO_NAMES), "methods": list(METHOD_NAMES)}
    pairs = [("scenarios", SCENARIO_NAMES[0]), *(("", name) for name in SCENARIO_NAMES[1:])]
    pairs += [("methods", METHOD_NAMES[0]), *(("", name) for name in METHOD_NAMES[1:])]
    session.output.result(document, facts(pairs))


_COLUMNS = (
    "METHOD",
    "ACCURACY %",
    "TASK-IL %",
    "FORGETTING",
    "RETENTION",
    "KEPT kB",
    "SENT kB",
    "PARAMS",
    "GFLOPS",
    "S",
)


def _table(figures: Mapping[str, Mapping[str, Any]]) -> "Table":
    rows = [
        (
            name,
            _spread(row["accuracy"], row["std"]),
            _spread(row["task_accuracy"], row["task_std"]),
            f"{row['forgetting']:.1f}",
            f"{row['retention']:.3f}",
            f"{row['kept_kb']:,.0f}",
            f"{row['sent_kb']:,.0f}",
            f"{row['parameters']:,}",
            f"{row['gflops']:,.1f}",
            f"{row['seconds']:.1f}",
        )
        for name, row in sorted(figures.items(), key=lambda pair: -float(pair[1]["accuracy"]))
    ]
    return listing(_COLUMNS, rows)


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
