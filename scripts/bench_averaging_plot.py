"""The picture beside `bench_averaging.json`: rounds, stalls, training, and what faults do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["draw"]

NAMES = {"ours": "ModuleMesh", "runner": "AllReduceRunner", "averager": "DecentralizedAverager"}
COLOURS = {"ours": "#1f5fa8", "runner": "#f0a830", "averager": "#c0504d"}
STATES = {"averaging": "#1f5fa8", "bystander": "#7a7a7a", "idle": "#b8b8b8"}
STATE_NAMES = {"averaging": "a peer that averages", "bystander": "a process beside it", "idle": "the peer at rest"}
FAULTS = {"killed": "#c0504d", "hung": "#f0a830", "slowed": "#1f5fa8"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document, all parts measured, as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(15, 8.4), layout="constrained")
    (sixteen, single, stalls), (training, memory, p2pd) = figure.subplots(2, 3)
    measured = document["measured"]
    _draw_rounds(sixteen, measured["sixteen"], "16 experts of 10⁵ parameters, 4 peers")
    _draw_rounds(single, measured["single"], "One expert of 10⁶ parameters, 4 peers")
    _draw_stalls(stalls, measured["stalls"])
    _draw_training(training, measured["training"])
    _draw_faults(memory, measured["faults"], "networks in memory")
    _draw_faults(p2pd, measured["faults_p2pd"], "real p2pd")
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_rounds(axes: "Axes", measured: Mapping[str, Any], title: str) -> None:
    for place, (way, name) in enumerate(NAMES.items()):
        spans_ms = [1e3 * span_s for span_s in measured[way]["ended_s"]]
        whole = median(spans_ms)
        before = 1e3 * median(measured[way].get("commits_s", measured[way]["ended_s"]))
        axes.barh(place, before, color=COLOURS[way], height=0.5)
        axes.barh(place, whole - before, left=before, color=COLOURS[way], alpha=0.4, height=0.5)
        axes.scatter(spans_ms, [place] * len(spans_ms), color="white", edgecolors="black", s=18, zorder=3)
        axes.annotate(f"{name}, {whole:,.0f} ms", (0, place - 0.33), fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(len(NAMES) - 0.6, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set(title=title, xlabel="ms of a round, a dot each; pale: after the last commit has begun")


def _draw_stalls(axes: "Axes", measured: Mapping[str, Any]) -> None:
    for state, colour in STATES.items():
        late_ms: Sequence[float] = measured["late_ms"][state]
        shares = [1 - place / len(late_ms) for place in range(len(late_ms))]
        axes.plot(late_ms, shares, color=colour, label=STATE_NAMES[state], linewidth=2)
    axes.axhline(0.01, color="grey", linestyle=":", linewidth=1)
    axes.axvline(20, color="grey", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1)
    axes.grid(alpha=0.25)
    axes.set(
        title="How late a millisecond's ticks are on an event loop",
        xlabel=f"ms late, in rounds of one expert of {measured['parameters']:,} parameters",
        ylabel="share of ticks that are later",
    )
    axes.legend(fontsize=8, frameon=False)


def _draw_training(axes: "Axes", measured: Mapping[str, Any]) -> None:
    rows = {"without averaging": measured["per_s"]["alone"], "averaging": measured["per_s"]["averaging"]}
    bars = axes.bar(list(rows), [median(rates) for rates in rows.values()], color=["#b8b8b8", "#1f5fa8"], width=0.5)
    axes.bar_label(bars, [f"{median(rates):,.0f}" for rates in rows.values()], fontsize=9, padding=6)
    for place, rates in enumerate(rows.values()):
        axes.scatter([place] * len(rates), rates, color="white", edgecolors="black", s=18, zorder=3)
    axes.margins(y=0.12)
    axes.set(title=f"Training steps a second, a round every {measured['period_s']:g} s")


def _draw_faults(axes: "Axes", measured: Mapping[str, Any], where: str) -> None:
    for fault, tally in measured["by_fault"].items():
        events, ratios = zip(*tally["recovery_by_event"], strict=True)
        label = f"{fault}: {tally['trials']}, of which {tally['wrong']} wrong"
        axes.scatter(events, ratios, s=10, color=FAULTS[fault], alpha=0.6, label=label)
    axes.axhline(1, color="grey", linestyle=":", linewidth=1)
    axes.set_ylim(0, 1.25 * max(axes.get_ylim()[1], 1))  # with room for the legend
    axes.grid(alpha=0.25)
    axes.set(
        title=f"A fault strikes one of four, {where}",
        xlabel="before which message of the member that is hit",
        ylabel="until all survivors have committed, in deadlines",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper right")
