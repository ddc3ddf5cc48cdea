"""The plot of `bench_router.py`: what a router's accuracy costs to send, what each way of routing gives, long tails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

__all__ = ["draw"]

BLUE, ORANGE, GREY = "#3366aa", "#dd7722", "#999999"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the document's figures as a PNG of three panels."""
    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of a backend

    figure, (bytes_axes, routers_axes, tail_axes) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    figures = document["figures"]
    _draw_bytes(bytes_axes, figures)
    _draw_routers(routers_axes, figures)
    _draw_tail(tail_axes, figures)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_bytes(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Accuracy against kB on the wire, and against what is kept."""
    sending = [
        (figure["wire_kb"], name)
        for name, figure in figures.items()
        if isinstance(figure, dict) and figure.get("wire_kb") and name != "argmax_alone"
    ]
    for place, (sent, name) in enumerate(sorted(sending)):
        figure = figures[name]
        kept, colour = figure["state_kb"], BLUE if name.startswith("ridge") else ORANGE
        axes.plot([sent, kept], [figure["accuracy"]] * 2, color=colour, linewidth=0.8, alpha=0.5)
        axes.errorbar(sent, figure["accuracy"], yerr=figure["std"], fmt="o", color=colour, capsize=2)
        axes.plot(kept, figure["accuracy"], "|", color=colour, markersize=10)
        # Neighbours' names lie on different sides of their lines.
        offset = (4, -20) if place % 2 else (4, 6)
        label = f"{name}\n{figure['tap']}"
        axes.annotate(label, (sent, figure["accuracy"]), offset, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("kB on the wire (dot) and kept (bar)")
    axes.set_ylabel("accuracy, %")
    axes.set_title("Accuracy against bytes")


def _draw_routers(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Every way of routing, the best on top."""
    routers = {name: figure for name, figure in figures.items() if isinstance(figure, dict) and "accuracy" in figure}
    names = sorted(routers, key=lambda name: routers[name]["accuracy"])
    colours = [BLUE if name.startswith("ridge") else ORANGE if name.startswith("mlp") else GREY for name in names]
    bars = axes.barh(
        names,
        [routers[name]["accuracy"] for name in names],
        xerr=[routers[name]["std"] or 0.0 for name in names],
        color=colours,
        capsize=2,
    )
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy, %")
    axes.set_title("Ways of routing")


def _draw_tail(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Plain and rebalanced prior side by side."""
    tails = {name: figure for name, figure in figures.items() if name.startswith("long_tail")}
    labels = [f"{name.split('_')[2]}:1\n{figure['tap']}" for name, figure in tails.items()]
    for offset, prior, colour in ((-0.2, "plain", GREY), (0.2, "rebalanced", BLUE)):
        places = [place + offset for place in range(len(tails))]
        bars = axes.bar(places, [figure[prior] for figure in tails.values()], 0.4, color=colour, label=f"{prior} prior")
        axes.bar_label(bars, fmt="%.1f")
    axes.set_xticks(range(len(tails)), labels)
    axes.set_ylim(bottom=min(figure["plain"] for figure in tails.values()) - 5)
    axes.set_ylabel("accuracy of the router's argmax, %")
    axes.set_title("Classes that grow rarer")
    axes.legend(loc="upper right")
