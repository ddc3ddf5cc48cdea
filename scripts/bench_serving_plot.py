"""The picture beside `bench_serving.json`: sizes, throughput, slow calls, overload, a kill, and whole questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["draw"]

NAMES = {
    "ours": "ModuleMesh",
    "tcp": "bare TCP, echo",
    "raw": "raw libp2p stream",
    "unary": "hivemind unary call",
    "moe": "hivemind.moe.Server",
}
COLOURS = {"ours": "#1f5fa8", "tcp": "#b8b8b8", "raw": "#7a7a7a", "unary": "#f0a830", "moe": "#c0504d"}
SIZES = {1: "1 KB", 8: "8 KB", 64: "64 KB", 256: "256 KB", 1024: "1 MB"}

STATES = {"answered": ("#1f5fa8", "o"), "hit": ("#f0a830", "D"), "unanswered": ("#c0504d", "x")}
STATE_NAMES = {"hit": "hit by the kill, answered by another replica"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document, all parts measured, as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(15, 8.4), layout="constrained")
    (sizes, throughput, slowest), (goodput, kill, questions) = figure.subplots(2, 3)
    measured = document["measured"]
    _draw_sizes(sizes, measured["latency"]["p50_ms"])
    _draw_throughput(throughput, measured["throughput"])
    _draw_slowest(slowest, measured["slowest"], measured["training"])
    _draw_goodput(goodput, measured["overload"])
    _draw_kill(kill, measured["failover"])
    _draw_questions(questions, measured["fan_out"], measured["look_ups"])
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_sizes(axes: "Axes", p50_ms: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    for way, by_rows in p50_ms.items():
        rows = [int(number) for number in by_rows]
        values = [median(rounds) for rounds in by_rows.values()]
        width = 2.4 if way == "ours" else 1.4
        axes.plot(rows, values, marker="o", color=COLOURS[way], label=NAMES[way], linewidth=width)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(SIZES), list(SIZES.values()))
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.set(title="Forward of one expert, p50, one caller", xlabel="features sent", ylabel="ms")
    axes.legend(fontsize=8, frameon=False)


def _draw_throughput(axes: "Axes", measured: Mapping[str, Any]) -> None:
    ways = list(measured["per_s"])
    rates = [median(rounds) for rounds in measured["per_s"].values()]
    names = [NAMES[way].replace("hivemind", "hivemind\n", 1) for way in ways]
    bars = axes.bar(names, rates, color=[COLOURS[way] for way in ways], width=0.55)
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize=9)
    axes.set(title=f"Forwards of 1 KB a second, {measured['callers']} callers")
    axes.margins(y=0.12)


def _draw_slowest(axes: "Axes", calls: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    rows = [
        (f"64 KB, {NAMES['ours']}", calls["p50_ms"]["ours"], calls["p99_ms"]["ours"]),
        (f"64 KB, {NAMES['unary']}", calls["p50_ms"]["unary"], calls["p99_ms"]["unary"]),
        ("1 KB, trainer at rest", training["p50_ms"]["idle"], training["p99_ms"]["idle"]),
        ("1 KB, trainer distils", training["p50_ms"]["training"], training["p99_ms"]["training"]),
    ]
    colours = [COLOURS["ours"], COLOURS["unary"], COLOURS["ours"], COLOURS["ours"]]
    for place, ((_, halves, slowest), colour) in enumerate(zip(rows, colours, strict=True)):
        axes.plot([median(halves), median(slowest)], [place, place], color=colour, linewidth=2.5, zorder=1)
        axes.scatter(halves, [place] * len(halves), color="white", edgecolors=colour, s=26, zorder=2)
        axes.scatter(slowest, [place] * len(slowest), color=colour, s=26, zorder=2)
        axes.annotate(
            f"p50 {median(halves):.2g}, p99 {median(slowest):.3g} ms",
            (median(halves), place),
            textcoords="offset points",
            xytext=(0, 8),
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(rows)), [name.replace(", ", ",\n") for name, *_ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.grid(axis="x", alpha=0.25)
    axes.set(
        title=f"p50 (hollow) to p99 (full), a dot a run of {calls['requests']:,}",
        xlabel=f"ms at a steady {calls['rate_per_s']:g} and {training['rate_per_s']:g} a second",
    )


def _draw_goodput(axes: "Axes", measured: Mapping[str, Any]) -> None:
    sweep, at_peak, over = (
        [(one["offered_per_s"], one["good_per_s"]) for one in measured[key]] for key in ("sweep", "at_peak", "at_10x")
    )
    peak = measured["peak_per_s"]
    line = [*sweep, (measured["offered_10x_per_s"], measured["at_10x_per_s"])]
    axes.axhline(peak, color="grey", linestyle=":", linewidth=1, label=f"peak, {peak:.0f} a second")
    most = max(offered for offered, _ in over)
    axes.plot([0, peak, most], [0, peak, peak], color="#cfdcea", linewidth=6, label="ideal", zorder=0)
    axes.plot(*zip(*line, strict=True), marker="o", markersize=5, color=COLOURS["ours"], label="in time")
    axes.scatter(*zip(*at_peak, *over, strict=True), s=14, color="white", edgecolors=COLOURS["ours"], label="repeated")
    axes.set_xscale("symlog", linthresh=peak)
    axes.set_xticks([0, peak / 2, peak, 2 * peak, 4 * peak, 10 * peak], ["0", "0.5", "1", "2", "4", "10"])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_ylim(0, 1.25 * peak)
    axes.grid(alpha=0.25)
    axes.set(
        title=f"Answers within {measured['deadline_s']:g} s, a second",
        xlabel="requests offered, in multiples of the peak",
    )
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_kill(axes: "Axes", measured: Mapping[str, Any]) -> None:
    for state, (colour, marker) in STATES.items():
        if state in measured["timeline"]:
            after_s, ms = measured["timeline"][state].values()
            size = 12 if state == "answered" else 40
            label = f"{STATE_NAMES.get(state, state)} ({len(ms)})"
            axes.scatter(after_s, ms, color=colour, marker=marker, s=size, label=label, alpha=0.9)
    axes.axvline(0, color=COLOURS["moe"], linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(top=1e3)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.grid(alpha=0.25)
    axes.set(
        title="Questions as one of three replicas is killed, ms",
        xlabel="when a question was due, seconds after the SIGKILL",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _draw_questions(axes: "Axes", fan_out: Mapping[str, Any], look_ups: Mapping[str, Any]) -> None:
    rows = [
        ("8 experts, 100 ms each:\nrouted", median(fan_out["routed_ms"])),
        ("one after another", median(fan_out["sequential_ms"])),
        ("1,000 experts: first look-up", look_ups["all_alive"]["cold_ms"]),
        ("again", look_ups["all_alive"]["again_ms"]),
        ("30% dead: first look-up", look_ups["30_dead"]["cold_ms"]),
        ("again", look_ups["30_dead"]["again_ms"]),
    ]
    colours = [COLOURS["ours"], COLOURS["tcp"], *[COLOURS["ours"]] * 4]
    bars = axes.barh(range(len(rows)), [value for _, value in rows], color=colours, height=0.6)
    axes.bar_label(bars, [f"{value:.0f}" for _, value in rows], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title="Whole questions and look-ups, ms")
