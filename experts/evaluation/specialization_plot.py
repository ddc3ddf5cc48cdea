"""A picture of who works for which class: p(c|E_i) as a heat map, with usage and S(E_i) beside each expert.

A row is an expert, and what its row shows is the distribution whose entropy stands at its end. Experts are
ordered by the class they mostly work for, so that a specialized mesh shows as a diagonal and an idle expert at
the bottom. One hue from white to dark tells shares apart for every kind of sight, and in grey on paper.

Legend: C class, E expert.
"""

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from experts.errors import ShapeMismatch
from experts.router.specialization import Specialization

if TYPE_CHECKING:  # matplotlib takes a second, which only those who draw should pay
    from matplotlib.axes import Axes

__all__ = ["specialization_png"]

DOTS_PER_INCH = 110
COLOUR_MAP = "Blues"
BAR_COLOUR = "#4a6a8a"
REFERENCE_COLOUR = "#c25a00"
UID_CHARACTERS = 8
"""Of a digest, enough to tell 20 experts apart; a longer name is cut, a shorter one shown whole."""
MOST_NUMBERS = 400
"""Cells up to which each one has its share written in it; more are too small to read."""
MOST_NAMES = 60
"""Names along an axis; of more only every second, third, ... is written."""
INCHES_A_CHARACTER = 0.09
"""Width of a character of a class name; names that do not fit side by side are written aslant."""
LONGEST_NAME = 18
"""Characters of a class name that are written; a longer one would take the room of the map."""


