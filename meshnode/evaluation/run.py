"""Methods run on a scenario, order after order; finished runs are kept, and so are the figures and a report of them."""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch

from experts.data.image_files import ReadingProgress
from experts.errors import ExpertsError
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import TrunkInputs
from experts.evaluation.runner import RunProgress, RunResult, kept_run, run_scenario, untrained_row
from experts.evaluation.scenarios.base import Kind, Scenario
from experts.evaluation.suite.figures import row_figures
from experts.evaluation.suite.method import Method
from experts.evaluation.suite.methods import ROUTED, same_bytes
from experts.evaluation.suite.networks import SAME_BYTES
from experts.evaluation.suite.trunk import trunk_inputs
from meshnode import __version__
from meshnode.errors import ScenarioUnusable
from meshnode.evaluation.plan import Plan
from meshnode.report import Report, write_report
from meshnode.report.making import bench_document

__all__ = ["Evaluated", "evaluate"]

TOLD_EVERY_S = 10.0
"""Of a method that learns for long, a line after a task, if the last one is so old."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What came of it, and where it lies."""

    document: dict[str, Any]
    """As `bench_document` makes it."""
    path: Path
    report: Report


@dataclass(slots=True)
class _Rows:
    """The runs of each row so far."""

    kind: Kind | None = None
    runs: dict[str, list[RunResult]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    untrained: dict[str, list[Sequence[float]]] = field(default_factory=dict)
    """By input, how a network that has learned nothing answers."""

    def figures(self) -> dict[str, Any]:
        """A row of each."""
        return {
            row: row_figures(
                runs,
                self.runs.get(f"joint, {row.rpartition(', ')[2]}"),
                self.untrained.get(row.rpartition(", ")[2]),
                classes_grow=self.kind == "class-incremental",
            )
            for row, runs in self.runs.items()
        }


def evaluate(plan: Plan, out: Path, tell: Tell) -> Evaluated:
    """Run what is planned; what was run before with the same settings is taken from ``out``.

    Args:
        out: ``NAME.json`` goes there, a folder of finished runs, and the report of all documents that are there.
        tell: Takes a line of progress.

    Raises:
        ResourceAbsent: If data is missing.
        ScenarioUnusable: If the scenario's file or data is not as it has to be, or no method can learn it.
    """
    torch.set_num_threads(1)  # figures are of one core, whatever the machine has
    rows = _Rows()
    try:
        for order in range(plan.runs):
            _run_order(plan, order, out / "runs", rows, tell)
    except ExpertsError as exc:
        raise ScenarioUnusable(plan.scenario, str(exc)) from exc
    if not rows.runs:
        raise ScenarioUnusable(
            plan.scenario, f"none of {', '.join(plan.methods)} is for a scenario of its kind on {plan.on}"
        )
    document = bench_document(
        _command(plan),
        range(plan.runs),
        {plan.name: rows.figures()},
        measured={
            "trunk": {"tap": plan.tap, "pixels": plan.pixels},
            "kind": rows.kind,
            "settings": {plan.name: rows.settings},
            "accuracy_matrices": {
                plan.name: {row: [run.matrix.rows() for run in runs] for row, runs in rows.runs.items()}
            },
        },
        digits=4,
    )
    path = out / f"{plan.name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Evaluated(document=document, path=path, report=write_report(out, out))


def _run_order(plan: Plan, order: int, folder: Path, rows: _Rows, tell: Tell) -> None:
    """All methods on one order of the scenario."""
    scenario = plan.load(order, _reading(tell))
    rows.kind = scenario.kind
    tell(f"{plan.name}, order {order}: {_told(scenario)}")
    inputs = None if plan.on == "pixels" else _features(plan, scenario, tell)
    methods = plan.chosen(scenario, inputs)
    for method in methods:
        if method.name == "SGD":
            rows.untrained.setdefault(method.input, []).append(untrained_row(method.make(order), scenario))
    for method in methods:
        _run(plan, method, scenario, order, folder, rows, tell)
    routed = rows.runs.get(f"{ROUTED}, trunk")
    if routed and inputs is not None and (not plan.methods or SAME_BYTES in plan.methods):
        for method in same_bytes(scenario, inputs, routed[order].costs[-1].kept_bytes):
            if plan.on in (method.input, "both"):
                _run(plan, method, scenario, order, folder, rows, tell)


def _run(  # noqa: PLR0913, PLR0917 - what is run, on what, and where it goes
    plan: Plan, method: Method, scenario: Scenario, order: int, folder: Path, rows: _Rows, tell: Tell
) -> None:
    told_s = began_s = time.monotonic()

    def after(progress: RunProgress) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(f"  {method.row}: task {progress.task} of {progress.num_tasks} learned")

    terms = (__version__, scenario.digest(), method.row, method.settings, str(order), plan.tap, str(plan.pixels))
    result = kept_run(folder, terms, lambda: run_scenario(method.make(order), scenario, on_progress=after))
    rows.runs.setdefault(method.row, []).append(result)
    rows.settings[method.row] = method.settings
    accuracy = 100 * result.matrix.average_accuracy()
    tell(f"  {method.row}: {accuracy:.1f} % in {time.monotonic() - began_s:.1f} s")


def _features(plan: Plan, scenario: Scenario, tell: Tell) -> TrunkInputs:
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    told_s = time.monotonic()

    def after(done: int, of: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(f"  the trunk has seen {done} of {of} parts")

    return trunk_inputs(scenario, store, tap=plan.tap, pixels=plan.pixels, on_progress=after)


def _reading(tell: Tell) -> Callable[[ReadingProgress], None]:
    told_s = time.monotonic()

    def after(progress: ReadingProgress) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(f"  {progress.done} of {progress.total} images read")

    return after


def _told(scenario: Scenario) -> str:
    images = sum(len(task.train) for task in scenario.tasks)
    words = f"{len(scenario.tasks)} tasks, {len(scenario.classes)} classes, {images:,} training images"
    return f"{scenario.kind}, {words}"


def _command(plan: Plan) -> str:
    """The line that does the same again."""
    words = ["meshnode eval", shlex.quote(Path(plan.scenario).name if plan.is_file else plan.scenario)]
    words += [f"--method {shlex.quote(name)}" for name in plan.methods]
    for option, value, default in (
        ("--on", plan.on, "trunk"),
        ("--runs", plan.runs, 1),
        ("--train", plan.train_images, None),
        ("--test", plan.test_images, None),
        ("--images-per-class", plan.images_per_class, None),
        ("--tap", plan.tap, "B4"),
        ("--pixels", plan.pixels, 64),
    ):
        if value != default:
            words.append(f"{option} {value}")
    return " ".join(words)
