"""Methods run on a scenario, order after order; finished runs are kept, and so are the figures and a report of them."""

import contextlib
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from experts.data.image_files import ReadingProgress
from experts.errors import ExpertsError
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import TrunkInputs
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.suite.method import Input, Method
from experts.evaluation.suite.methods import same_bytes
from experts.evaluation.suite.networks import head_setup, pixel_setup
from experts.evaluation.suite.settings import SAME_BYTES, TUNED, Given
from experts.evaluation.suite.table import TOLD_EVERY_S, MethodTable
from experts.evaluation.suite.trunk import trunk_inputs
from experts.evaluation.suite.tuning import HELD_OUT, RATES, tuned_rates
from meshnode import __version__
from meshnode.errors import ResourceAbsent, ScenarioUnusable
from meshnode.evaluation.plan import Plan
from meshnode.report import Report, write_report
from meshnode.report.documents import read_documents
from meshnode.report.making import bench_document

__all__ = ["RUNS", "Evaluated", "evaluate"]

RUNS = "runs"
"""In the folder that results go to: finished runs."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What came of it, and where it lies."""

    document: dict[str, Any]
    """As `bench_document` makes it."""
    path: Path
    report: Report


def evaluate(plan: Plan, out: Path, tell: Tell) -> Evaluated:
    """Run what is planned; what was run before with the same settings is taken from ``out``.

    Args:
        out: ``NAME.json`` goes there, a folder of finished runs, and the report of all documents that are there.
        tell: Takes a line of progress.

    Raises:
        ResourceAbsent: If data is missing.
        ScenarioUnusable: If the scenario's file or data is not as it has to be, or no method can learn it.
        ResultUnreadable: If ``out`` has a damaged document, which the report would have to leave out.
        OSError: If ``out`` cannot be written.
    """
    torch.set_num_threads(1)  # figures are of one core, whatever the machine has
    (out / RUNS).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ResourceAbsent):  # what the report could not read is better known before than after
        read_documents(out)
    terms = (plan.tap, str(plan.pixels), __version__)
    table = MethodTable(terms=terms, folder=out / RUNS, tell=tell)
    try:
        given = _tuned(plan, table, tell) if plan.tune else None
        orders = [_described(_run_order(plan, order, table, given, tell)) for order in range(plan.runs)]
    except ExpertsError as exc:
        raise ScenarioUnusable(plan.scenario, str(exc)) from exc
    if not table.runs:
        raise ScenarioUnusable(
            plan.scenario, f"none of {', '.join(plan.methods)} is for a scenario of its kind on {plan.on}"
        )
    figures = dict(sorted(table.figures().items(), key=lambda row: -float(row[1]["accuracy"])))
    document = bench_document(
        _command(plan),
        range(plan.runs),
        {plan.name: figures},
        measured={
            "trunk": {"tap": plan.tap, "pixels": plan.pixels},
            "kind": table.kind,
            "orders": orders,
            "constant_runs": {plan.name: {row: number for row, number in table.constant.items() if number}},
            "settings": {plan.name: table.settings},
            "accuracy_matrices": {plan.name: table.accuracy_matrices()},
        },
        digits=4,
    )
    path = out / f"{plan.name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Evaluated(document=document, path=path, report=write_report(out, out))


def _run_order(plan: Plan, order: int, table: MethodTable, given: Given | None, tell: Tell) -> Scenario:
    """All methods on one order of the scenario, which is returned."""
    scenario = plan.load(order, _reading(tell))
    tell(f"{plan.name}, order {order}: {_told(scenario)}")
    inputs = None if plan.on == "pixels" else _features(plan, scenario, tell)

    def beside(kept_bytes: int) -> list[Method]:
        if inputs is None or SAME_BYTES not in plan.wanted:
            return []
        methods = same_bytes(scenario, inputs, kept_bytes, given=given)
        return [method for method in methods if plan.on in (method.input, "both")]

    table.run_order(scenario, plan.chosen(scenario, inputs, given), order, same_bytes=beside)
    return scenario


def _tuned(plan: Plan, table: MethodTable, tell: Tell) -> Given:
    """Settings of the networks, rates by what is held out of the first order's training images."""
    held_out = plan.load(0, _reading(tell)).for_tuning(HELD_OUT)
    tell(f"{plan.name}, {HELD_OUT:.0%} of the training images held out: {len(RATES)} rates for each network")
    setups: dict[Input, NetworkSetup] = {}
    if plan.on != "trunk":
        setups["pixels"] = pixel_setup(held_out)
    if plan.on != "pixels":
        setups["trunk"] = head_setup(held_out, _features(plan, held_out, tell))
    return {
        **TUNED[held_out.kind],
        **{on: tuned_rates(on, setup, held_out, plan.wanted, table) for on, setup in setups.items()},
    }


def _described(scenario: Scenario) -> dict[str, Any]:
    """What stands behind the rows and columns of its accuracy matrices."""
    tasks = [
        {"name": task.name, "classes": task.classes, "train_images": len(task.train), "test_images": len(task.test)}
        for task in scenario.tasks
    ]
    return {"scenario": scenario.name, "digest": scenario.digest(), "tasks": tasks}


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
    if plan.tune:
        words.append("--tune")
    return " ".join(words)
