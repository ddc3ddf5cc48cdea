"""The report: what it says of results, what it refuses, and that the page asks nobody for anything."""

import base64
import html
import io
import itertools
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import meshnode
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meshnode.errors import ResourceAbsent, ResultUnreadable
from meshnode.report import write_report
from meshnode.report.documents import read_documents
from meshnode.report.outcomes import measured_by, outcomes_of
from meshnode.report.pareto import pareto_front
from meshnode.report.rows import groups_of, matrices_of, routing_maps_of

MATRIX = [[0.9, 0.0], [0.8, 0.95]]


def _document(**parts: Any) -> dict[str, Any]:
    return {
        "schema": "modulemesh.bench/1",
        "command": "python scripts/bench_example.py",
        "seeds": [3, 4],
        "machine": {"cpus": 2, "cpu_model": "Example 9000"},
        "versions": {"python": "3.11.7"},
        "figures": {},
        **parts,
    }


def _learning(saved: float = 0.7, retention: float = 0.97) -> dict[str, Any]:
    ours = {
        "accuracy": 90.0, "std": 0.5, "retention": retention, "least_retention": 0.95, "gflops": 100.0 * (1 - saved),
        "kept_kb": 800.0, "parameters_added_ratio": 0.07,
    }  # fmt: skip
    joint = {"accuracy": 91.0, "std": 0.1, "retention": 1.0, "least_retention": 1.0, "gflops": 100.0, "kept_kb": 9000.0}
    return _document(
        figures={"two-tasks, tasks": ours, "two-tasks, joint": joint, "start_s": 1.5},
        targets={
            "start_s": {"target": "<= 2", "met": True},
            "two-tasks, tasks": {"target": ">= 95", "met": False, "value": 90.0},
        },
        measured={"accuracy_matrices": {"two-tasks, tasks": [MATRIX, MATRIX]}},
    )


