"""What the experts are worth, in two sentences: above the router that finds them, and above replay of as many bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from meshnode.report.documents import Document
from meshnode.report.rows import Row, groups_of

__all__ = ["margins_of"]

DOCUMENT, OURS = "bench_scenarios", "routed experts"
REPLAY = "DER++ same bytes, trunk"
ROUTER_ALONE = "router argmax"
"""How the rows of routers that answer by themselves begin; where there are several, the strongest counts."""


def margins_of(documents: Sequence[Document]) -> list[str]:
    """A sentence for each rival that was measured beside routed experts; none without their document."""
    scenarios = [
        (group.name, {row.name: row for row in group.rows})
        for document in documents
        if document.name == DOCUMENT
        for group in groups_of(document)
    ]
    above_router = list(_points(scenarios, "trunk", lambda name: name.startswith(ROUTER_ALONE)))
    above_replay = list(_points(scenarios, "trunk", lambda name: name == REPLAY))
    without_trunk = list(_points(scenarios, "pixels", lambda name: name.startswith(ROUTER_ALONE)))
    sentences = []
    if above_router:
        sentences.append(f"Over the router's own answer, on the same trunk, experts add {_listed(above_router)}.")
    if above_replay:
        sentences.append(
            f"Over replay (DER++) that keeps as many bytes on the same trunk, experts and router are at "
            f"{_listed(above_replay)}."
        )
    if without_trunk:
        sentences.append(f"On raw pixels, where there is no trunk, they add {_listed(without_trunk)}.")
    return sentences


def _points(
    scenarios: Sequence[tuple[str, Mapping[str, Row]]], on: str, is_rival: Callable[[str], bool]
) -> Iterator[tuple[str, float]]:
    """By scenario, how far our row is above the strongest of the rivals on the same input."""
    ours = f"{OURS}, {on}"
    for scenario, rows in scenarios:
        rivals = [row.values["accuracy"] for name, row in rows.items() if name.endswith(f", {on}") and is_rival(name)]
        if ours in rows and rivals:
            yield scenario, rows[ours].values["accuracy"] - max(rivals)


def _listed(points: Sequence[tuple[str, float]]) -> str:
    """With the unit once, and the sign always."""
    parts = [f"{value:+.1f} on {scenario}" for scenario, value in points]
    return f"{', '.join(parts)} (points of accuracy)"
