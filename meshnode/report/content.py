"""What a report says, in order: outcomes, targets, rows and pictures of each document, and where it comes from."""

import re
from collections.abc import Iterator, Mapping, Sequence

from meshnode.report.documents import Document, Found
from meshnode.report.margins import margins_of
from meshnode.report.outcomes import Outcome, measured_by
from meshnode.report.page import Block, Heading, Paragraph, Picture, Table
from meshnode.report.plots import costs_of, courses_png, matrices_png, pareto_png, routing_png
from meshnode.report.rows import Group, Matrices, groups_of, is_number, matrices_of, routing_maps_of

__all__ = ["TITLE", "blocks_of", "outcomes_table"]

TITLE = "ModuleMesh: what was measured"

MOST_LYING_OPEN = 24
"""Rows of a table of single figures; a longer one is folded."""

NOTHING = "-"
"""Stands where there is no figure."""

SPREADS = {"std": "accuracy", "task_std": "task_accuracy"}
"""Deviations that stand with their mean, in one cell."""


def blocks_of(found: Found, outcomes: Sequence[Outcome]) -> list[Block]:
    """The whole report."""
    return [
        *_beginning(found),
        *_outcomes(outcomes),
        *_targets(found.documents),
        *(block for document in found.documents for block in _document(document)),
        *_sources(found),
    ]


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each expectation: its bound, how often it is met, and the commands."""
    rows = []
    for outcome in outcomes:
        met = sum(one.is_met for one in outcome.measurements)
        rows.append(
            (
                outcome.expected,
                outcome.bound,
                outcome.range,
                outcome.verdict,
                f"{met} of {len(outcome.measurements)}",
                "; ".join(measured_by(outcome)) or "no result",
            )
        )
    columns = ("expected", "held to", "measured, worst to best", "verdict", "settings that meet it", "measured by")
    return Table(columns=columns, rows=rows, numbers_from=len(columns), verdict_column=3)


def _beginning(found: Found) -> Iterator[Block]:
    targets = [target for document in found.documents for target in document.targets]
    met = sum(target.is_met for target in targets)
    yield Heading(level=1, text=TITLE)
    margins = margins_of(found.documents)
    if margins:
        yield Paragraph(text=" ".join(margins))
    held = f", {_count(len(targets), 'target')}: {met} met, {len(targets) - met} missed" if targets else ""
    yield Paragraph(
        text=f"{_count(len(found.documents), 'result')}{held}. Every figure was printed by a command that stands at "
        "the end, with its seeds and its machine. An accuracy is in percent; ± is the sample deviation over seeds or "
        "orders. Seconds belong to the machine they were measured on."
    )


def _outcomes(outcomes: Sequence[Outcome]) -> Iterator[Block]:
    if not any(outcome.measurements for outcome in outcomes):
        return
    yield Heading(level=2, text="Expected outcomes")
    yield Paragraph(
        text="What the project set out to reach. Every setting that was measured is judged, and an outcome is met only "
        "if all of them meet it."
    )
    yield outcomes_table(outcomes)
    rows = [
        (
            outcome.expected.partition(",")[0],
            one.setting,
            one.value,
            "met" if one.is_met else "MISSED",
            one.document.name,
        )
        for outcome in outcomes
        for one in outcome.measurements
    ]
    if rows:
        yield Table(
            columns=("expected", "setting", "measured", "", "result"),
            rows=rows,
            numbers_from=5,
            verdict_column=3,
            folded=f"All {len(rows)} settings, one by one",
        )


def _targets(documents: Sequence[Document]) -> Iterator[Block]:
    rows = [
        (document.name, target.name, target.wanted, _value(target.measured), "met" if target.is_met else "MISSED")
        for document in documents
        for target in document.targets
    ]
    if not rows:
        return
    missed = [row for row in rows if row[-1] == "MISSED"]
    columns = ("result", "target", "wanted", "measured", "")
    yield Heading(level=2, text="Targets")
    if missed:
        yield Heading(level=3, text=f"Missed: {len(missed)} of {len(rows)}")
        yield Table(columns=columns, rows=missed, numbers_from=5, verdict_column=4)
    else:
        yield Paragraph(text="None is missed.")
    met = [row for row in rows if row[-1] != "MISSED"]
    if met:
        yield Table(
            columns=columns, rows=met, numbers_from=5, verdict_column=4, folded=f"Met: {len(met)} of {len(rows)}"
        )


def _document(document: Document) -> Iterator[Block]:
    yield Heading(level=2, text=document.name)
    yield Paragraph(text=f"Measured by: {document.command}")
    groups = groups_of(document)
    courses: dict[str, list[Matrices]] = {}
    for matrices in matrices_of(document):
        courses.setdefault(matrices.group, []).append(matrices)
    for group in groups:
        if group.name:
            yield Heading(level=3, text=group.name)
        yield _rows(group)
        of_group = courses.pop(group.name, [])
        yield from _courses(document, of_group)
        costs = costs_of(group)
        if costs:
            words = "Accuracy against cost. What no other method beats in both is filled, and joined by the line."
            yield _picture((document.name, group.name, "cost"), pareto_png(group, costs), words)
    for name, left in courses.items():
        if name:
            yield Heading(level=3, text=name)
        yield from _courses(document, left)
    for routing in routing_maps_of(document):
        words = f"Which expert answers for which class{f': {routing.name}' if routing.name else ''}"
        yield _picture((document.name, routing.name, "routing"), routing_png(routing), words)
    yield from _single_figures(document)


def _courses(document: Document, group: Sequence[Matrices]) -> Iterator[Block]:
    if not group:
        return
    name = group[0].group
    words = "Accuracy over the tasks learned so far, mean and deviation over runs"
    yield _picture((document.name, name, "course"), courses_png(group), words)
    words = "Accuracy matrices, mean over runs: a row is what was learned so far, a column what was asked"
    yield _picture((document.name, name, "matrices"), matrices_png(group), words)


def _rows(group: Group) -> Table:
    """Every single figure of the rows; a deviation stands with its mean."""
    keys = dict.fromkeys(key for row in group.rows for key, value in row.values.items() if _is_single(value))
    shown = [key for key in keys if not (key in SPREADS and SPREADS[key] in keys)]
    spread_of = {mean: spread for spread, mean in SPREADS.items()}

    def cell(values: Mapping[str, object], key: str) -> str:
        spread = values.get(spread_of.get(key, ""))
        if not _is_single(values.get(key)):
            return NOTHING
        return _value(values[key]) + (f" ± {_value(spread)}" if is_number(spread) else "")

    rows = [[row.name, *(cell(row.values, key) for key in shown)] for row in group.rows]
    return Table(columns=["", *(key.replace("_", " ") for key in shown)], rows=rows)


def _single_figures(document: Document) -> Iterator[Block]:
    """What stands in no row, by its path."""
    how = document.measured.get("how")
    how = how if isinstance(how, dict) else {}
    targets = {target.name: target for target in document.targets}
    rows = []
    for path, value in _singles(document.figures):
        target = targets.get(path)
        verdict = "" if target is None else "met" if target.is_met else "MISSED"
        rows.append((path, _value(value), "" if target is None else target.wanted, verdict, str(how.get(path, ""))))
    if not rows:
        return
    columns = ("figure", "measured", "target", "", "made from")
    width = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    yield Table(
        columns=columns[:width],
        rows=[row[:width] for row in rows],
        numbers_from=len(columns),
        verdict_column=3,
        folded=f"{len(rows)} single figures" if len(rows) > MOST_LYING_OPEN else "",
    )


def _singles(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        if path and is_number(value.get("accuracy")):
            return
        for name, part in value.items():
            yield from _singles(part, f"{path}: {name}" if path else str(name))
    elif _is_single(value):
        yield path, value


def _sources(found: Found) -> Iterator[Block]:
    yield Heading(level=2, text="Where it comes from")
    rows = [
        (
            document.name,
            document.command,
            ", ".join(map(str, document.seeds)),
            ", ".join(f"{key} {value}" for key, value in document.machine.items()),
            ", ".join(f"{key} {value}" for key, value in document.versions.items()),
        )
        for document in found.documents
    ]
    yield Table(columns=("result", "command", "seeds", "machine", "versions"), rows=rows, numbers_from=5)
    if found.passed_over:
        yield Paragraph(text=f"Not results of benchmarks, and left out: {', '.join(found.passed_over)}.")


def _picture(parts: Sequence[str], png: bytes, caption: str) -> Picture:
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(part for part in parts if part).lower()).strip("-")
    return Picture(name=words, png=png, caption=caption)


def _is_single(value: object) -> bool:
    return isinstance(value, bool | str) or is_number(value)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    words: dict[object, str] = {None: NOTHING, True: "yes", False: "no"}
    return words.get(value, str(value))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
