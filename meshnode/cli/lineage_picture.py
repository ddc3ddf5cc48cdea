"""A picture of an expert's line: how well it did before and after each change of form, and how large each form is.

Both accuracies of a step are of the same held-out images, so a step is drawn as one line between them. Two steps may
be of different images and nodes, and the expert may have learned in between: their ends need not meet.
"""

import io
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a second, which only those who draw should pay
    from matplotlib.axes import Axes

__all__ = ["lineage_png"]

DOTS_PER_INCH = 110
KEPT_COLOUR, LOST_COLOUR, SIZE_COLOUR = "#1f5fa8", "#c25a00", "#4a6a8a"
INCHES_AN_EXPERT = 1.9
UID_CHARACTERS = 8
LEAST_SPAN = 4.0
"""Points that the scale of accuracies spans at least: a difference of one image in a thousand is to look like that."""

Made = Mapping[str, Any]


def lineage_png(document: Mapping[str, Any]) -> bytes:
    """Draw the picture, without a screen and without state shared between calls.

    Args:
        document: ``meshnode.expert-lineage/1``, of an expert of which at least one step was measured.

    Returns: A PNG file.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    experts: Sequence[Made] = document["experts"]
    width = min(max(INCHES_AN_EXPERT * len(experts) + 1.2, 5.5), 30.0)
    # Not pyplot: it would keep every figure and pick a window system.
    figure = Figure(figsize=(width, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 1]})
    _draw_accuracy(above, experts)
    _draw_sizes(below, experts)
    title = f"The line of expert {document['uid'][:UID_CHARACTERS]}: {', '.join(document['classes'])}"
    # Names are anyone's: a pair of dollar signs would be set as a formula, or refused as a wrong one.
    figure.suptitle(title if len(title) <= 90 else f"{title[:89]}…", fontsize=12, parse_math=False)
    file = io.BytesIO()
    # Without matplotlib's version, so that equal lines give equal files.
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _draw_accuracy(axes: "Axes", experts: Sequence[Made]) -> None:
    values = []
    for place, made in enumerate(experts):
        accuracy = made["accuracy"]
        if accuracy is None:
            continue
        old, new = 100 * accuracy["old"], 100 * accuracy["new"]
        colour = KEPT_COLOUR if new >= old else LOST_COLOUR
        axes.plot([place - 1, place], [old, new], color=colour, linewidth=2, marker="o", markerfacecolor="white")
        axes.annotate(
            f"{new - old:+.1f} points\n{accuracy['samples']:,} images",
            (place - 0.5, (old + new) / 2),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )
        rises = new >= old
        for x, value, aside, above in ((place - 1, old, 19, not rises), (place, new, -19, rises)):
            offset = (aside, 6 if above else -13)
            axes.annotate(f"{value:.1f}", (x, value), offset, textcoords="offset points", ha="center", fontsize=9)
        values += [old, new]
    span = max(max(values) - min(values), LEAST_SPAN)
    # Above the highest there is room for what stands over a line, but nothing beyond 100 to be measured.
    axes.set(
        ylabel="held-out accuracy, %",
        ylim=(max(values) - 1.15 * span, max(values) + 0.3 * span),
        xlim=(-0.6, len(experts) - 0.4),
    )
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 100])
    axes.grid(axis="y", alpha=0.25)
    axes.tick_params(axis="x", length=0)


def _draw_sizes(axes: "Axes", experts: Sequence[Made]) -> None:
    sizes = [made["parameters"] or 0 for made in experts]
    axes.bar(range(len(experts)), sizes, color=SIZE_COLOUR, width=0.45)
    for place, made in enumerate(experts):
        text = "?" if made["parameters"] is None else f"{made['parameters']:,}"
        axes.annotate(text, (place, sizes[place]), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set(ylabel="parameters", ylim=(0, 1.25 * max(*sizes, 1)))
    axes.set_xticks(range(len(experts)), [_label(made) for made in experts], fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _label(made: Made) -> str:
    """Which expert, of which form, by whom and when."""
    sizes = ", ".join(
        f"{name} {value}"
        for name, value in made["config"].items()
        if isinstance(value, int) and not isinstance(value, bool) and name != "feature_dim"
    )
    lines = [made["uid"][:UID_CHARACTERS], f"{made['kind']}{f': {sizes}' if sizes else ''}"]
    if made["parent"] is not None:
        when = time.strftime("%d %b %Y", time.localtime(made["made_at"]))
        lines.append(f"{made['peer_name'] or made['peer_id'][:8]}, {when}")
    return "\n".join(lines)
