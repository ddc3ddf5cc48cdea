"""The picture of the table of scenarios: every method on every scenario, and what experts add to a router alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw"]

FAMILIES = (
    (("pixels",), "on raw pixels", "#9a9a9a"),
    (("router",), "router alone", "#e08214"),
    (("routed",), "routed experts", "#b2182b"),
    (("nearest mean", "SLDA", "projected ridge"), "solved on the trunk's features", "#5aae61"),
    (("trunk",), "network on the trunk's features", "#2166ac"),
)
"""What a row's name begins or ends with, the family in the legend, its colour; the first that fits."""


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A panel a scenario, one of the gains, and the accuracy matrix of the routed experts where they gain most."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is for --write only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figures = document["figures"]
    figure, axes = pyplot.subplots(4, 3, figsize=(19, 28), layout="constrained")
    panels = list(axes.flat)
    for panel, (name, rows) in zip(panels, figures.items(), strict=False):
        _accuracies(panel, name, rows, _references(document["targets"], name))
    for panel in panels[len(figures) : -2]:
        panel.axis("off")
    gained = document["targets"]["routed_experts_over_router_argmax"]
    _gains(panels[-2], gained["points"])
    entries = document["measured"]["accuracy_matrices"][gained["best"]]["routed experts, trunk"][0]
    _matrix(
        panels[-1],
        gained["best"],
        [[float("nan") if value is None else 100 * value for value in row] for row in entries],
    )
    mark = mpl.lines.Line2D
    handles = [mark([], [], marker="o", ls="", color=colour, label=label) for _, label, colour in FAMILIES]
    handles.append(mark([], [], marker="o", ls="", color="black", mfc="none", label="the same, told the task"))
    handles.append(mark([], [], marker="x", ls="", color="black", label="Mammoth's code"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _references(targets: Mapping[str, Any], scenario: str) -> dict[str, float]:
    """By how much the accuracy of a method exceeds another code's, where it is held against one."""
    return {
        name.removeprefix(f"{scenario}: "): target["points"]
        for name, target in targets.items()
        if name.startswith(f"{scenario}: ") and isinstance(target["points"], float)
    }


def _accuracies(panel: Any, name: str, rows: Mapping[str, Any], points: Mapping[str, float]) -> None:
    """Accuracy after the last task with its deviation over the runs."""
    for place, (row, of_row) in enumerate(rows.items()):
        colour, accuracy, std = _colour(row), of_row["accuracy"], of_row["std"] or 0.0
        panel.errorbar(accuracy, -place, xerr=std, fmt="o", color=colour, ms=6, capsize=2)
        method = row.removesuffix(", pixels")
        reference = accuracy - points.get(method, 0.0)
        left = min(accuracy - std, reference) - 2.5
        panel.text(left, -place, f"{accuracy:.1f}", ha="right", va="center", fontsize=8)
        if of_row["task_accuracy"] - accuracy > 0.05:
            panel.plot(of_row["task_accuracy"], -place, "o", mfc="none", color=colour, ms=6, alpha=0.6)
        if method in points:
            panel.plot(reference, -place, "x", color="black", ms=6)
    panel.set_yticks([-place for place in range(len(rows))], list(rows), fontsize=8)
    panel.set_ylim(-len(rows) + 0.4, 0.6)
    panel.set_xlim(0, 102)
    panel.grid(axis="x", alpha=0.3)
    panel.set_xlabel("accuracy after the last task, %", fontsize=8)
    panel.set_title(name, fontsize=10)


def _gains(panel: Any, points: Mapping[str, Mapping[str, float]]) -> None:
    bars = [(f"{name}\nover {router}", gain) for name, over in points.items() for router, gain in over.items()]
    for place, (_, gain) in enumerate(bars):
        panel.barh(-place, gain, color="#b2182b" if gain > 0 else "#9a9a9a")
        # To the right of the axis too where a loss is small: the names are on its left.
        panel.text(max(gain, 0.0) + 0.1, -place, f"{gain:+.1f}", va="center", fontsize=8)
    panel.axvline(0, color="black", lw=0.8)
    panel.set_yticks([-place for place in range(len(bars))], [label for label, _ in bars], fontsize=7)
    panel.margins(x=0.2)
    panel.set_xlabel("points", fontsize=8)
    panel.set_title("routed experts over a router alone", fontsize=10)


def _matrix(panel: Any, name: str, values: list[list[float]]) -> None:
    panel.imshow(values, vmin=0, vmax=100, cmap="viridis")
    for after, row in enumerate(values):
        for on, value in enumerate(row):
            shown = "" if value != value else f"{value:.0f}"  # noqa: PLR0124 - nothing was recorded
            panel.text(on, after, shown, ha="center", va="center", color="white" if value < 70 else "black")
    panel.set_xticks(range(len(values)), range(1, len(values) + 1))
    panel.set_yticks(range(len(values)), range(1, len(values) + 1))
    panel.set_xlabel("accuracy on task, %", fontsize=8)
    panel.set_ylabel("after task", fontsize=8)
    panel.set_title(f"routed experts on {name}", fontsize=10)


def _colour(row: str) -> str:
    return next(colour for words, _, colour in FAMILIES if row.startswith(words) or row.endswith(words))
