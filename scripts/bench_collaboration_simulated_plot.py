"""The picture beside `bench_collaboration_simulated.json`: how much sooner by number of nodes, and what comes when."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_collaboration_time import EXPECTED_SPEED_UP

if TYPE_CHECKING:  # matplotlib takes a second, and is for --write only
    from matplotlib.axes import Axes

__all__ = ["draw"]


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw a whole document as a PNG file."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    gains, courses = figure.subplots(1, 2)
    kinds = [kind for kind in document["figures"] if kind in document["measured"]["runs"] and kind != "1 node"]
    for colour, kind in enumerate(kinds):
        _draw_gains(gains, kind, document["figures"][kind], f"C{colour}")
        _draw_course(courses, kind, document["measured"]["runs"][kind]["4 nodes"][0]["course"], f"C{colour}")
    _draw_course(courses, "one node", document["measured"]["runs"]["1 node"][0]["course"], "grey")
    gains.axhline(EXPECTED_SPEED_UP, color="grey", linestyle=":", linewidth=1, label="expected at least")
    numbers = [1, *(int(name.split()[0]) for name in document["figures"][kinds[0]])]
    gains.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    gains.set(title="Times as soon at the target accuracy (simulated)", xlabel="nodes", ylim=(0, None))
    courses.set(
        title="Accuracy of four nodes, first seed, %", xlabel="simulated seconds", ylim=(0, 100), xlim=(0, None)
    )
    gains.legend(fontsize=8, frameon=False, loc="upper left")
    courses.legend(fontsize=8, frameon=False, loc="lower right")
    # Without matplotlib's version, so that equal documents give equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_gains(axes: "Axes", kind: str, rows: Mapping[str, Any], colour: str) -> None:
    """What did not get to the target is at 0."""
    gains = [1.0, *(row["simulated_speed_up"] or 0.0 for row in rows.values())]
    deviations = [0.0, *(row["speed_up_std"] or 0.0 for row in rows.values())]
    axes.errorbar(range(len(gains)), gains, yerr=deviations, color=colour, marker="o", capsize=3, label=kind)


def _draw_course(axes: "Axes", name: str, course: list[tuple[float, float]], colour: str) -> None:
    moments, accuracies = zip(*[(0.0, 0.0), *course], strict=True)
    axes.step(moments, accuracies, where="post", color=colour, linewidth=1.5, label=name)