def specialization_png(specialization: Specialization) -> bytes:
    """Draw the picture, without a screen and without state shared between calls.

    Args:
        specialization: At least one class and one expert; made for 10 classes and 20 experts. Past some 400
            cells a colour bar stands in for the numbers, and the size of the picture no longer grows.

    Returns: A PNG file.

    Raises:
        ShapeMismatch: If there is no class or no expert to draw.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    num_classes, num_experts = specialization.mass_CE.shape
    if num_classes == 0 or num_experts == 0:
        raise ShapeMismatch("gate mass", expected=("C", "E"), got=(num_classes, num_experts))
    map_width, map_height = _map_size(num_classes, num_experts)
    # Not pyplot: it would keep every figure and pick a window system.
    figure = Figure(figsize=(map_width + 5.4, map_height + 2.3), layout="constrained")
    shares_axes, usage_axes, entropy_axes = figure.subplots(
        1, 3, sharey=True, gridspec_kw={"width_ratios": [map_width, 1.7, 1.9]}
    )
    order = _display_order(specialization)
    _draw_shares(shares_axes, specialization, order)
    _draw_usage(usage_axes, specialization, order)
    _draw_entropy(entropy_axes, specialization, order)
    figure.suptitle(_headline(specialization), fontsize=12)

    file = io.BytesIO()
    # Without matplotlib's version, so that equal measures give equal files.
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _map_size(num_classes: int, num_experts: int) -> tuple[float, float]:
    """Width and height in inches: cells of readable size, within what a screen or a page can show."""
    return min(max(0.55 * num_classes, 3.2), 16.0), min(max(0.34 * num_experts, 1.7), 16.0)


def _display_order(specialization: Specialization) -> list[int]:
    """Columns of the experts, by main class and then by how much they keep to it; those without mass last."""
    mass_CE = specialization.mass_CE
    top_E, class_E = mass_CE.max(dim=0)
    purity_E = top_E / mass_CE.sum(dim=0)

    def key(expert: int) -> tuple[bool, int, float]:
        idle = float(top_E[expert]) == 0.0
        return idle, int(class_E[expert]), 0.0 if idle else -float(purity_E[expert])

    return sorted(range(len(specialization.uids)), key=key)


def _headline(specialization: Specialization) -> str:
    most = math.log(min(specialization.mass_CE.shape))
    return (
        f"Which classes each expert works for: I(E;C) = {specialization.mutual_information:.2f} of at most "
        f"{most:.2f} nats\n{specialization.num_samples_C.sum():,} samples, "
        f"{100 * specialization.routed_ratio:.1f}% of their gate mass routed"
    )


def _draw_shares(axes: "Axes", specialization: Specialization, order: list[int]) -> None:
    shares_EC = specialization.class_distributions.T[order].numpy()
    num_experts, num_classes = shares_EC.shape
    image = axes.imshow(100 * np.nan_to_num(shares_EC), cmap=COLOUR_MAP, vmin=0, vmax=100, aspect="auto")
    if shares_EC.size > MOST_NUMBERS:
        axes.figure.colorbar(image, ax=axes, location="left", fraction=0.02, pad=0.01)
    else:
        _write_shares(axes, shares_EC)
        # Lines between cells, so that neighbours of one shade stay two cells.
        axes.set_xticks(np.arange(0.5, num_classes - 1), minor=True)
        axes.set_yticks(np.arange(0.5, num_experts - 1), minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    for row in np.flatnonzero(np.isnan(shares_EC).any(axis=1)):
        axes.axhspan(row - 0.5, row + 0.5, facecolor="#eeeeee", edgecolor="#bbbbbb", hatch="////", linewidth=0)

    _name_rows_and_columns(axes, specialization, order)
    axes.set(title="p(class | expert), %", xlabel="true class", ylabel="expert")


def _name_rows_and_columns(axes: "Axes", specialization: Specialization, order: list[int]) -> None:
    num_classes, num_experts = len(specialization.classes), len(order)
    samples = specialization.num_samples_C.tolist()
    names = [_class_label(name, count) for name, count in zip(specialization.classes, samples, strict=True)]
    columns = _ticks(num_classes)
    room = _map_size(num_classes, num_experts)[0] / len(columns)
    steep = max(map(len, names)) * INCHES_A_CHARACTER > room
    axes.set_xticks(columns, [names[column] for column in columns], fontsize=_font_size(num_classes))
    axes.tick_params(axis="x", labelrotation=40 if steep else 0)
    if steep:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    rows = _ticks(num_experts)
    uids = [specialization.uids[order[row]][:UID_CHARACTERS] for row in rows]
    axes.set_yticks(rows, uids, fontsize=_font_size(num_experts), family="monospace")
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        # Names are anyone's: a pair of dollar signs would be set as a formula, or refused as a wrong one.
        label.set_parse_math(False)


def _draw_usage(axes: "Axes", specialization: Specialization, order: list[int]) -> None:
    usage = specialization.usage[order].numpy()
    even = 1 / len(order)
    axes.barh(range(len(order)), 100 * usage, color=BAR_COLOUR, height=0.7)
    axes.axvline(100 * even, color=REFERENCE_COLOUR, linestyle="--", linewidth=1)
    axes.set_xlim(0, 100 * max(1.15 * even, float(usage.max())) * 1.45)
    axes.set_title("usage, %")
    _write_beside(axes, 100 * usage, [f"{100 * share:.1f}" if share > 0 else "" for share in usage])
    _strip(axes, {100 * even: f"even: {100 * even:.3g}"})


def _draw_entropy(axes: "Axes", specialization: Specialization, order: list[int]) -> None:
    entropies = specialization.entropies[order].numpy()
    most = math.log(len(specialization.classes))
    axes.barh(range(len(order)), np.nan_to_num(entropies), color=BAR_COLOUR, height=0.7)
    axes.axvline(most, color=REFERENCE_COLOUR, linestyle="--", linewidth=1)
    # With one class every entropy is 0, and an axis needs a length.
    axes.set_xlim(0, 1.45 * (most or 1.0))
    axes.set_title("S, nats")
    _write_beside(axes, entropies, ["no mass" if math.isnan(value) else f"{value:.2f}" for value in entropies])
    _strip(axes, {most: f"log {len(specialization.classes)} = {most:.2f}"})


def _write_shares(axes: "Axes", shares_EC: NDArray[np.float64]) -> None:
    # Under half a percent the colour says enough.
    for row, column in zip(*np.nonzero(np.nan_to_num(shares_EC) >= 0.005), strict=True):
        share = float(shares_EC[row, column])
        # Black reads better than white up to here on this colour map.
        colour = "white" if share > 0.65 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)


def _write_beside(axes: "Axes", lengths: NDArray[np.float64], texts: list[str]) -> None:
    if len(texts) > MOST_NAMES:
        return
    gap = 0.04 * axes.get_xlim()[1]
    # On white, so that the dashed line does not cross the figures.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    for row, (length, text) in enumerate(zip(np.nan_to_num(lengths), texts, strict=True)):
        if text:
            axes.text(float(length) + gap, row, text, va="center", fontsize=8, color="#222222", bbox=ground)


def _strip(axes: "Axes", references: dict[float, str]) -> None:
    """Bars that carry their numbers need no frame and no scale, but for what they are to be compared with."""
    axes.tick_params(axis="y", which="both", length=0, labelleft=False)
    axes.set_xticks(list(references), list(references.values()), fontsize=8, color=REFERENCE_COLOUR)
    axes.tick_params(axis="x", length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _class_label(name: str, num_samples: int) -> str:
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return short if num_samples else f"{short} (no sample)"


def _ticks(count: int) -> list[int]:
    return list(range(0, count, math.ceil(count / MOST_NAMES)))


def _font_size(count: int) -> int:
    return 9 if count <= 25 else 7
