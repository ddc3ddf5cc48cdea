"""``meshnode train history``: what was decided on tasks and what came of them, for people and for programs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fake_node import FakeNode, serving_home
from cli_process import meshnode

from meshnode.home import Home

ASSESSMENT = {"unseen_labels": [], "distance": 12.25, "threshold": 10.0}
HISTORY = [
    {"task": "broken", "outcome": "failed", "classes": {"a": 3}, "decision": None, "reason": "no such class"},
    {
        "task": "later",
        "outcome": "learned",
        "classes": {"a": 3, "b": 4},
        "unlabelled": 5,
        "seconds": 61.0,
        "decision": {
            "action": "reuse",
            "reason": "nothing to gain",
            "assessment": ASSESSMENT,
            "gain": {"accuracy_now": 0.9, "accuracy_updated": 0.901, "num_items": 40},
        },
    },
    {
        "task": "fresh",
        "outcome": "learned",
        "classes": {"c": 3},
        "seconds": 2.0,
        "teacher_accuracy": 0.995,
        "decision": {
            "action": "spawn",
            "reason": "no expert answers for c",
            "assessment": {"unseen_labels": ["c"], "distance": None, "threshold": None},
            "gain": None,
            "start": {
                "chosen": "transferred",
                "source": "0123456789abcdef",
                "accuracy_random": 0.9,
                "accuracy_transferred": 0.95,
            },
        },
    },
]


class LearnedNode(FakeNode):
    def training(self) -> dict[str, Any]:
        return {"state": "idle", "history": HISTORY}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with serving_home(tmp_path / "home", LearnedNode()) as running:
        yield running


def test_history_tells_decision_evidence_and_outcome_of_each_task(home: Home) -> None:
    ended = meshnode("--home", home.path, "train", "history")
    assert (ended.code, ended.err) == (0, "")
    lines = {line.split()[0]: line for line in ended.out.splitlines()}
    assert "no such class" in lines["broken"]
    assert "12.2 > 10.0" in lines["later"]
    assert "90.0 -> 90.1 % of 40" in lines["later"]
    assert "12 (5 unlabelled)" in lines["later"]
    assert "reuse" in lines["later"]
    assert "nothing to gain" in lines["later"]
    assert "spawn" in lines["fresh"]
    assert "99.5" in lines["fresh"]
    assert "it begins as 0123456789ab: 95.0 % as 0123456789ab, 90.0 % at random" in lines["fresh"]


def test_programs_get_all_of_it(home: Home) -> None:
    ended = meshnode("--home", home.path, "train", "history", "--json")
    assert ended.document == {"schema": "meshnode.train/1", "state": "idle", "history": HISTORY}
