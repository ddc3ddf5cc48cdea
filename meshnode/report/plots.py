"""The pictures of a report, drawn without a screen and without state shared between calls.

T tasks.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meshnode.report.pareto import pareto_front
from meshnode.report.rows import Group, Matrices, RoutingMap

if TYPE_CHECKING:  # matplotlib takes a second, which only those who draw should pay
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COSTS", "Cost", "costs_of", "courses_png", "matrices_png", "pareto_png", "routing_png"]

DOTS_PER_INCH = 120

PALETTE = (
    "#1f5fa8", "#c25a00", "#2f8f4e", "#8b3fa8", "#b2182b", "#5b4636",
    "#d98cc0", "#6b6b6b", "#a8a11f", "#1fa3a8", "#000000", "#88aaff",
)  # fmt: skip
MARKERS = "osD^vP*XhdpH"
LINES = ("-", "--", ":")

WIDE_RANGE = 30.0
"""From so many times between the least and the largest cost on, the axis is logarithmic."""


class _Style(NamedTuple):
    """How the row at a place is told from the others, wherever it is drawn."""

    colour: str
    marker: str
    line: str


def _style(place: int) -> _Style:
    """Colours come round again with other markers and another line."""
    again = place // len(PALETTE)
    marker = MARKERS[(place + 5 * again) % len(MARKERS)]
    return _Style(PALETTE[place % len(PALETTE)], marker, LINES[again % len(LINES)])


class Cost(NamedTuple):
    """What an accuracy can be held against."""

    key: str
    words: str


COSTS = (
    Cost("kept_kb", "kept of the past, kB"),
    Cost("state_kb", "kept by the router, kB"),
    Cost("sent_kb", "sent, kB"),
    Cost("wire_kb", "sent in 8 bits, kB"),
    Cost("moved_kb", "moved by the busiest node, kB"),
    Cost("gflops", "learning, GFLOP"),
    Cost("update_gflops", "an update, GFLOP"),
    Cost("flops_per_sample", "answering one image, FLOP"),
)
"""By their names in documents; one that no row of a group has is not drawn for it."""


def costs_of(group: Group) -> list[Cost]:
    """Those in which rows of the group differ."""
    return [
        cost for cost in COSTS if len({value for row in group.rows if (value := row.number(cost.key)) is not None}) > 1
    ]


def courses_png(courses: Sequence[Matrices]) -> bytes:
    """Mean accuracy over the tasks learned so far, as tasks come: a line a row, with its deviation over runs.

    The legend has the rows in the order in which they end.
    """
    styles = {matrices.name: _style(place) for place, matrices in enumerate(courses)}
    with _figure(9.5, max(4.6, 0.21 * len(courses) + 0.5)) as (figure, file):
        axes = figure.subplots()
        for matrices in sorted(courses, key=lambda matrices: -np.nan_to_num(matrices.course().mean(axis=0)[-1])):
            course, style = 100 * matrices.course(), styles[matrices.name]
            tasks = np.arange(1, course.shape[1] + 1)
            mean = course.mean(axis=0)
            axes.plot(
                tasks, mean, color=style.colour, marker=style.marker, linestyle=style.line, markersize=5, linewidth=1.6,
                label=f"{matrices.name}: {mean[-1]:.1f}",
            )  # fmt: skip
            if len(course) > 1:
                deviation = course.std(axis=0, ddof=1)
                below, above = np.clip(mean - deviation, 0, 100), np.clip(mean + deviation, 0, 100)
                axes.fill_between(tasks, below, above, color=style.colour, alpha=0.14, linewidth=0)
        axes.set(xlabel="tasks learned", ylabel="accuracy over them, %")
        axes.set_xticks(range(1, max(matrices.runs.shape[1] for matrices in courses) + 1))
        axes.grid(alpha=0.25)
        figure.legend(loc="outside right center", fontsize=8.5, frameon=False)
    return file.getvalue()


def matrices_png(group: Sequence[Matrices]) -> bytes:
    """The mean accuracy matrix of each row, whose colours mean the same in all."""
    columns = min(4, len(group))
    rows = math.ceil(len(group) / columns)
    with _figure(2.9 * columns + 0.8, 2.75 * rows) as (figure, file):
        grid = figure.subplots(rows, columns, squeeze=False)
        image = None
        for axes, matrices in zip(grid.flat, group, strict=False):
            image = axes.imshow(100 * matrices.mean, vmin=0, vmax=100, cmap="viridis")
            _write_values(axes, 100 * matrices.mean, dark_below=55.0)
            axes.set_title(_short(matrices.name, 34), fontsize=9)
            count = matrices.runs.shape[1]
            axes.set_xticks(range(count), range(1, count + 1), fontsize=7)
            axes.set_yticks(range(count), range(1, count + 1), fontsize=7)
        for axes in list(grid.flat)[len(group) :]:
            axes.axis("off")
        figure.supxlabel("task asked", fontsize=9)
        figure.supylabel("after task", fontsize=9)
        if image is not None:
            figure.colorbar(image, ax=grid, label="accuracy, %", shrink=0.8, format="%d")
    return file.getvalue()


def pareto_png(group: Group, costs: Sequence[Cost]) -> bytes:
    """Accuracy against each cost; what nobody beats in both is filled and joined by a line."""
    columns = min(3, len(costs))
    rows = math.ceil(len(costs) / columns)
    with _figure(4.5 * columns, 4.1 * rows + 0.17 * math.ceil(len(group.rows) / 4) + 0.4) as (figure, file):
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        styles = {row.name: _style(place) for place, row in enumerate(group.rows)}
        for axes, cost in zip(grid.flat, costs, strict=False):
            _draw_front(axes, group, cost, styles)
        for axes in list(grid.flat)[len(costs) :]:
            axes.axis("off")
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy, %")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        for axes in grid.flat[1:]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    return file.getvalue()


def routing_png(routing: RoutingMap) -> bytes:
    """Which expert answers for which class, in percent of the class."""
    width, height = 0.72 * len(routing.experts) + 3.2, 0.34 * len(routing.classes) + 1.3
    with _figure(width, height) as (figure, file):
        axes = figure.subplots()
        image = axes.imshow(100 * routing.shares, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        _write_values(axes, 100 * routing.shares, dark_below=55.0)
        axes.set_xticks(range(len(routing.experts)), [_short(name, 14) for name in routing.experts], fontsize=8)
        axes.tick_params(axis="x", rotation=30)
        axes.set_yticks(range(len(routing.classes)), [_short(name, 24) for name in routing.classes], fontsize=8)
        figure.colorbar(image, ax=axes, label="of the class, %", format="%d")
    return file.getvalue()


def _draw_front(axes: "Axes", group: Group, cost: Cost, styles: Mapping[str, _Style]) -> None:
    pairs = [
        (row, (value, accuracy))
        for row in group.rows
        if (value := row.number(cost.key)) is not None and (accuracy := row.number("accuracy")) is not None
    ]
    points = [point for _, point in pairs]
    front = pareto_front(points)
    axes.plot(*zip(*(points[index] for index in front), strict=True), color="#8a8a8a", drawstyle="steps-post", zorder=1)
    for index, (row, (value, accuracy)) in enumerate(pairs):
        style = styles[row.name]
        axes.errorbar(
            value, accuracy, yerr=row.number("std"), fmt=style.marker, color=style.colour, markersize=8,
            markerfacecolor=style.colour if index in front else "white", label=row.name, elinewidth=1, linestyle="none",
        )  # fmt: skip
    positive = [value for value, _ in points if value > 0]
    if positive and max(positive) / min(positive) > WIDE_RANGE:
        if len(positive) < len(points):
            axes.set_xscale("symlog", linthresh=min(positive), linscale=1.0)
        else:
            axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(cost.words)
    axes.grid(alpha=0.25)


def _write_values(axes: "Axes", values: np.ndarray, *, dark_below: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            colour = "white" if value < dark_below else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)


@contextmanager
def _figure(width: float, height: float) -> "Iterator[tuple[Figure, io.BytesIO]]":
    """A figure in inches that is drawn, within the block, and the file that holds it as a PNG afterwards."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    file = io.BytesIO()
    # Names are anyone's: a pair of dollar signs would be set as a formula, or refused as a wrong one.
    with mpl.rc_context({"text.parse_math": False}):
        # Not pyplot: it would keep every figure and pick a window system.
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, file
        # Without matplotlib's version, so that equal figures give equal files.
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
