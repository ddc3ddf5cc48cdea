"""The picture of tidying: accuracy as experts go, by whom it falls on; and what is left where peers die."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw"]

COLOURS = {"information": "#b2182b", "usage": "#e08214", "random": "#9a9a9a"}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A row of panels for each way in which classes come."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is for --write only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figures = document["figures"]
    figure, axes = pyplot.subplots(len(figures), 3, figsize=(13, 3.6 * len(figures)), layout="constrained")
    for (name, of), (tidied, choice, deaths) in zip(figures.items(), axes, strict=True):
        rows = of["tidied"]
        sizes = [row["kept_kb"] for row in rows.values()]
        tidied.scatter(sizes, [row["accuracy"] for row in rows.values()], color="#2166ac")
        for number, (row, found) in enumerate(rows.items()):
            offset = (6, 8 - 11 * (number % 3))
            tidied.annotate(row, (found["kept_kb"], found["accuracy"]), offset, textcoords="offset points", fontsize=8)
        tidied.margins(0.3)
        tidied.set_xlabel("kB of experts kept")
        tidied.set_ylabel("accuracy, %")
        tidied.set_title(f"{name}: merged and retired", fontsize=10)
        for rule, accuracies in of["retired_one_by_one"].items():
            choice.plot(
                accuracies,
                marker="o",
                ms=4,
                color=COLOURS[rule],
                label=f"least {rule}".replace("least random", "at random"),
            )
        choice.set_xlabel("experts retired, nothing handed on")
        choice.set_ylabel("accuracy, %")
        choice.set_title(f"{name}: whom it falls on", fontsize=10)
        choice.legend(fontsize=8, frameon=False)
        for number, (kept, rules) in enumerate(of["after_deaths"].items()):
            at = [position + 0.4 * number for position in range(len(rules))]
            deaths.barh(at, [found["as_classes_come"] for found in rules.values()], 0.38, label=kept)
            deaths.set_yticks([position + 0.2 for position in range(len(rules))], list(rules))
        deaths.set_xlim(50, 100)
        deaths.set_xlabel("accuracy as classes come, %")
        deaths.set_title(f"{name}: left when peers have died", fontsize=10)
        deaths.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        for panel in (tidied, choice):
            # A point at least, lest what is less than seeds differ by looks like something.
            low, high = panel.get_ylim()
            panel.set_ylim(min(low, (low + high) / 2 - 0.5), max(high, (low + high) / 2 + 0.5))
            panel.ticklabel_format(useOffset=False)
        for panel in (tidied, choice, deaths):
            panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
