"""The picture beside `bench_decentralised.json`: what more nodes and rarer averages cost, and save in bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_averaging_accuracy_plot import NAMES

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["draw"]

STYLES = {"shared teacher": "-", "labels alone": ":"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = document["figures"]
    groups = list(document["measured"]["rounds"])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    by_nodes, by_steps = figure.subplots(1, 2, sharey=True)
    _draw(by_nodes, rows, [group for group in groups if group == "1 node" or "every 50 steps" in group], "nodes")
    _draw(by_steps, rows, [group for group in groups if group.startswith("4 nodes")], "every")
    by_nodes.set(title="More nodes that average every 50 steps", ylabel="points below one net of all images")
    by_steps.set(title="Four nodes that average less often")
    by_nodes.legend(fontsize=8, frameon=False, loc="upper left")
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw(axes: "Axes", rows: Mapping[str, Any], groups: list[str], words: str) -> None:
    for colour, (shards, name) in enumerate(NAMES.items()):
        for teacher, style in STYLES.items():
            found = [rows[f"{shards}, {teacher}"][group] for group in groups]
            axes.errorbar(
                range(len(groups)),
                [row["gap_points"] for row in found],
                yerr=[row["gap_std"] for row in found],
                color=f"C{colour}",
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=3,
                label=f"{name}, {teacher}",
            )
    sent_mb = [rows[f"{next(iter(NAMES))}, {next(iter(STYLES))}"][group]["sent_kb"] / 1000 for group in groups]
    ticks = [f"{_short(group, words)}\n{sent:.1f} MB" for group, sent in zip(groups, sent_mb, strict=True)]
    axes.set_xticks(range(len(groups)), ticks, fontsize=9)
    axes.set_xlabel("and what a node sends in all", fontsize=9)
    axes.margins(x=0.12)
    axes.axhline(0, color="grey", linewidth=1)


def _short(group: str, words: str) -> str:
    nodes, _, every = group.partition(", ")
    return nodes if words == "nodes" else every
