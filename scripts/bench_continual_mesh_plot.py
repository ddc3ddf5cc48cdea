"""The picture of a mesh that learns on and on: accuracy as tasks come, and the bytes that each of them cost."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]

COLOURS = {"one node": "#2166ac", "four nodes": "#b2182b", "four nodes, two kills": "#e08214"}

KINDS = 6
"""Of messages that have a colour of their own; the rest are one."""


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Two panels."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is for --write only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (accuracies, sent) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    measured = document["measured"]
    for name, runs in measured["accuracy_matrices"].items():
        curves = [[100 * sum(row[: t + 1]) / (t + 1) for t, row in enumerate(matrix)] for matrix in runs]
        at = range(1, len(curves[0]) + 1)
        mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        accuracies.plot(at, mean, marker="o", ms=4, color=COLOURS[name], label=f"{name}: {mean[-1]:.2f}")
        lowest, highest = ([pick(values) for values in zip(*curves, strict=True)] for pick in (min, max))
        accuracies.fill_between(at, lowest, highest, color=COLOURS[name], alpha=0.12, lw=0)
        accuracies.set_xticks(list(at))
    accuracies.set_xlabel("tasks learned")
    accuracies.set_ylabel("accuracy on them, %; the range over orders")
    accuracies.set_title("Split Fashion-MNIST, asked of a node that has not learned the task", fontsize=10)
    _sent(sent, measured["sent_kb_by_task"]["four nodes"])
    for panel in (accuracies, sent):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _sent(panel: Any, runs: Sequence[Sequence[Mapping[str, float]]]) -> None:
    """Stacked bars, the kinds of most bytes at the bottom."""
    total: dict[str, float] = defaultdict(float)
    for waves in runs:
        for kinds in waves:
            for kind, kb in kinds.items():
                total[kind] += kb
    order = sorted(total, key=lambda kind: -total[kind])
    shown = [*order[:KINDS], *(("other",) if len(order) > KINDS else ())]
    bottom = [0.0] * len(runs[0])
    for kind in shown:
        members = order[KINDS:] if kind == "other" else [kind]
        heights = [
            statistics.fmean(sum(waves[wave].get(one, 0.0) for one in members) / 1000 for waves in runs)
            for wave in range(len(bottom))
        ]
        panel.bar(range(1, len(bottom) + 1), heights, bottom=bottom, label=f"{kind}: {sum(heights):.1f} MB")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    panel.set_xlabel("task")
    panel.set_ylabel("sent by the four nodes for it, MB")
    panel.set_title("payload bytes by kind of message", fontsize=10)
