"""``forget`` and ``privacy``: what they ask the daemon for, and what people see of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_fake_node import EXPERT, HTTP, KEY, FakeNode, serving_home
from cli_process import meshnode

from meshnode.errors import ExitCode, NoSuchPeerOrExpert, Refused
from meshnode.forget_order import ForgetRequest
from meshnode.home import Home

CAME_OF_IT = {
    "dropped": [{"kind": "replay images", "name": "cats", "count": 40, "note": "3 of unknown origin, of its classes"}],
    "retired": [{"expert": EXPERT, "classes": ["cat"], "reason": "it has learned the task"}],
    "redistilled": [{"expert": "12" * 32, "classes": ["dog"], "reason": "from its first weights", "tasks": ["dogs"]}],
    "not_forgotten": [{"kind": "trunk", "name": "ab" * 32, "reason": "its m and s are part of the mesh"}],
}
TOLD = {
    "listen": {"host": "0.0.0.0", "loopback": False},
    "record": {"name": "quiet-owl", "peer_id": "QmOwl", "advertises": True},
    "parameters": [
        {"expert": EXPERT, "classes": ["cat"], "generation": 4, "parameters": 9, "tasks": None, "peers": ["calm-fox"]}
    ],
    "statistics": [{"task": "cats", "version": 2, "samples": {"cat": 90}}],
    "waiting": {"cats": {"lynx": 4}, "dogs": {"dog": 2}},
    "withdrawn": [{"task": "mice", "version": 3}],
    "forgotten": {"tasks": ["mice"], "peers": ["QmFox"]},
    "mesh": {"id": "cd" * 32, "name": "pets", "trunk": "ab" * 32, "calibration": "12 images of the founder's"},
    "thin_clients": True,
    "hivemind": False,
    "mqtt": None,
    "sent_bytes": {"averaging": 1_234_567, "blobs": 10},
    "protection": {"min_samples": 10, "noise": None},
}


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(forgetting=CAME_OF_IT, told=TOLD)


@pytest.fixture
def home(tmp_path: Path, node: FakeNode) -> Iterator[Home]:
    with serving_home(tmp_path / "home", node) as running:
        yield running


def test_an_order_is_given_as_it_was_meant_and_its_document_told(home: Home, node: FakeNode) -> None:
    ended = meshnode("--home", home.path, "--json", "forget", "--task", "cats", "--keep-experts", "--dry-run")
    assert (ended.code, node.forgot) == (0, [ForgetRequest(task="cats", keep_experts=True, dry_run=True)])
    assert ended.document["schema"] == "meshnode.forget/1"
    assert {name: ended.document[name] for name in CAME_OF_IT} == CAME_OF_IT
    assert (ended.document["task"], ended.document["peer"], ended.document["dry_run"]) == ("cats", None, True)
    assert meshnode("--home", home.path, "forget", "--peer", "calm-fox", "--undo").code == 0
    assert node.forgot[1:] == [ForgetRequest(peer="calm-fox", undo=True)]


def test_people_see_what_went_what_became_of_experts_and_what_stays(home: Home) -> None:
    ended = meshnode("--home", home.path, "forget", "--task", "cats")
    for shown in ("replay images", "3 of unknown origin", "erased", "distilled anew", "dogs", "its m and s"):
        assert shown in " ".join(ended.out.split())


@pytest.mark.parametrize(
    "line",
    [
        (),
        ("--task", "a", "--peer", "b"),
        ("--task", "a", "--undo", "--dry-run"),
        ("--peer", "b", "--keep-experts"),
    ],
)
def test_a_line_that_cannot_be_meant_forgets_nothing(home: Home, node: FakeNode, line: tuple[str, ...]) -> None:
    assert meshnode("--home", home.path, "forget", *line).code == ExitCode.USAGE
    assert node.forgot == []


@pytest.mark.parametrize(
    ("failure", "code"),
    [(Refused("no such task"), ExitCode.REFUSED), (NoSuchPeerOrExpert("x"), ExitCode.NO_SUCH_PEER_OR_EXPERT)],
)
def test_the_daemons_refusal_is_told(home: Home, node: FakeNode, failure: Exception, code: ExitCode) -> None:
    node.failure = failure
    assert meshnode("--home", home.path, "forget", "--task", "x").code == code


@pytest.mark.parametrize("body", [b"{}", b'{"task":"a","peer":"b"}', b'{"task":""}', b'{"task":"a","all":true}', b"["])
def test_a_body_that_asks_for_nothing_in_particular_is_refused(home: Home, node: FakeNode, body: bytes) -> None:
    note = home.read_daemon_note()
    assert note is not None
    answer = HTTP.post(f"{note.url}/api/v1/forget", content=body, headers={"authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_message")
    assert node.forgot == []


def test_what_leaves_is_listed_for_programs_and_for_people(home: Home, node: FakeNode) -> None:
    ended = meshnode("--home", home.path, "--json", "privacy")
    assert ended.document == {"schema": "meshnode.privacy/1", **TOLD}
    shown = " ".join(meshnode("--home", home.path, "privacy").out.split())
    for part in (
        "whoever reaches it (0.0.0.0)",
        "averaging 1,234,567 B",
        "10 new images of a class on",
        "cats cat 2 90 0",
        "cats lynx 2 0 4",
        "dogs dog - 0 2",
        "calm-fox",
        "unknown",
        "statistics withdrawn mice",
        "peer not listened to QmFox",
    ):
        assert part in shown
    noise = {"epsilon": 1.0, "delta": 1e-6, "norm": 8.0, "increments": 2, "total_epsilon": 1.5, "total_delta": 1e-6}
    node.told = TOLD | {"protection": {"min_samples": 1, "noise": noise}}
    assert "2 so far, together epsilon 1.5" in " ".join(meshnode("--home", home.path, "privacy").out.split())
    node.told = TOLD | {"protection": {"min_samples": 1, "noise": {**noise, "norm": None}}}
    assert "no statistics are published" in " ".join(meshnode("--home", home.path, "privacy").out.split())
