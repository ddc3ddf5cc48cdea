"""The picture of continual learning: accuracy as tasks come, and detection by how much of a batch is new."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]

SCENARIOS = ("split-fashion-mnist", "rotated-fashion-mnist", "four-sets")

COLOURS = {
    "tasks": "#b2182b",
    "stream": "#e08214",
    "joint": "#2166ac",
    "reference CNN": "#2166ac",
    "10% labelled": "#5aae61",
    "these 10% alone": "#9a9a9a",
}
"""By what a row's name ends in."""

SHARES = {"known": 0, "new_10_percent": 10, "new_25_percent": 25, "new_50_percent": 50, "new_100_percent": 100}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A panel for each scenario and one for detection."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is for --write only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    panels = list(axes.flat)
    matrices = document["measured"]["accuracy_matrices"]
    for panel, scenario in zip(panels, SCENARIOS, strict=False):
        own = {name: runs for name, runs in matrices.items() if name.startswith(scenario)}
        _accuracies(panel, scenario, document["measured"]["trunk"]["taps"][scenario], own)
    _detection(panels[3], document["figures"]["detection"])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _accuracies(panel: Any, scenario: str, tap: str, rows: Mapping[str, Sequence[Any]]) -> None:
    """Mean accuracy over the tasks learned so far, with the range over orders."""
    for name, runs in rows.items():
        label = name.removeprefix(f"{scenario}, ")
        curves = [[100 * sum(row[: t + 1]) / (t + 1) for t, row in enumerate(matrix)] for matrix in runs]
        at = range(1, len(curves[0]) + 1)
        mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        colour = COLOURS[label]
        panel.plot(at, mean, marker="o", ms=4, color=colour, label=f"{label}: {mean[-1]:.1f}")
        panel.fill_between(at, *_range(curves), color=colour, alpha=0.15, lw=0)
    panel.set_xticks(list(at))
    panel.set_xlabel("tasks learned")
    panel.set_ylabel("accuracy on them, %")
    panel.set_title(f"{scenario} ({tap})", fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, frameon=False)


def _range(curves: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [min(values) for values in zip(*curves, strict=True)], [max(values) for values in zip(*curves, strict=True)]


def _detection(panel: Any, found: Mapping[str, Any]) -> None:
    for scenario, colour in zip(found, ("#b2182b", "#2166ac"), strict=False):
        for score, style in (("relative", "-"), ("mahalanobis", ":")):
            rates = [100 * found[scenario][score][kind] for kind in SHARES]
            panel.plot(
                list(SHARES.values()), rates, style, marker="o", ms=4, color=colour, label=f"{scenario}, {score}"
            )
    panel.axhline(1, color="black", lw=0.8, ls="--")
    panel.set_xlabel("rows of a batch of 64 that are of the next task, %")
    panel.set_ylabel("batches judged new, % (1% wanted of known ones)")
    panel.set_title("detection of new tasks", fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, frameon=False)