def _put(folder: Path, **documents: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """What a browser would see: text, tags that are open, and everything that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_tells_figures_targets_and_where_they_come_from(tmp_path: Path) -> None:
    report = write_report(_put(tmp_path / "in", bench_continual=_learning()), tmp_path / "out")
    page = Page(report.html.read_text(encoding="utf-8"))
    for words in ("90 ± 0.5", "MISSED", ">= 95", "Missed: 1 of 2", "Met: 1 of 2", "python scripts/bench_example.py",
                  "3, 4", "Example 9000", "start_s"):  # fmt: skip
        assert words in page.text, words
    markdown = report.markdown.read_text(encoding="utf-8")
    assert "90 ± 0.5" in markdown
    assert report.to_dict()["targets"] == {"met": 1, "missed": ["bench_continual: two-tasks, tasks"]}


def test_a_page_begins_with_what_experts_add_to_the_strongest_router_and_to_replay_of_as_many_bytes(
    tmp_path: Path,
) -> None:
    rows = {
        "routed experts, trunk": 88.0,
        "router argmax, trunk": 80.0,
        "router argmax by domain, trunk": 86.5,
        "DER++ same bytes, trunk": 88.2,
        "DER++ 500, trunk": 99.0,
        "routed experts, pixels": 75.5,
        "router argmax, pixels": 71.0,
    }
    turned = {name: {"accuracy": accuracy} for name, accuracy in rows.items()}
    published = {"DER++ same bytes, trunk": {"accuracy": 80.0}}
    scenarios = _document(figures={"turned": turned, "published": published})
    report = write_report(_put(tmp_path / "in", bench_scenarios=scenarios), tmp_path / "out")
    first = report.markdown.read_text(encoding="utf-8").split("\n\n")[1]
    assert "experts add +1.5 on turned (points of accuracy)" in first
    assert "experts and router are at -0.2 on turned" in first
    assert "where there is no trunk, they add +4.5 on turned" in first
    assert "published" not in first
    without = write_report(_put(tmp_path / "other", bench_continual=_learning()), tmp_path / "out")
    assert without.markdown.read_text(encoding="utf-8").split("\n\n")[1].startswith("1 result")


def test_a_target_that_is_told_in_points_says_so(tmp_path: Path) -> None:
    targets = {
        "replay": {"target": "76.7 +- 1.5", "met": True, "points": -0.4567},
        "router": {"target": ">= 2", "met": False, "points": {"turned": 1.5}},
    }
    found = read_documents(_put(tmp_path, bench_example=_document(targets=targets)))
    assert [target.measured for target in found.documents[0].targets] == ["-0.457 points", {"turned": 1.5}]


def test_a_page_holds_its_pictures_and_fetches_nothing(tmp_path: Path) -> None:
    report = write_report(_put(tmp_path / "in", bench_continual=_learning()), tmp_path / "out")
    text = report.html.read_text(encoding="utf-8")
    page = Page(text)
    assert {source.partition(":")[0] if not source.startswith("#") else "#" for source in page.sources} <= {"data", "#"}
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", text)
    pictures = [source for source in page.sources if source.startswith("data:image/png;base64,")]
    assert len(pictures) == len(report.pictures) == 3
    for source in pictures:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            picture.load()
            assert min(picture.size) > 200


def test_markdown_shows_the_pictures_beside_it(tmp_path: Path) -> None:
    report = write_report(_put(tmp_path / "in", bench_continual=_learning()), tmp_path / "out")
    named = re.findall(r"\]\((figures/[^)]+\.png)\)", report.markdown.read_text(encoding="utf-8"))
    assert sorted(named) == sorted(str(path.relative_to(report.markdown.parent)) for path in report.pictures)


HOSTILE = "<script>alert('x')</script> | $\\frac{1}$ ](x) ` \n# head"


def test_text_of_a_document_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    document = _document(
        command=HOSTILE,
        figures={HOSTILE: {"a": {"accuracy": 1.0, "kept_kb": 1.0}, HOSTILE: {"accuracy": 2.0, "kept_kb": 2.0}}},
        targets={HOSTILE: {"target": HOSTILE, "met": False}},
        measured={"accuracy_matrices": {HOSTILE: {HOSTILE: [MATRIX]}}},
    )
    report = write_report(_put(tmp_path / "in", bench_example=document), tmp_path / "out")
    text = report.html.read_text(encoding="utf-8")
    assert "script" not in Page(text).tags
    assert html.escape("<script>alert('x')</script>") in text
    markdown = report.markdown.read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"\\<", "", markdown)
    for line in markdown.splitlines():
        assert not line.startswith("# head")


def test_tables_of_markdown_keep_their_columns(tmp_path: Path) -> None:
    document = _document(figures={"a | b": 1.0, "c": "d | e"})
    markdown = write_report(_put(tmp_path / "in", one=document), tmp_path / "out").markdown.read_text(encoding="utf-8")
    lines = markdown.splitlines()
    for rule in (number for number, line in enumerate(lines) if re.fullmatch(r"\|(-+:?\|)+", line)):
        table = [lines[rule - 1], *itertools.takewhile(lambda line: line.startswith("|"), lines[rule + 1 :])]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {lines[rule].count("|")}


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"accuracy": None},
        {"x": {"a": {"accuracy": 50.0}, "b": {"accuracy": 50.0}}},
        {"x": {"a": {"accuracy": 50.0, "kept_kb": None}, "b": {"accuracy": float("nan"), "kept_kb": 3.0}}},
        {"x": [1, {"deep": []}], "y": {"z": {"w": "text"}}},
    ],
)
def test_figures_that_are_missing_leave_a_gap_and_no_failure(tmp_path: Path, figures: Mapping[str, Any]) -> None:
    matrices = {"a": None, "b": [], "c": [[[0.5]]], "d": [[[0.5, None], [None, 0.5]]], "e": [[1, 2], [3]]}
    document = _document(figures=figures, measured={"accuracy_matrices": matrices})
    report = write_report(_put(tmp_path / "in", bench_continual=document), tmp_path / "out")
    assert "nan" not in Page(report.html.read_text(encoding="utf-8")).text.split()
    assert len(matrices_of(report.found.documents[0])) == 2


def test_a_map_of_routing_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    routing = {"classes": ["bag", "coat"], "experts": ["one", "two", "three"], "mass": [[2, 1, 1], [0, 0, 0]]}
    report = write_report(
        _put(tmp_path / "in", mixed=_document(measured={"class_by_expert": {"plain": routing}})), tmp_path / "out"
    )
    [found] = routing_maps_of(report.found.documents[0])
    assert np.allclose(found.shares, [[0.5, 0.25, 0.25], [0, 0, 0]])
    assert [path.name for path in report.pictures] == ["mixed-plain-routing.png"]


def test_rows_stand_with_those_they_can_be_compared_with(tmp_path: Path) -> None:
    figures = {
        "first": {"a, pixels": {"accuracy": 1.0}, "b, trunk": {"accuracy": 2.0}},
        "second, tasks": {"accuracy": 3.0},
        "second, joint": {"accuracy": 4.0},
        "alone": {"accuracy": 5.0},
    }
    found = read_documents(_put(tmp_path / "in", one=_document(figures=figures)))
    groups = {group.name: [row.name for row in group.rows] for group in groups_of(found.documents[0])}
    assert groups == {"first": ["a, pixels", "b, trunk"], "second": ["tasks", "joint"], "": ["alone"]}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=14))
def test_the_front_is_what_nobody_dominates(points: list[tuple[int, int]]) -> None:
    def dominates(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    undominated = {index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    front = pareto_front([(float(cost), float(accuracy)) for cost, accuracy in points])
    assert set(front) == undominated
    assert len(front) == len(undominated)
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


@pytest.mark.parametrize(
    ("saved", "retention", "verdicts"),
    [
        (0.7, 0.97, ["met", "met", "met", "not measured", "not measured"]),
        (0.1, 0.97, ["missed", "met", "met", "not measured", "not measured"]),
        (-0.4, 0.85, ["missed", "met in part", "met", "not measured", "not measured"]),
    ],
)
def test_an_expectation_is_judged_by_every_setting(
    tmp_path: Path, saved: float, retention: float, verdicts: list[str]
) -> None:
    found = read_documents(_put(tmp_path / "in", bench_continual=_learning(saved, retention)))
    outcomes = outcomes_of(found.documents)
    assert [outcome.verdict for outcome in outcomes] == verdicts
    assert outcomes[0].measurements[0].value == f"{100 * abs(saved):.1f} % {'less' if saved > 0 else 'more'}"


def test_one_tasks_update_is_held_against_training_to_the_end(tmp_path: Path) -> None:
    rows = {
        "B4 at 32 px, routed experts": {"accuracy": 89.0, "of_convergence_ratio": 0.012},
        "E5 at 64 px, routed experts": {"accuracy": 91.0, "of_convergence_ratio": 0.5},
    }
    found = read_documents(_put(tmp_path / "in", bench_update_cost=_document(figures=rows)))
    outcome = outcomes_of(found.documents)[0]
    assert [(one.value, one.is_met) for one in outcome.measurements] == [("98.8 % less", True), ("50.0 % less", False)]
    assert outcome.verdict == "met in part"


def test_a_speed_up_that_never_reached_its_target_is_a_miss(tmp_path: Path) -> None:
    rows = {
        "1 node": {"accuracy": 90.0, "simulated_speed_up": 1.0, "wall_speed_up": 1.0},
        "4 nodes": {"accuracy": 80.0, "simulated_speed_up": None, "wall_speed_up": 2.5},
    }
    found = read_documents(_put(tmp_path / "in", bench_collaboration=_document(figures=rows)))
    outcome = outcomes_of(found.documents)[3]
    assert [(one.value, one.is_met) for one in outcome.measurements] == [
        ("target accuracy not reached", False),
        ("2.50 times as soon", True),
    ]
    assert outcome.verdict == "met in part"


def test_what_daemons_took_and_what_was_simulated_are_judged_apart(tmp_path: Path) -> None:
    real = _document(figures={"2 nodes": {"accuracy": 90.0, "simulated_speed_up": 1.6, "wall_speed_up": 1.4}})
    rows = {
        name: {"accuracy": 90.0, "simulated_speed_up": value} for name, value in (("2 nodes", 1.9), ("4 nodes", 2.7))
    }
    figures = {"1 node": {"accuracy": 90.0, "simulated_speed_up": 1.0}, "even shares": rows}
    simulated = _document(command="python scripts/simulated.py", figures=figures)
    found = read_documents(_put(tmp_path / "in", bench_collaboration=real, bench_collaboration_simulated=simulated))
    of_daemons, of_model = outcomes_of(found.documents)[3:]
    assert (of_daemons.verdict, of_model.verdict) == ("missed", "met in part")
    assert [(one.setting.partition(", simulated")[0], one.is_met) for one in of_model.measurements] == [
        ("even shares, 2 nodes", False),
        ("even shares, 4 nodes", True),
    ]
    assert measured_by(of_model) == ["python scripts/simulated.py"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": "modulemesh.bench/1", "comm', "no JSON"),
        ("[1, 2]", "no JSON object"),
        (json.dumps(_document(figures=None)), "figures"),
        (json.dumps(_document(seeds="all")), "seeds"),
        (json.dumps(_document(targets={"speed": {"target": "> 1"}})), "the target speed"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_damaged_document_is_named_and_nothing_is_written(tmp_path: Path, content: str, reason: str) -> None:
    folder = _put(tmp_path / "in", good=_learning())
    (folder / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(ResultUnreadable, match=re.escape(reason)) as refused:
        write_report(folder, tmp_path / "out")
    assert "bad.json" in refused.value.message
    assert not (tmp_path / "out").exists()


def test_a_folder_without_results_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ResourceAbsent, match="there is no folder"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(ResourceAbsent, match="no result"):
        read_documents(_put(tmp_path / "in", tests={"schema": "modulemesh.tests/1"}))


def test_documents_of_another_schema_are_left_out_and_named(tmp_path: Path) -> None:
    folder = _put(tmp_path / "in", good=_learning(), tests={"schema": "modulemesh.tests/1"})
    report = write_report(folder, tmp_path / "out")
    assert report.to_dict()["passed_over"] == ["tests.json"]
    assert "tests.json" in Page(report.html.read_text(encoding="utf-8")).text


def test_equal_results_make_equal_pages(tmp_path: Path) -> None:
    folder = _put(tmp_path / "in", bench_continual=_learning())
    first, second = (write_report(folder, tmp_path / name) for name in ("one", "two"))
    assert first.html.read_bytes() == second.html.read_bytes()


def test_the_command_says_what_it_wrote_and_what_is_missing(tmp_path: Path) -> None:
    folder = _put(tmp_path / "in", bench_continual=_learning())
    ended = meshnode("report", folder, "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    assert ended.document["schema"] == "meshnode.report/1"
    assert Path(ended.document["html"]).is_file()
    absent = meshnode("report", tmp_path / "nowhere", "--json")
    assert absent.code == 11
    assert absent.document["error"]["code"] == "resource_absent"
    (folder / "bad.json").write_text("{", encoding="utf-8")
    damaged = meshnode("report", folder, "--out", tmp_path / "out", "--json")
    assert damaged.code == 1
    assert damaged.document["error"]["code"] == "result_unreadable"
