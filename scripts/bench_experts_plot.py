"""The picture beside `bench_experts.json`: what a teacher adds, what solving costs, what grouping saves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["draw"]

SIDES = {
    "ce": "labels alone",
    "kd": "teacher of all labels",
    "kd_unlabelled": "the same, and unlabelled images",
    "kd_same_labels": "larger teacher of the same labels",
}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document, all parts measured, as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(13, 7.6), layout="constrained")
    (accuracy, grouped, cache), (seconds, memory, bounded) = figure.subplots(2, 3)
    measured = document["measured"]
    _draw_accuracy(accuracy, measured["kd_gain"])
    _draw_grouped(grouped, measured["grouped_over_dense_rows_per_s"]["cases"])
    _draw_cache(cache, measured["teacher_cache_speedup"]["by_teacher"])
    _draw_solves(seconds, document["figures"]["solve_s"], "seconds")
    _draw_solves(memory, document["figures"]["solve_peak_mb"], "MB")
    seconds.set_title("Solving the router")
    memory.set_title("Peak memory beyond the statistics")
    _draw_bounded(bounded, measured["router_merge_error"])
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_accuracy(axes: "Axes", measured: Mapping[str, Any]) -> None:
    by_labels = measured["accuracy"]
    numbers = [int(labels) for labels in by_labels]
    for side, name in SIDES.items():
        means = [of[side]["mean"] for of in by_labels.values()]
        axes.errorbar(numbers, means, [of[side]["std"] for of in by_labels.values()], marker="o", capsize=3, label=name)
    accuracy = measured["teacher"]["knowing"]["accuracy"]
    axes.axhline(accuracy, color="grey", linestyle=":", linewidth=1, label="that teacher of all labels")
    _scale_x(axes, numbers)
    axes.set(title="Accuracy of a distilled expert, %", xlabel="labels")
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_grouped(axes: "Axes", cases: Mapping[str, Any]) -> None:
    names = [name.replace("_top", ",\ntop").replace("_", " ") for name in cases]
    for offset, side in ((-0.2, "grouped"), (0.2, "dense")):
        rates = [case[f"{side}_rows_per_s"] for case in cases.values()]
        bars = axes.bar([place + offset for place in range(len(names))], rates, width=0.4, label=side)
        if side == "grouped":
            axes.bar_label(bars, [f"{case['ratio']:.1f}x" for case in cases.values()], fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_title("Rows a second through the experts")
    axes.legend(fontsize=8, frameon=False)


def _draw_cache(axes: "Axes", by_teacher: Mapping[str, Any]) -> None:
    names = [name.replace("_", " ", 1).replace("_", "\n", 1).replace("_", " ") for name in by_teacher]
    bars = axes.barh(names, [one["speedup"] for one in by_teacher.values()], height=0.5)
    axes.bar_label(bars, fmt="%.1fx", padding=3)
    axes.set_title("Distilling with cached logits: speed-up")
    axes.margins(x=0.15)


def _draw_solves(axes: "Axes", figure: Mapping[str, float], unit: str) -> None:
    by_classes: dict[str, list[tuple[int, float]]] = {}
    for case, value in figure.items():
        num_features, num_classes = case.split("x")
        by_classes.setdefault(num_classes, []).append((int(num_features), value))
    for num_classes, points in by_classes.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{num_classes} classes")
    _scale_x(axes, sorted({num_features for points in by_classes.values() for num_features, _ in points}))
    axes.set_yscale("log")
    axes.set(xlabel="features D", ylabel=unit)
    axes.legend(fontsize=8, frameon=False)


def _draw_bounded(axes: "Axes", measured: Mapping[str, Any]) -> None:
    by_peers = measured["bounded"]
    numbers = [int(peers) for peers in by_peers]
    for key, name in (("unbounded_mb", "all contributions held"), ("held_mb", "within the budget, sum bit-equal")):
        axes.plot(numbers, [one[key] for one in by_peers.values()], marker="o", label=name)
    _scale_x(axes, numbers)
    axes.set_yscale("log")
    axes.set(title="Router statistics of many peers, MB", xlabel="peers")
    axes.legend(fontsize=8, frameon=False)


def _scale_x(axes: "Axes", numbers: Sequence[int]) -> None:
    """Logarithmic, and named at what was measured."""
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
