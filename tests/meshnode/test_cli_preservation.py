"""``experts migrate``, ``rollback`` and ``lineage``: what they ask the daemon for, and what people see of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fake_node import EXPERT, FakeNode, serving_home
from cli_process import meshnode

from meshnode.errors import ExitCode, NoAncestorHere, Refused
from meshnode.home import Home
from meshnode.migration_order import MigrationRequest
from protocol.identifiers import ExpertUid

LAYER = {
    "name": "hidden",
    "source": "hidden",
    "old_units": 8,
    "new_units": 16,
    "mapped": 8,
    "duplicated": 7,
    "merged": 0,
    "dropped": 0,
    "importance_kept": 0.987,
}
ACCURACY = {"old": 0.984, "new": 0.979, "samples": 812}
DONE = {"state": "done", "accuracy": ACCURACY, "layers": [LAYER]}
METHOD = {"similarity": "role", "score": "gate", "beta": 1.0, "refit": True, "distillation_steps": 10}


def made(uid: str, hidden: int, **making: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("parent", "source", "method", "layers", "accuracy", "made_at", "peer_id", "peer_name"))
    return {
        "uid": uid * 32,
        "kind": "mlp",
        "config": {"feature_dim": 640, "hidden": hidden, "input_scale": 0.3},
        "parameters": 100 * hidden,
        **blank,
        **making,
    }


FIRST = made("01", 8)
LINE = [
    FIRST,
    made(
        "ab",
        16,
        parent=FIRST["uid"],
        method=METHOD,
        layers=[LAYER],
        accuracy=ACCURACY,
        made_at=1_795_673_225.0,
        peer_id="QmOther",
        peer_name="calm-fox",
    ),
]


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(migration_steps=[DONE], line=LINE)


@pytest.fixture
def home(tmp_path: Path, node: FakeNode) -> Iterator[Home]:
    with serving_home(tmp_path / "home", node) as running:
        yield running


def test_a_migration_is_ordered_as_it_was_asked_for_and_waited_for(home: Home, node: FakeNode) -> None:
    node.migration_steps = [{"state": "waiting"}, {"state": "distilling", "done": 50, "total": 100}, DONE]
    line = ("migrate", EXPERT[:6], "--to", "deep", "--set", "hidden=16", "--set", "norm=layer", "--steps", "100")
    line += ("--margin", "0.02", "--beta", "0.9", "--score", "magnitude", "--similarity", "statistics", "--no-refit")
    ended = meshnode("--home", home.path, "--json", "experts", *line)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["schema"] == "meshnode.expert-migration/1"
    assert ended.document["accuracy"] == ACCURACY
    ((uid, request),) = node.migrated
    assert uid == EXPERT
    assert (request.to.kind, request.to.settings) == ("deep", {"hidden": 16, "norm": "layer"})
    assert (request.margin, request.steps, request.refit) == (0.02, 100, False)
    assert (request.beta, request.score, request.similarity) == (0.9, "magnitude", "statistics")


def test_what_is_not_said_is_left_to_the_daemon(home: Home, node: FakeNode) -> None:
    assert meshnode("--home", home.path, "experts", "migrate", EXPERT[:6], "--to", "linear").code == 0
    ((_, request),) = node.migrated
    assert (request.to.settings, request.margin, request.steps) == ({}, None, MigrationRequest(to=request.to).steps)
    assert (request.beta, request.score, request.similarity, request.refit) == (None, None, None, None)


def test_people_see_both_accuracies_and_what_became_of_each_layer(home: Home, node: FakeNode) -> None:
    distilling = {"state": "distilling", "done": 500, "total": 9000, "left_s": 42.0}
    node.migration_steps = [*[distilling] * 14, DONE]
    ended = meshnode("--home", home.path, "experts", "migrate", EXPERT[:6], "--to", "mlp")
    assert ended.code == 0
    assert ended.err == "distilling: 500 of 9000 steps, 42 s left\n"
    assert "98.4% -> 97.9% of 812 held-out images" in ended.out
    assert "5d" * 32 in ended.out
    header, row = ended.out.splitlines()[-2:]
    assert header.split()[:3] == ["LAYER", "FROM", "UNITS"]
    assert row.split() == ["hidden", "hidden", "8", "->", "16", "8", "7", "0", "0", "98.7%"]


@pytest.mark.parametrize(
    ("state", "code", "exit_code"),
    [("refused", "successor_declined", ExitCode.REFUSED), ("failed", "failure", ExitCode.FAILURE)],
)
def test_an_order_that_comes_to_nothing_ends_the_command_with_its_reason(
    home: Home, node: FakeNode, state: str, code: str, exit_code: ExitCode
) -> None:
    error = {"code": code, "message": "83% against 99%", "hint": None}
    node.migration_steps = [{"state": state, "error": error}]
    ended = meshnode("--home", home.path, "--json", "experts", "migrate", EXPERT[:6], "--to", "mlp")
    assert (ended.code, ended.document["error"]) == (exit_code, error)


@pytest.mark.parametrize(
    "line",
    [
        (),
        ("--to", "mlp", "--set", "hidden"),
        ("--to", "mlp", "--score", "luck"),
        ("--to", "mlp", "--margin", "2"),
        ("--to", "mlp", "--steps", "-1"),
    ],
)
def test_a_line_that_cannot_be_meant_orders_nothing(home: Home, node: FakeNode, line: tuple[str, ...]) -> None:
    assert meshnode("--home", home.path, "experts", "migrate", EXPERT[:6], *line).code == ExitCode.USAGE
    assert node.migrated == []


def test_the_daemons_refusal_is_told(home: Home, node: FakeNode) -> None:
    node.failure = Refused("training is switched off", hint="Switch it on.")
    ended = meshnode("--home", home.path, "--json", "experts", "migrate", EXPERT[:6], "--to", "mlp")
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.REFUSED, "refused")
    node.failure = NoAncestorHere(ExpertUid(EXPERT))
    ended = meshnode("--home", home.path, "--json", "experts", "rollback", EXPERT[:6])
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.REFUSED, "no_ancestor_here")
    assert meshnode("--home", home.path, "experts", "rollback", "zz").code == ExitCode.NO_SUCH_PEER_OR_EXPERT


def test_a_rollback_says_who_serves_now(home: Home, node: FakeNode) -> None:
    ended = meshnode("--home", home.path, "experts", "rollback", EXPERT[:6])
    assert ended.out == f"{'12' * 6} serves again in the place of {EXPERT[:12]}; classes ankle boot, bag\n"
    assert node.rolled_back == [EXPERT]


def test_a_line_is_listed_from_the_oldest_on(home: Home) -> None:
    ended = meshnode("--home", home.path, "experts", "lineage", EXPERT[:6])
    assert ended.code == 0
    first, last = ended.out.splitlines()[-2:]
    assert first.startswith(f"{'01' * 6}  mlp: hidden 8, input_scale 0.3")
    assert first.split()[-1] == "-"
    for told in ("hidden 8 -> 16", "role x gate, beta 1, refit, 10 steps", "98.4% -> 97.9% of 812", "calm-fox"):
        assert told in last


def test_a_line_says_as_what_an_expert_began(home: Home, node: FakeNode) -> None:
    source = {"uid": "cd" * 32, "classes": ["cat", "dog"], "weights": "ef" * 32, "form": {}}
    node.line = [FIRST, LINE[1] | {"source": source}]
    ended = meshnode("--home", home.path, "experts", "lineage", EXPERT[:6])
    assert f"began as {'cd' * 6} (cat, dog), role x gate" in ended.out.splitlines()[-1]


def test_a_line_is_drawn_unless_there_is_nothing_to_draw(tmp_path: Path, home: Home, node: FakeNode) -> None:
    path = tmp_path / "line.png"
    ended = meshnode("--home", home.path, "--json", "experts", "lineage", EXPERT[:6], "--plot", path)
    assert (ended.code, ended.document["plot"]) == (0, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [each["uid"] for each in ended.document["experts"]] == [each["uid"] for each in LINE]
    node.line = [FIRST]
    path.unlink()
    ended = meshnode("--home", home.path, "--json", "experts", "lineage", EXPERT[:6], "--plot", path)
    assert (ended.code, ended.document["error"]["code"]) == (ExitCode.RESOURCE_ABSENT, "resource_absent")
    assert not path.exists()
    assert json.loads(meshnode("--home", home.path, "--json", "experts", "lineage", EXPERT[:6]).out)["plot"] is None
