"""What the project set out to reach, beside what its own benchmarks measured.

Every setting that a benchmark has is judged, those that miss included; an outcome is met if all of them meet it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from meshnode.report.documents import Document
from meshnode.report.rows import Row, groups_of

__all__ = ["Measurement", "Outcome", "Verdict", "measured_by", "outcomes_of", "to_dict"]

Verdict = Literal["met", "met in part", "missed", "not measured"]

LEAST_SAVED, LEAST_RETAINED, MOST_ADDED, LEAST_SPEED_UP = 0.6, 0.9, 0.1, 2.0
"""The modest end of each expectation."""

LEARNERS = {"bench_scenarios": ("routed experts, trunk",), "bench_continual": ("tasks", "stream")}
"""Of each document that has rows of continual learning, those of a mesh's own way of learning."""

RETRAINED = {"bench_scenarios": ("joint, trunk", "joint, pixels"), "bench_continual": ("joint",)}
"""The rows that are trained anew on everything seen so far, whenever a task comes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One setting of one document."""

    setting: str
    value: str
    merit: float
    """The same as a number, of which more is better."""
    is_met: bool
    document: Document


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """An expectation, and all that was measured of it."""

    expected: str
    bound: str
    measurements: Sequence[Measurement]

    @property
    def range(self) -> str:
        """The worst and the best that was measured."""
        if not self.measurements:
            return "nothing"
        by_merit = sorted(self.measurements, key=lambda measurement: measurement.merit)
        return " to ".join(dict.fromkeys((by_merit[0].value, by_merit[-1].value)))

    @property
    def verdict(self) -> Verdict:
        """In one word or three."""
        if not self.measurements:
            return "not measured"
        if all(measurement.is_met for measurement in self.measurements):
            return "met"
        return "met in part" if any(measurement.is_met for measurement in self.measurements) else "missed"


def outcomes_of(documents: Sequence[Document]) -> list[Outcome]:
    """All of them, of whatever of their documents is there."""
    by_name = {document.name: document for document in documents}

    def found(measure: Callable[[Document], Iterator[Measurement]], *names: str) -> list[Measurement]:
        return [one for name in names if name in by_name for one in measure(by_name[name])]

    learning = ("bench_continual", "bench_scenarios")
    return [
        Outcome(
            expected="60 to 80 % less compute for updates than for full retraining after each task, in FLOPs, "
            "features and teachers included",
            bound=f"at least {100 * LEAST_SAVED:.0f} % less",
            measurements=[*found(_saved, *learning), *found(_saved_of_one_task, "bench_update_cost")],
        ),
        Outcome(
            expected="at least 90 % of the original accuracy on earlier tasks kept, mean over tasks and worst task of "
            "any run",
            bound=f"at least {100 * LEAST_RETAINED:.0f} %",
            measurements=found(_retained, *learning),
        ),
        Outcome(
            expected="5 to 10 % new parameters a task, of those of a task-specific model",
            bound=f"at most {100 * MOST_ADDED:.0f} %",
            measurements=found(_added, "bench_continual"),
        ),
        # Two of them, as what daemons really took is not to be mixed with what a model says.
        Outcome(
            expected="two to three times as soon at a target accuracy by real daemons working together, which have "
            "whole tasks, on one machine and as if each had its own",
            bound=f"at least {LEAST_SPEED_UP:g} times as soon",
            measurements=found(_sped_up, "bench_collaboration"),
        ),
        Outcome(
            expected="two to three times as soon at a target accuracy by nodes in simulation, of CPU seconds of "
            "learning and a modelled network, with whole tasks or a share of each",
            bound=f"at least {LEAST_SPEED_UP:g} times as soon",
            measurements=found(_sped_up, "bench_collaboration_simulated"),
        ),
    ]


def _saved(document: Document) -> Iterator[Measurement]:
    for scenario, ours, rows in _learners(document):
        flops = ours.number("gflops")
        for name in RETRAINED[document.name]:
            rival = rows[name].number("gflops") if name in rows else None
            if flops is not None and rival:
                saved = 1 - flops / rival
                words = f"{100 * abs(saved):.1f} % {'less' if saved >= 0 else 'more'}"
                accuracies = " against ".join(f"{row.values['accuracy']:.1f}" for row in (ours, rows[name]))
                setting = f"{scenario}: {ours.name}, over {name} (accuracy {accuracies} %)"
                yield Measurement(
                    setting=setting, value=words, merit=saved, is_met=saved >= LEAST_SAVED, document=document
                )


def _saved_of_one_task(document: Document) -> Iterator[Measurement]:
    """Of the last task's update, over a network trained anew to the end on all tasks."""
    for group in groups_of(document):
        for row in group.rows:
            ratio = row.number("of_convergence_ratio")
            if ratio is not None:
                trunk = f"{group.name}, " if group.name else ""
                yield Measurement(
                    setting=f"{trunk}{row.name}: the fifth task, over the reference CNN trained to the end on all five",
                    value=f"{100 * (1 - ratio):.1f} % less",
                    merit=1 - ratio,
                    is_met=1 - ratio >= LEAST_SAVED,
                    document=document,
                )


def _retained(document: Document) -> Iterator[Measurement]:
    for scenario, ours, _ in _learners(document):
        for key, words in (("retention", "mean"), ("least_retention", "worst task")):
            value = ours.number(key)
            if value is not None:
                yield Measurement(
                    setting=f"{scenario}: {ours.name}, {words}",
                    value=f"{100 * value:.1f} %",
                    merit=value,
                    is_met=value >= LEAST_RETAINED,
                    document=document,
                )


def _added(document: Document) -> Iterator[Measurement]:
    for scenario, ours, _ in _learners(document):
        value = ours.number("parameters_added_ratio")
        if value is not None:
            yield Measurement(
                setting=f"{scenario}: {ours.name}",
                value=f"{100 * value:.1f} %",
                merit=-value,
                is_met=value <= MOST_ADDED,
                document=document,
            )


def _sped_up(document: Document) -> Iterator[Measurement]:
    kinds = {
        "simulated_speed_up": "simulated, a machine and a line for each node",
        "wall_speed_up": f"real daemons, {document.measured.get('cores_shared', 'some')} cores shared by all",
    }
    for group in groups_of(document):
        for row in group.rows:
            for key, words in kinds.items():
                if row.name == "1 node" or key not in row.values:
                    continue
                value = row.number(key)
                yield Measurement(
                    setting=f"{', '.join(filter(None, (group.name, row.name)))}, {words}",
                    value="target accuracy not reached" if value is None else f"{value:.2f} times as soon",
                    merit=float("-inf") if value is None else value,
                    is_met=value is not None and value >= LEAST_SPEED_UP,
                    document=document,
                )


def _learners(document: Document) -> Iterator[tuple[str, Row, Mapping[str, Row]]]:
    """Scenario, our row, and all rows of the scenario by name."""
    for group in groups_of(document):
        rows = {row.name: row for row in group.rows}
        for name in LEARNERS[document.name]:
            if name in rows:
                yield group.name, rows[name], rows


def measured_by(outcome: Outcome) -> list[str]:
    """The commands that measured it, each once."""
    return list(dict.fromkeys(measurement.document.command for measurement in outcome.measurements))


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    return {
        "expected": outcome.expected,
        "bound": outcome.bound,
        "verdict": outcome.verdict,
        "commands": measured_by(outcome),
        "measured": [
            {"setting": one.setting, "value": one.value, "met": one.is_met, "document": one.document.name}
            for one in outcome.measurements
        ],
    }
