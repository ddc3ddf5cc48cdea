"""The plot of `simulate.py`: which way of mixing wins when, what faults cost, what a mesh's size does to the DHT."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

__all__ = ["draw"]

COLOURS = {"group": "#3366aa", "hypercube": "#dd7722", "random": "#449944"}
GREY = "#999999"
STYLES = {"none": "-", "loss and churn": "--"}
SHOWN_COURSES = (16, 1000)
"""Sizes whose course to consensus is drawn."""


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the document's figures as a PNG of eight panels."""
    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of a backend

    figure, rows = pyplot.subplots(2, 4, figsize=(22, 9.6), layout="constrained")
    figures, consensus = document["figures"], document["measured"]["consensus"]
    _draw_by_size(rows[0][0], consensus, "rounds", "rounds", "Rounds until the variance is a thousandth")
    _draw_by_size(rows[0][1], consensus, "kb_a_node", "kB sent by a node", "Bytes until then")
    _draw_courses(rows[0][2], consensus)
    _draw_loss(rows[0][3], figures["loss"])
    _draw_lost_rounds(rows[1][0], consensus)
    _draw_churn(rows[1][1], figures["churn"])
    _draw_known(rows[1][2], consensus)
    _draw_dht(rows[1][3], figures, document["measured"]["network"]["uplink_bytes_per_s"] / 1e3)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _draw_by_size(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, unit: str, title: str) -> None:
    for method, colour in COLOURS.items():
        for faults, style in STYLES.items():
            arrived = [row for row in rows if (row["method"], row["faults"]) == (method, faults) and row[name]]
            axes.plot(
                [row["replicas"] for row in arrived],
                [row[name] for row in arrived],
                style,
                marker="o",
                color=colour,
                label=f"{method}, faults: {faults}",
            )
    axes.set_xscale("log")
    if name != "rounds":
        axes.set_yscale("log")
    axes.set_xlabel("replicas of one expert")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.legend(fontsize=8)


def _draw_courses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    largest = max(row["replicas"] for row in rows if row["method"] == "random")
    sizes = [size for size in SHOWN_COURSES if size <= largest]
    for row in rows:
        if row["faults"] == "none" and row["replicas"] in sizes:
            course = [1.0, *(max(value, 1e-8) for value in row["disagreement"])]
            axes.plot(
                range(len(course)),
                course,
                "-" if row["replicas"] == sizes[0] else ":",
                marker=".",
                color=COLOURS[row["method"]],
                label=f"{row['method']}, {row['replicas']}",
            )
    axes.axhline(1e-3, color=GREY, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 2)
    axes.set_xlabel("rounds")
    axes.set_ylabel("variance across replicas, relative (1e-8: exact)")
    axes.set_title("Convergence without faults")
    axes.legend(fontsize=8)


def _draw_loss(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for method, colour in COLOURS.items():
        own = [row for row in rows if row["method"] == method]
        # Logarithmic but for the first, which is no loss at all.
        places = [max(100 * row["loss_ratio"], 0.01) for row in own]
        axes.plot(places, [100 * row["committed_ratio"] for row in own], "-o", color=colour, label=method)
    axes.set_xscale("log")
    axes.set_ylim(0, 105)
    axes.set_xlabel("messages lost, % (leftmost: none)")
    axes.set_ylabel("rounds committed, %")
    axes.set_title("What loss costs 16 replicas")
    axes.legend()


def _draw_lost_rounds(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Of groups, by size and by the reason of the last attempt."""
    own = [row for row in rows if row["method"] == "group" and row["faults"] != "none"]
    reasons = sorted({reason for row in own for reason in row["lost_ratios"]})
    bottom = [0.0] * len(own)
    for reason in reasons:
        heights = [100 * row["lost_ratios"].get(reason, 0.0) for row in own]
        axes.bar([str(row["replicas"]) for row in own], heights, bottom=bottom, label=reason.replace("_", " "))
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xlabel("replicas of one expert")
    axes.set_ylabel("rounds lost, %")
    axes.set_title("Rounds lost in groups, with loss and churn")
    axes.legend(fontsize=8)


def _draw_churn(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for num_nodes, style in zip(sorted({row["replicas"] for row in rows}), ("-", "--"), strict=True):
        own = [row for row in rows if row["replicas"] == num_nodes and row["silent_ratio"] == 0.5]
        leaving = [100 * row["leaving_per_minute"] for row in own]
        for index, (name, colour) in enumerate(
            (("median", COLOURS["group"]), ("95th percentile", COLOURS["hypercube"]))
        ):
            ages = [row["staleness_s"][index] for row in own]
            axes.plot(leaving, ages, style, marker="o", color=colour, label=f"{num_nodes} replicas, {name}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes that leave, % a minute")
    axes.set_ylabel("age of the average a replica holds, s")
    axes.set_title("Staleness under churn, just before the next round")
    axes.legend(fontsize=8, loc="lower right")


def _draw_known(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    own = [row for row in rows if row["method"] == "group" and row["faults"] == "none"]
    for percent, colour in zip((50, 95, 100), COLOURS.values(), strict=True):
        spans = [row["known_s"][f"{percent}_percent"] for row in own]
        axes.plot([row["replicas"] for row in own], spans, "-o", color=colour, label=f"{percent}% of the nodes")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("nodes")
    axes.set_ylabel("seconds")
    axes.set_title("Until a new expert is known, if the DHT keeps up")
    axes.legend()


def _draw_dht(axes: Axes, figures: Mapping[str, Any], uplink_kb: float) -> None:
    loads, real = figures["dht"], figures["dht_real"]
    for name, label, colour in (
        ("hottest_sent_kb_per_s", "busiest node", COLOURS["hypercube"]),
        ("sent_kb_per_s", "a node on average", COLOURS["group"]),
    ):
        sizes = [load["nodes"] for load in loads]
        axes.plot(sizes, [load[name] for load in loads], "-", color=colour, label=label)
        real_sizes = [load["nodes"] for load in real]
        axes.plot(real_sizes, [load[name] for load in real], "x", color=colour, label=f"{label}, hivemind's own nodes")
    axes.plot(
        [load["nodes"] for load in loads], [load["value_kb"] for load in loads], ":", color=GREY, label="one answer, kB"
    )
    axes.axhline(uplink_kb, color="#cc2222", linewidth=0.8, label="10 Mbit/s")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("nodes of one mesh")
    axes.set_ylabel("kB/s sent for the DHT")
    axes.set_title("The DHT: every node reads one key")
    axes.legend(fontsize=8)
