"""The demo's picture: accuracy after each task, the accuracy matrix, who answered what, and who hosts whom."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no screen needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from meshnode.demo.data import NODE_NAMES
from meshnode.demo.result import DemoResult

__all__ = ["draw"]

COLOURS = {"mesh": "#1f5fa8", "router argmax alone": "#f0a830", "joint training": "#5b8c5a"}
LOST_COLOUR = "#c0504d"
HEAT = "Blues"


def draw(result: DemoResult, path: Path) -> None:
    """Draw what was measured into a PNG file."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    figure.suptitle(
        f"ModuleMesh on {result.dataset}: three nodes, {len(result.tasks)} tasks of two classes, "
        f"{result.rounds_committed} averagings committed",
        fontsize=14,
    )
    uids = list(result.expert_classes)
    # In the order in which their classes arrived, not by digest.
    uids.sort(key=lambda uid: [set(task) == set(result.expert_classes[uid]) for task in result.tasks].index(True))
    _draw_accuracy(axes[0, 0], result)
    _draw_matrix(axes[0, 1], result)
    _draw_routing(axes[1, 0], result, uids)
    _draw_hosts(axes[1, 1], result, uids)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_accuracy(axes: Axes, result: DemoResult) -> None:
    steps = np.arange(1, len(result.tasks) + 1)
    for method in result.methods:
        if method.matrix is None:
            continue
        means = [100 * float(np.mean(method.matrix.row(task))) for task in range(len(result.tasks))]
        main = method.name == "mesh"
        axes.plot(
            steps,
            means,
            marker="o",
            label=f"{method.name} ({means[-1]:.1f})",
            color=COLOURS.get(method.name, LOST_COLOUR),
            linewidth=2.6 if main else 1.6,
            # The router often scores as the mesh does: dashes on top let both be seen.
            linestyle="--" if method.name == "router argmax alone" else "-",
            zorder=4 if method.name == "router argmax alone" else 3 if main else 2,
        )
    axes.axvline(3.5, color="grey", linestyle=":", linewidth=1)
    axes.text(3.53, 3, f"{result.accident.node} killed\nand back", fontsize=8, color="grey")
    axes.set(
        title="Accuracy after each task",
        xlabel="tasks learned",
        ylabel="mean accuracy on the tasks so far, %",
        xticks=steps,
        ylim=(0, 103),
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=9, title="method (last value)", title_fontsize=9)


def _draw_matrix(axes: Axes, result: DemoResult) -> None:
    matrix = result.methods[0].matrix
    assert matrix is not None, "the mesh is measured after every task"
    num_tasks = len(result.tasks)
    shares = np.full((num_tasks, num_tasks), np.nan)
    for task in range(num_tasks):
        shares[task, : task + 1] = matrix.row(task)
    axes.imshow(shares, cmap=HEAT, vmin=0, vmax=1)
    _write_cells(axes, 100 * shares, "{:.1f}")
    axes.set(
        title="Accuracy matrix of the mesh, %",
        xlabel="tested on",
        ylabel="after learning",
        xticks=range(num_tasks),
        yticks=range(num_tasks),
        xticklabels=["\n".join(task) for task in result.tasks],
        yticklabels=[f"task {task + 1}" for task in range(num_tasks)],
    )


def _draw_routing(axes: Axes, result: DemoResult, uids: list[str]) -> None:
    classes = [name for task in result.tasks for name in task]
    counts = np.array([[result.routing[name, uid] for name in classes] for uid in uids], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    axes.imshow(shares, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, np.where(shares > 0, 100 * shares, np.nan), "{:.0f}")
    axes.set(
        title="Which expert answered which class, % of its test images",
        xlabel="true class",
        xticks=range(len(classes)),
        yticks=range(len(uids)),
        yticklabels=[f"expert {uid[:6]}" for uid in uids],
    )
    axes.set_xticklabels(classes, rotation=0 if max(map(len, classes)) < 3 else 40, ha="center")


def _draw_hosts(axes: Axes, result: DemoResult, uids: list[str]) -> None:
    held = np.array([[name in result.hosts[uid] for name in NODE_NAMES] for uid in uids], dtype=float)
    axes.imshow(held * 0.55, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    for row in range(len(uids)):
        for column in np.flatnonzero(held[row]):
            axes.text(column, row, "replica", ha="center", va="center", fontsize=9, color="white")
    axes.set(
        title="Which node hosts which expert",
        xticks=range(len(NODE_NAMES)),
        xticklabels=NODE_NAMES,
        yticks=range(len(uids)),
        yticklabels=[f"{uid[:6]}\n{', '.join(result.expert_classes[uid])}" for uid in uids],
    )
    axes.set_xticks(np.arange(-0.5, len(NODE_NAMES)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(uids)), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)


def _write_cells(axes: Axes, values: np.ndarray, form: str) -> None:
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        colour = "white" if value > 60 else "black"
        axes.text(column, row, form.format(value), ha="center", va="center", fontsize=9, color=colour)
