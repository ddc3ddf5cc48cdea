"""The picture beside `bench_preservation.json`: how new experts go on, and what the choices in a transfer come to."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["draw"]

DRAWN = ("half", "fifth", "double", "deeper", "trunk_half", "trunk_conv")

NAMES = {
    "mapped": "carried over",
    "mapped_without_refit": "without refit",
    "random_units_refit": "units at random, refit",
    "random_units": "units at random",
    "random_permutation": "weights of different units",
    "scratch": "random weights",
}

FITS = {"without_refit": "without refit", "refit": "with refit"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(14, 11.5), layout="constrained")
    axes = figure.subplots(3, 3)
    measured = document["measured"]
    for place, form in zip(axes.flat, DRAWN, strict=False):
        _draw_steps(place, measured[form])
    axes.flat[0].legend(fontsize=8, frameon=False, loc="lower right")
    scores, betas, apart = axes.flat[len(DRAWN) :]
    _draw_fits(scores, measured["options"]["scores"]["fifth"], "128 to 25 units, by score of importance")
    _draw_fits(betas, measured["options"]["betas"], "128 to 64 units, by $\\beta$")
    _draw_apart(apart, measured["apart"])
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _draw_steps(axes: "Axes", measured: Mapping[str, Any]) -> None:
    for colour, (side, name) in enumerate(NAMES.items()):
        runs = measured["sides"][side]["accuracy"]
        numbers = sorted(runs, key=int)
        axes.plot(
            [int(steps) for steps in numbers],
            [fmean(runs[steps]) for steps in numbers],
            color=f"C{colour}",
            zorder=10 - colour,
            marker="o",
            markersize=4,
            label=name,
        )
    axes.axhline(fmean(measured["old"]), color="grey", linestyle=":", linewidth=1, label="the old expert")
    axes.set_xscale("symlog", linthresh=10, linscale=0.5)
    axes.set_xticks([0, 10, 100, 1000], ["0", "10", "100", "1,000"])
    axes.set(xlim=(-1, 1200), ylim=(0, 100))
    axes.set_title(f"{measured['items'].split(',')[0]}: {measured['told']}", fontsize=10)
    axes.set(xlabel="steps of distillation from the old expert", ylabel="accuracy, %")


def _draw_fits(axes: "Axes", by_value: Mapping[str, Any], title: str) -> None:
    for offset, (fit, name) in zip((-0.2, 0.2), FITS.items(), strict=True):
        gaps = [fmean(fits[fit]) for fits in by_value.values()]
        bars = axes.bar([place + offset for place in range(len(gaps))], gaps, width=0.4, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(by_value)), [name.replace("_", "\n") for name in by_value], fontsize=8)
    axes.set_title(f"Points below the old expert at step 0:\n{title}", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _draw_apart(axes: "Axes", measured: Mapping[str, Any]) -> None:
    cases = {(behind, group): of for behind, groups in measured.items() for group, of in groups.items()}
    sides = {
        "monolith": "the whole network",
        "mapped": "expert, 0 steps",
        "scratch_10": "random weights, 10 steps",
        "scratch_100": "100 steps",
    }
    for place, (side, name) in enumerate(sides.items()):
        values = [fmean(of[side]) for of in cases.values()]
        bars = axes.bar([0.2 * place + at for at in range(len(cases))], values, width=0.2, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(
        [at + 0.3 for at in range(len(cases))], [f"{b},\n{g.replace('_', ' ')}" for b, g in cases], fontsize=8
    )
    axes.set_ylim(0, 130)
    axes.set_title("A network taken apart into experts: accuracy, %", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center")
