"""A picture of a run: every request's latency as it was due, their percentiles, and answers against what was offered.

The first two share their axis of milliseconds and the first and the last their axis of time, so that a stall can be
followed from where it began to how many requests it cost and which percentile it decides.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from meshnode.bench.report import Report
from meshnode.bench.runner import Request
from meshnode.bench.statistics import PERCENTILES
from meshnode.bench.table import load_in_words
from meshnode.printable import printable

__all__ = ["serve_png"]

DOTS_PER_INCH = 110
COLOURS = {"warm-up": "#b8b8b8", "answered": "#1f5fa8", "in part": "#f0a830", "failed": "#c0504d"}
OFFERED_COLOUR = "#cfdcea"
MOST_PEERS = 12
"""Bars of peers; of more, the rest is one."""
LONGEST_NAME = 18
"""Characters of a name that are written; a longer one would take the room of what is drawn."""


def serve_png(report: Report, requests: Sequence[Request]) -> bytes:
    """Draw the picture, without a screen and without state shared between calls.

    Args:
        report: The run's figures.
        requests: The run's requests, those of the warm-up too.

    Returns: A PNG file.
    """
    # Not pyplot: it would keep every figure and pick a window system.
    figure = Figure(figsize=(13, 8.2), layout="constrained")
    time_axes, rank_axes, rate_axes, peer_axes = figure.subplots(
        2, 2, gridspec_kw={"width_ratios": [2.1, 1], "height_ratios": [1.5, 1]}
    ).flat
    rank_axes.sharey(time_axes)
    rate_axes.sharex(time_axes)
    _draw_requests(time_axes, report, requests)
    _draw_percentiles(rank_axes, report)
    _draw_rates(rate_axes, report)
    _draw_peers(peer_axes, report)
    figure.suptitle(_headline(report), fontsize=12, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _headline(report: Report) -> str:
    document = report.to_dict()
    measured = report.measured
    cut = ", interrupted" if report.is_interrupted else ""
    return (
        f"Serving of mesh {_short(report.mesh.name)}: {load_in_words(document['load'])}{cut}\n"
        f"{measured.answered:,} of {measured.offered:,} requests answered, {measured.answered_per_s:.1f} a second"
    )


def _draw_requests(axes: Axes, report: Report, requests: Sequence[Request]) -> None:
    warm_up_s = report.load.warm_up_s
    kinds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in COLOURS}
    not_sent_s = []
    for request in requests:
        at_s = request.due_s - warm_up_s
        if request.ended_s is not None:
            kinds[_kind(request, at_s)].append((at_s, 1e3 * (request.ended_s - request.due_s)))
        elif request.sent_s is None and at_s >= 0:
            not_sent_s.append(at_s)
    axes.set_yscale("log")
    latencies_ms = [ms for points in kinds.values() for _, ms in points] or [1.0, 100.0]
    # Not left to matplotlib, which cannot do it for a single value.
    axes.set_ylim(min(latencies_ms) / 1.4, max(latencies_ms) * 1.4)
    for kind, points in kinds.items():
        if points:
            x, y = np.array(points).T
            label, colour = f"{kind} ({len(points):,})", COLOURS[kind]
            if kind == "failed":
                axes.scatter(x, y, s=26, c=colour, marker="x", linewidths=1.2, label=label)
            else:
                axes.scatter(x, y, s=9, c=colour, alpha=0.85, label=label)
    if not_sent_s:
        # Along the lower edge, for they have no latency to stand at.
        label, edge = f"not sent ({len(not_sent_s):,})", axes.get_xaxis_transform()
        axes.scatter(
            not_sent_s, [0.015] * len(not_sent_s), c=COLOURS["failed"], marker="|", transform=edge, label=label
        )
    # A fast mesh stays within one power of ten: the steps between are named too.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _shade_warm_up(axes, report)
    axes.set_title("Latency, ms", loc="left")
    axes.grid(alpha=0.25)
    axes.tick_params(labelbottom=False)
    if any(kinds.values()) or not_sent_s:
        # Above the dots, which may be anywhere.
        spacing = {"ncols": 5, "columnspacing": 1.0, "handletextpad": 0.1}
        axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.985), fontsize=9, frameon=False, **spacing)


def _kind(request: Request, at_s: float) -> str:
    if at_s < 0:
        return "warm-up"
    if request.error is not None:
        return "failed"
    return "in part" if request.is_partial else "answered"


def _draw_percentiles(axes: Axes, report: Report) -> None:
    """Latency against 1 / (share of answers that took at least as long): each nine of a percentile is as wide."""
    spread = report.measured.latency_ms
    count = spread.count
    axes.set_xscale("log")
    if count:
        # By nearest rank a value holds from where it is reached until the next one is, and the last one to the end.
        reached = [*(count / np.arange(count, 0, -1)), 1.4 * count]
        values = [*spread.ascending, spread.ascending[-1]]
        axes.plot(reached, values, color=COLOURS["answered"], linewidth=2, drawstyle="steps-post")
        for name, thousandths in PERCENTILES.items():
            at, value = 1000 / (1000 - thousandths), spread.figures[name]
            if value is not None and at <= count:  # of fewer answers than that, it is their maximum
                axes.plot([at], [value], "o", color=COLOURS["answered"], markersize=5)
        words = "\n".join(f"{name:>5} {value:8.1f}" for name, value in spread.figures.items())
        # In the corner that a rising curve leaves free.
        corner: dict[str, Any] = {
            "transform": axes.transAxes,
            "ha": "right",
            "va": "bottom",
            "fontsize": 9,
            "family": "monospace",
        }
        axes.text(0.97, 0.04, words, bbox={"facecolor": "white", "edgecolor": "#dddddd"}, **corner)
    axes.set_xticks([1, 2, 10, 100, 1000, 10000], ["0", "50", "90", "99", "99.9", "99.99"])
    axes.tick_params(axis="x", which="minor", length=0)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(1, max(20.0, 1.4 * count))
    axes.set_title(f"Latency by percentile, {count:,} answers", loc="left")
    axes.set_xlabel("percentile of answers")
    axes.grid(alpha=0.25)
    axes.tick_params(labelleft=False)


def _draw_rates(axes: Axes, report: Report) -> None:
    intervals = report.measured.intervals
    if intervals:
        edges = [interval.from_s for interval in intervals]
        edges.append(edges[-1] + intervals[-1].length_s)
        lengths = np.array([interval.length_s for interval in intervals])
        offered, answered, failed = (
            np.array([getattr(interval, name) for interval in intervals]) / lengths
            for name in ("offered", "answered", "failed")
        )
        if report.load.rate_per_s is not None:
            axes.stairs(offered, edges, color=OFFERED_COLOUR, fill=True, label="offered")
        axes.stairs(answered, edges, baseline=None, color=COLOURS["answered"], linewidth=2.2, label="answered")
        if failed.any():
            axes.stairs(failed, edges, baseline=None, color=COLOURS["failed"], linewidth=1.8, label="failed")
        axes.legend(loc="lower left", fontsize=9, framealpha=0.9)
    _shade_warm_up(axes, report)
    axes.set_ylim(bottom=0)
    axes.set_title("Answers a second, by when they came", loc="left")
    axes.set(xlabel="seconds since the end of the warm-up", ylabel="1/s")
    axes.grid(alpha=0.25)


def _draw_peers(axes: Axes, report: Report) -> None:
    peers = report.measured.peers
    bars = [(_short(peer.peer_name), peer.rows, peer.call_ms.figures["p50"], peer.failures) for peer in peers]
    if len(bars) > MOST_PEERS:
        rest = bars[MOST_PEERS - 1 :]
        bars = [
            *bars[: MOST_PEERS - 1],
            (f"{len(rest)} others", sum(rows for _, rows, _, _ in rest), None, sum(failures for *_, failures in rest)),
        ]
    total = sum(rows for _, rows, _, _ in bars) or 1
    shares = [100 * rows / total for _, rows, _, _ in bars]
    axes.barh(range(len(bars)), shares, color=COLOURS["answered"], height=0.6)
    for row, (share, (_, _, p50, failures)) in enumerate(zip(shares, bars, strict=True)):
        words = [f"{share:.1f}%"]
        words += [] if p50 is None else [f"p50 {p50:.1f} ms"]
        words += [f"{failures} failed"] if failures else []
        inside = share > 60
        axes.text(
            share - 1.5 if inside else share + 1.5,
            row,
            ", ".join(words),
            va="center",
            ha="right" if inside else "left",
            fontsize=9,
            color="white" if inside else "#222222",
        )
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    for label in axes.get_yticklabels():
        # Names are anyone's: a pair of dollar signs would be set as a formula, or refused as a wrong one.
        label.set_parse_math(False)
    axes.set_ylim(max(len(bars), 3) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_title("Who answered, % of rows", loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


def _shade_warm_up(axes: Axes, report: Report) -> None:
    if report.load.warm_up_s > 0:
        axes.axvspan(-report.load.warm_up_s, 0, color="#eeeeee", zorder=0)
