"""Decisions: which of reuse, update and spawn follows from what, with the evidence, through JSON and back."""

import json
from typing import Any

import pytest

from experts.continual.decision import (
    Decision,
    ExpectedGain,
    StartEvidence,
    decide_by_class,
    decide_by_domain,
    decide_by_task,
)
from experts.continual.novelty import Assessment
from experts.errors import CorruptState, SettingOutOfRange

EXPERTS = {"p": ("a", "b"), "q": ("c",)}


def judged(verdict: str, *unseen: str, num_labelled: int = 64) -> Assessment:
    return Assessment(
        verdict=verdict,  # type: ignore[arg-type]
        num_rows=64,
        num_labelled=num_labelled,
        unseen_labels=unseen,
        distance=1.5,
        threshold=1.0,
        num_held_out=300,
    )


def gain(now: float, updated: float) -> ExpectedGain:
    return ExpectedGain(accuracy_now=now, accuracy_updated=updated, num_items=50)


@pytest.mark.parametrize("verdict", ["known", "new", "undecided"])
def test_where_classes_are_incremental_labels_decide_whatever_the_distance_says(verdict: str) -> None:
    known = decide_by_class(judged(verdict), ["a", "c"], EXPERTS)
    assert (known.action, known.update, known.spawn) == ("update", {"p": ("a",), "q": ("c",)}, ())
    mixed = decide_by_class(judged(verdict, "z"), ["z", "a"], EXPERTS)
    assert (mixed.action, mixed.update, mixed.spawn) == ("spawn", {"p": ("a",)}, ("z",))


@pytest.mark.parametrize(("verdict", "action"), [("known", "reuse"), ("new", "spawn"), ("undecided", "undecided")])
def test_without_labels_the_distance_decides(verdict: str, action: str) -> None:
    decision = decide_by_class(judged(verdict, num_labelled=0), [], EXPERTS)
    assert (decision.action, decision.update, decision.spawn) == (action, {}, ())


def by_domain(verdict: str, classes: list[str], nearest: str | None = "p") -> Decision:
    return decide_by_domain(judged(verdict), classes, EXPERTS, nearest=nearest, name="domain 2")


def test_a_new_domain_spawns_for_classes_that_others_answer_for_too() -> None:
    decision = by_domain("new", ["b", "a"])
    assert (decision.action, decision.spawn, decision.context) == ("spawn", ("a", "b"), "domain 2")
    assert by_domain("undecided", ["a"], nearest=None).action == "spawn"


def test_a_known_domain_updates_its_expert_and_one_that_cannot_be_told_gets_its_own() -> None:
    known = by_domain("known", ["a"])
    assert (known.action, known.update) == ("update", {"p": ("a",)})
    untold = by_domain("undecided", ["a"])
    assert (untold.action, untold.spawn, untold.context) == ("spawn", ("a",), "domain 2")
    assert by_domain("undecided", []).action == "undecided"
    assert by_domain("known", []).action == "reuse"


def test_a_class_that_the_nearest_domain_lacks_is_not_taught_to_its_expert() -> None:
    decision = by_domain("known", ["a", "c"])
    assert (decision.action, decision.spawn, decision.update) == ("spawn", ("a", "c"), {})


def test_a_task_that_is_told_has_experts_of_its_own() -> None:
    experts_of = {"first": {"p": ("a", "b")}}
    other = decide_by_task(judged("known"), ["a"], experts_of, "second")
    assert (other.action, other.spawn, other.context) == ("spawn", ("a",), "second")
    again = decide_by_task(judged("new"), ["a"], experts_of, "first")
    assert (again.action, again.update) == ("update", {"p": ("a",)})


def test_an_update_that_brings_too_little_is_not_made() -> None:
    decision = decide_by_class(judged("known"), ["a"], EXPERTS)
    assert decision.weighed(gain(0.9, 0.95), min_gain=0.05 - 1e-9).action == "update"
    reused = decision.weighed(gain(0.9, 0.91), min_gain=0.02)
    assert (reused.action, reused.update) == ("reuse", {"p": ("a",)})
    assert "0.900 now, 0.910" in reused.reason
    spawned = decide_by_class(judged("new", "z"), ["z"], EXPERTS)
    assert spawned.weighed(gain(0.9, 0.1), min_gain=0.02).action == "spawn"


def test_a_decision_is_the_same_after_json() -> None:
    start = StartEvidence(
        chosen="transferred",
        source="p",
        accuracy_random=0.5,
        accuracy_transferred=0.75,
        steps=50,
        num_items=40,
        reason="better",
    )
    decision = Decision(
        action="spawn",
        reason="why",
        assessment=judged("new", "z", "y"),
        update={"p": ("a", "b")},
        spawn=("y", "z"),
        context="d",
        gain=gain(0.25, 0.5),
        start=start,
    )
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
    bare = decide_by_class(judged("known"), ["a"], EXPERTS)
    assert Decision.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


@pytest.mark.parametrize(
    "damage",
    [
        {"action": "flee"},
        {"assessment": {}},
        {"assessment": None},
        {"gain": {"accuracy_now": 2.0, "accuracy_updated": 0.0, "num_items": 1}},
        {"update": []},
        {"more": 1},
    ],
)
def test_what_is_no_decision_is_refused(damage: dict[str, Any]) -> None:
    data = decide_by_class(judged("known"), ["a"], EXPERTS).to_dict()
    with pytest.raises(CorruptState):
        Decision.from_dict({**data, **damage})


def test_accuracies_are_shares() -> None:
    with pytest.raises(SettingOutOfRange):
        gain(0.9, 91.0)
