"""The picture of the ablations: a panel for each setting, accuracy by its value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw"]

COLUMNS = 4


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Bars with the deviation over orders; the default is the red one."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is for --write only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    settings = {name: values for name, values in document["figures"].items() if name != "argmax_alone"}
    num_rows = -(-len(settings) // COLUMNS)
    figure, axes = pyplot.subplots(num_rows, COLUMNS, figsize=(13, 3.2 * num_rows), layout="constrained", squeeze=False)
    for panel, (name, values) in zip(axes.flat, settings.items(), strict=False):
        heights = [row["accuracy"] for row in values.values()]
        colours = ["#b2182b" if value == "default" else "#7a9cc6" for value in values]
        panel.bar(list(values), heights, yerr=[row["std"] or 0.0 for row in values.values()], color=colours, capsize=3)
        spread = max(heights) - min(heights)
        panel.set_ylim(min(heights) - max(0.5, 0.4 * spread), max(heights) + max(0.5, 0.25 * spread))
        panel.set_title(f"{name}\n{document['measured']['scenarios'][name]}", fontsize=9)
        panel.tick_params(axis="x", labelsize=8)
        panel.set_ylabel("accuracy, %", fontsize=8)
        panel.grid(axis="y", alpha=0.3)
    for panel in list(axes.flat)[len(settings) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
