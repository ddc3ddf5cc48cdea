"""The picture beside `bench_averaging_accuracy.json`: how averaged replicas learn, what they lose, what codecs cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["NAMES", "draw"]

NAMES = {"iid": "even shards", "dirichlet_03": "Dirichlet(.3)", "class_split": "class by class"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    rounds, anchor, codecs = figure.subplots(1, 3)
    measured = document["measured"]
    _draw_rounds(rounds, measured)
    _draw_anchor(anchor, measured)
    _draw_codecs(codecs, document["figures"])
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_rounds(axes: "Axes", measured: Mapping[str, Any]) -> None:
    round_steps = measured["setting"]["round_steps"]
    for shards, by_round in measured["by_round"].items():
        steps = [round_steps * (number + 1) for number in range(len(by_round))]
        axes.plot(steps, by_round, label=NAMES[shards])
    central = measured["central"][measured["best_central"]][0]
    axes.axhline(central, color="grey", linestyle=":", linewidth=1, label="one net, as many samples, at the end")
    # The first averages are of nets that have hardly begun.
    axes.set_ylim(bottom=min(by_round[4] for by_round in measured["by_round"].values()))
    axes.set(title="Accuracy of the average, %", xlabel="steps of each of the four peers")
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_anchor(axes: "Axes", measured: Mapping[str, Any]) -> None:
    teachers = measured["teachers"]
    sides = {
        "none": f"a teacher of {teachers['large']['images']:,} images",
        "none_small_teacher": f"one of {teachers['small']['images']:,}",
        "none_without_teacher": "none",
    }
    central = _mean(measured["central"][measured["best_central"]])
    for offset, (side, name) in zip((-0.27, 0.0, 0.27), sides.items(), strict=True):
        gaps = [central - _mean(of_shards[side]) for of_shards in measured["averaged"].values()]
        bars = axes.bar([place + offset for place in range(len(gaps))], gaps, width=0.27, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(NAMES)), NAMES.values(), fontsize=8)
    axes.set_title("Points below the best central net")
    axes.legend(fontsize=8, frameon=False, loc="upper left", title="shared teacher", title_fontsize=8)


def _draw_codecs(axes: "Axes", figures: Mapping[str, Any]) -> None:
    codecs = [name.removesuffix("_bytes_ratio") for name in figures if name.endswith("_bytes_ratio")]
    ratios = [figures[f"{codec}_bytes_ratio"] for codec in codecs]
    for place, (shards, name) in enumerate(NAMES.items()):
        costs = [figures[f"{codec}_cost"][shards] for codec in codecs]
        axes.plot(ratios, costs, color=f"C{place}", marker="o", label=name)
        without = figures["topk_cost_without_feedback"][shards]
        axes.plot(figures["topk_bytes_ratio"], without, color=f"C{place}", marker="x", linestyle="none")
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(ratios, [f"{codec}\n{ratio:.2f}" for codec, ratio in zip(codecs, ratios, strict=True)], fontsize=8)
    axes.set(title="Points a codec costs (x: without feedback)", xlabel="bytes over those of float32")
    axes.legend(fontsize=8, frameon=False)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
