"""What is decided on a task from the worker's evidence: which experts learn, which are reused, what waits."""

import json

import pytest

from experts.continual.decision import ExpectedGain
from experts.continual.novelty import Assessment
from experts.errors import CorruptState
from meshnode.trainer.assess_messages import Assessed, BatchVerdict
from meshnode.trainer.deciding import ALWAYS, Decided, decide

KNOWN = {"a": ("0", "1"), "b": ("2", "3")}


def gain(now: float, updated: float, num_items: int = 100) -> ExpectedGain:
    return ExpectedGain(accuracy_now=now, accuracy_updated=updated, num_items=num_items)


def found(verdict: str, *, labelled: int = 64, **gains: ExpectedGain) -> Assessed:
    assessment = Assessment(
        verdict=verdict,  # type: ignore[arg-type]
        num_rows=64,
        num_labelled=labelled,
        unseen_labels=(),
        distance=1.5,
        threshold=2.5,
        num_held_out=200,
    )
    batch = BatchVerdict(verdict=verdict, distance=1.5)  # type: ignore[arg-type]
    return Assessed(assessment=assessment, batches=(batch, batch), gains=gains)


def test_an_expert_without_anything_to_gain_is_reused_and_one_with_it_learns() -> None:
    alone = decide(found("known", a=gain(0.9, 0.904)), ["0", "1"], KNOWN, fresh=(), min_gain=0.005)
    assert (alone.decision.action, alone.trained) == ("reuse", ())
    assert "nothing to gain" in alone.decision.reason
    assert alone.decision.gain == gain(0.9, 0.904)
    both = found("known", a=gain(0.9, 0.9), b=gain(0.5, 0.7))
    decided = decide(both, ["0", "1", "2"], KNOWN, fresh=(), min_gain=0.005)
    assert (decided.decision.action, decided.trained) == ("update", ("b",))
    assert decided.decision.update == {"a": ("0", "1"), "b": ("2",)}
    assert decided.decision.gain == gain(0.5, 0.7), "what comes of those that learn, not of those that do not"
    assert decided.gains == both.gains
    assert decided.batches == {"known": 2}


def test_gains_of_several_experts_count_by_their_items() -> None:
    both = found("known", a=gain(0.5, 0.6, 300), b=gain(0.9, 1.0, 100))
    decided = decide(both, ["0", "2"], KNOWN, fresh=(), min_gain=0.05)
    assert decided.trained == ("a", "b")
    assert decided.decision.gain is not None
    assert decided.decision.gain.accuracy_now == pytest.approx((0.5 * 300 + 0.9 * 100) / 400)
    assert decided.decision.gain.num_items == 400


def test_what_has_learned_nothing_always_learns_and_so_does_everything_with_the_least_of_gains() -> None:
    fresh = decide(found("undecided"), ["0"], KNOWN, fresh={"a"}, min_gain=0.9)
    assert (fresh.decision.action, fresh.trained, fresh.decision.gain) == ("update", ("a",), None)
    mixed = decide(found("known", b=gain(0.9, 0.9)), ["0", "2"], KNOWN, fresh={"a"}, min_gain=0.9)
    assert (mixed.decision.action, mixed.trained) == ("update", ("a",))
    always = decide(found("known"), ["0", "2"], KNOWN, fresh=(), min_gain=ALWAYS)
    assert (always.decision.action, always.trained) == ("update", ("a", "b"))


def test_new_classes_are_spawned_whatever_becomes_of_the_known_ones() -> None:
    decided = decide(found("new", a=gain(0.9, 0.9)), ["0", "8", "9"], KNOWN, fresh=(), min_gain=0.005)
    assert (decided.decision.action, decided.decision.spawn, decided.trained) == ("spawn", ("8", "9"), ())
    assert decided.decision.update == {"a": ("0",)}
    assert decided.decision.gain == gain(0.9, 0.9)


@pytest.mark.parametrize(
    ("verdict", "action", "waits", "word"),
    [
        ("known", "reuse", False, "nothing to learn"),
        ("new", "undecided", True, "waits for labels"),
        ("undecided", "undecided", True, "too few"),
    ],
)
def test_without_labels_distance_decides_and_nothing_is_spawned(
    verdict: str, action: str, waits: bool, word: str
) -> None:
    decided = decide(found(verdict, labelled=0), (), KNOWN, fresh=(), min_gain=ALWAYS)
    assert (decided.decision.action, decided.awaits_labels) == (action, waits)
    assert word in decided.decision.reason
    assert (decided.decision.spawn, decided.trained) == ((), ())


def test_a_decision_is_the_same_after_json_and_a_broken_one_is_refused() -> None:
    decided = decide(found("new", a=gain(0.5, 0.75)), ["0", "8"], KNOWN, fresh={"b"}, min_gain=0.005)
    document = json.loads(json.dumps(decided.to_dict()))
    assert Decided.from_dict(document) == decided
    for broken in ({}, {**document, "action": "guess"}, {**document, "gains": {"a": {"accuracy_now": 2.0}}}):
        with pytest.raises(CorruptState):
            Decided.from_dict(broken)
