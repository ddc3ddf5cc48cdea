"""``meshnode eval``: a user's own data learned by several methods, what is kept of it, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baseline_examples import task
from cli_process import meshnode

from experts.data.npz import save_task
from experts.evaluation.runner import RunResult, run_scenario
from experts.evaluation.suite import table
from experts.evaluation.suite.settings import TUNED, Settings
from meshnode.cli.app import run_line
from meshnode.errors import ExitCode, ResultUnreadable, ScenarioUnusable, UnknownName
from meshnode.evaluation import Plan, evaluate


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Two tasks of two classes each, as a user has them."""
    for number, classes in enumerate((("north", "west"), ("east", "south"))):
        save_task(tmp_path / f"{number}.npz", task(*classes, seed=number, size=30))
    lines = ['name = "places"', 'kind = "class-incremental"']
    for number in range(2):
        lines += ["[[task]]", f'name = "task-{number}"', f'train = {{ npz = "{number}.npz" }}']
    path = tmp_path / "my places.toml"
    path.write_text("\n".join(lines))
    return path


def _ignore(_: str) -> None:
    """No progress."""


def test_a_users_own_images_are_learned_side_by_side_and_a_report_tells(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    methods = [part for name in ("nearest mean", "router argmax", "SGD") for part in ("--method", name)]
    ended = meshnode("--json", "eval", scenario, *methods, "--runs", 2, "--pixels", 32, "--out", out)
    assert ended.code == 0, ended.err
    figures = ended.document["figures"]
    assert set(figures) == {"nearest mean, trunk", "router argmax, trunk", "SGD, trunk"}
    assert figures["router argmax, trunk"]["accuracy"] > 90
    assert figures["SGD, trunk"]["kept_kb"] == 0 < figures["router argmax, trunk"]["kept_kb"]
    assert figures["router argmax, trunk"]["excess_forgetting"] is None  # nobody ran the joint model
    document = json.loads((out / "my places.json").read_text(encoding="utf-8"))
    first, second = document["measured"]["orders"]
    assert first["scenario"] == "places"
    assert [(task["name"], task["classes"]) for task in first["tasks"]] == [
        ("task-0", ["north", "west"]),
        ("task-1", ["east", "south"]),
    ]
    assert (first["digest"] == second["digest"]) == (first["tasks"] == second["tasks"])
    assert list(document["figures"]["my places"]) == sorted(figures, key=lambda row: -float(figures[row]["accuracy"]))
    assert document["command"].startswith("meshnode eval 'my places.toml' --method 'nearest mean'")
    assert np.shape(document["measured"]["accuracy_matrices"]["my places"]["SGD, trunk"]) == (2, 2, 2)
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "router argmax, trunk" in page
    assert (out / "report.html").is_file()
    assert "Expected outcomes" not in page  # of the project's own benchmarks


def test_people_get_a_table_with_the_best_first_and_hear_what_goes_on(scenario: Path, tmp_path: Path) -> None:
    line = ("eval", scenario, "--on", "pixels", "--method", "SGD", "--method", "joint", "--out", tmp_path / "out")
    ended = meshnode(*line)
    assert ended.code == 0, ended.err
    assert [row.split(",")[0] for row in ended.out.splitlines()[1:]] == ["joint", "SGD"]
    assert "class-incremental, 2 tasks, 4 classes, 96 training images" in ended.err
    assert "joint, pixels" in ended.err
    assert "report.html" in ended.err


def test_an_interrupted_evaluation_goes_on_with_what_is_left(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(scenario=str(scenario), methods=("SGD", "EWC"), on="pixels")
    learned: list[str] = []

    def counted(method: Any, *args: Any, **how: Any) -> RunResult:
        learned.append(method.name)
        if len(learned) == 2:
            raise KeyboardInterrupt
        return run_scenario(method, *args, **how)

    monkeypatch.setattr(table, "run_scenario", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, tmp_path / "out", _ignore)
    assert not (tmp_path / "out" / "my places.json").exists()
    done = evaluate(plan, tmp_path / "out", _ignore)
    assert learned[1:] == ["EWC", "EWC"]
    assert set(done.document["figures"]["my places"]) == {"SGD, pixels", "EWC, pixels"}
    # Another seed, size or setting is another run.
    evaluate(Plan(scenario=str(scenario), methods=("SGD",), on="pixels", train_images=20), tmp_path / "out", _ignore)
    assert learned == [learned[0], "EWC", "EWC", learned[0]]


def test_who_reads_documents_is_told_of_an_interruption_in_one(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> RunResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "run_scenario", interrupted)
    line = ["eval", str(scenario), "--method", "SGD", "--on", "pixels", "--out", str(tmp_path / "out")]
    assert run_line(["--json", *line]) == ExitCode.INTERRUPTED
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"
    assert run_line(line) == ExitCode.INTERRUPTED
    assert not capsys.readouterr().out


def test_what_a_report_could_not_read_is_told_before_anything_is_learned(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.json").write_text("[1]")
    plan, told = Plan(scenario=str(scenario), methods=("SGD",), on="pixels"), []
    with pytest.raises(ResultUnreadable, match=r"notes\.json"):
        evaluate(plan, tmp_path / "out", told.append)
    assert not told


def test_a_network_that_has_diverged_is_pointed_out_and_another_rate_is_found(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_fast = {**TUNED["class-incremental"]["pixels"], "ER 200": Settings(lr=10.0)}
    monkeypatch.setitem(TUNED["class-incremental"], "pixels", too_fast)  # type: ignore[arg-type]
    plan = Plan(scenario=str(scenario), methods=("ER 200", "SLDA"), on="pixels")
    done = evaluate(plan, tmp_path / "out", _ignore)
    assert done.document["measured"]["constant_runs"]["my places"] == {"ER 200, pixels": 1}
    told: list[str] = []
    tuned = evaluate(dataclasses.replace(plan, tune=True), tmp_path / "out", told.append)
    row = tuned.document["figures"]["my places"]["ER 200, pixels"]
    assert row["accuracy"] > 2 * done.document["figures"]["my places"]["ER 200, pixels"]["accuracy"]
    assert tuned.document["measured"]["constant_runs"]["my places"] == {}
    assert sum("ER 200 at " in line for line in told) == 6
    assert not any("SLDA at" in line for line in told)
    assert tuned.document["command"].endswith("--tune")


def test_replay_of_as_many_bytes_keeps_no_more_than_experts_and_router_do(scenario: Path, tmp_path: Path) -> None:
    plan = Plan(scenario=str(scenario), methods=("DER++ same bytes",), pixels=32, train_images=20)
    figures = evaluate(plan, tmp_path / "out", _ignore).document["figures"]["my places"]
    assert set(figures) == {"routed experts, trunk", "DER++ same bytes, trunk"}
    assert 0 < figures["DER++ same bytes, trunk"]["kept_kb"] <= figures["routed experts, trunk"]["kept_kb"]


@pytest.mark.parametrize(
    ("line", "code", "error", "words"),
    [
        (("split-digit",), 2, "unknown_name", "split-digits"),
        (("split-digits", "--method", "ewc"), 2, "unknown_name", "EWC"),
        (("split-cifar-100", "--data", "nowhere"), 11, "resource_absent", "cs.toronto.edu"),
        (("nowhere.toml",), 1, "scenario_unusable", "nowhere.toml"),
        (("split-digits", "--tap", "Z9"), 2, "unknown_name", "B4, E5"),
        (
            ("split-digits", "--method", "router argmax by domain"),
            1,
            "scenario_unusable",
            "none of router argmax by domain",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_named_with_what_to_do(
    line: tuple[str, ...], code: int, error: str, words: str, tmp_path: Path
) -> None:
    ended = meshnode("--json", "eval", *line, "--out", tmp_path / "out")
    assert ended.code == code, ended.out
    assert ended.document["error"]["code"] == error
    assert words in ended.document["error"]["message"] + ended.document["error"]["hint"]


def test_damaged_data_of_a_user_is_named(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "1.npz").write_bytes(b"no archive")
    with pytest.raises(ScenarioUnusable, match=r"1\.npz"):
        evaluate(Plan(scenario=str(scenario), on="pixels"), tmp_path / "out", _ignore)
    with pytest.raises(UnknownName):
        Plan(scenario=str(scenario), methods=("nobody's",))


def test_names_are_listed_and_every_listed_method_can_be_planned() -> None:
    listed = meshnode("--json", "eval", "--list").document
    assert "split-digits" in listed["scenarios"]
    assert Plan(scenario="split-digits", methods=listed["methods"]).methods == listed["methods"]
