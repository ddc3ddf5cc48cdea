"""A status document, read as a person would: what does not happen, the cause, and the way to change it."""

from typing import Any

import pytest

from meshnode.device import choose_device
from meshnode.why import _ABANDONED, TOPICS, Reason, reasons, standing
from protocol.rounds import AbandonReason

ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/QmMe"


def status(**changes: Any) -> dict[str, Any]:
    """A node with nothing held up, but for what is changed."""
    return {
        "state": "ready",
        "mesh": {"id": "cd" * 32, "name": "digits"},
        "addresses": [ADDRESS],
        "bootstrap": [{"address": "/ip4/192.0.2.9/tcp/1", "state": "connected", "error": None}],
        "peers": 3,
        "connected": 2,
        "experts": {"local": 1, "mesh": 3},
        "training": {"state": "learning", "task": "task-0", "data": "/data", "unreadable": {}, "failed": {}},
        "averaging": {"enabled": True, "committed": 5, "abandoned": {}, "waiting": [], "replicated": 1},
        "placement": {"enabled": True, "replicas": 2, "short": []},
        "serving": {"enabled": True, "queue": 0},
        "router": {"contributions": 2, "samples": {"bag": 3}},
        "mqtt": {"enabled": False, "connected": False, "error": None, "dropped": 0},
        "listen": {"host": "0.0.0.0", "loopback": False},
        "config": {"path": "/home/config.toml", "changed": False},
        "device": {"used": "cuda:0", "reason": "the first of 1 GPUs"},
    } | changes


def training(**changes: Any) -> dict[str, Any]:
    return status(training=status()["training"] | {"state": "idle", "task": None} | changes)


def averaging(**changes: Any) -> dict[str, Any]:
    return status(averaging=status()["averaging"] | changes)


def only(document: dict[str, Any]) -> Reason:
    """The one thing that is held up."""
    (reason,) = reasons(document)
    assert reason.why
    assert reason.change
    return reason


def test_a_node_that_does_all_it_can_is_not_held_up_and_tells_of_every_topic() -> None:
    assert reasons(status()) == ()
    assert tuple(reason.topic for reason in standing(status())) == TOPICS


def test_what_is_off_by_choice_and_what_a_status_leaves_out_is_not_held_up() -> None:
    assert reasons({"mesh": {"name": "digits"}, "peers": 2, "training": {"state": "learning"}}) == ()


def test_an_empty_status_can_be_read() -> None:
    assert {reason.topic for reason in standing({})} == set(TOPICS)


FAILED = {"address": "/ip4/192.0.2.9/tcp/1", "state": "retrying", "error": "connection refused"}
CONNECTED = {"address": "/ip4/192.0.2.8/tcp/1", "state": "connected", "error": None}


@pytest.mark.parametrize(
    ("bootstrap", "why", "change"),
    [
        ([], "no peer to join through was given", "--join"),
        ([FAILED], "/ip4/192.0.2.9/tcp/1 (connection refused)", "meshnode id"),
        ([FAILED, CONNECTED], "are being asked", "Wait"),
    ],
)
def test_a_missing_mesh_is_traced_to_its_bootstrap(bootstrap: list[Any], why: str, change: str) -> None:
    reason = next(reason for reason in reasons(status(mesh=None, peers=0, bootstrap=bootstrap)))
    assert (reason.topic, reason.state) == ("mesh", "none yet")
    assert why in (reason.why or "")
    assert change in (reason.change or "")


def test_what_waits_for_a_mesh_points_to_it() -> None:
    told = reasons(status(mesh=None, peers=0, training={"state": "waiting"}, averaging={"enabled": True}))
    assert [reason.topic for reason in told] == ["mesh", "peers", "training", "averaging", "replicas", "routing"]
    assert {reason.change for reason in told[1:]} == {"`meshnode why mesh` says what is missing."}


def test_a_node_alone_is_told_what_others_must_dial() -> None:
    reason = only(status(peers=1, connected=0, bootstrap=[]))
    assert (reason.topic, reason.why) == ("peers", "no other node has connected")
    assert f"--join {ADDRESS}" in (reason.change or "")


def test_nodes_of_another_mesh_are_no_peers() -> None:
    assert "2 nodes connected, but none" in (only(status(peers=1)).why or "")


def test_many_failing_addresses_are_counted() -> None:
    why = only(status(peers=1, connected=0, bootstrap=[FAILED] * 5)).why or ""
    assert why.count("connection refused") == 3
    assert why.endswith("and 2 more")


@pytest.mark.parametrize(
    ("changes", "why", "change"),
    [
        ({"state": "disabled"}, "switched off", "--no-train"),
        ({"data": None}, "no data folder is set", "--data"),
        ({"reason": "there is no folder /data"}, "there is no folder /data", "into /data"),
        ({"learned": []}, "there is no task file", "into /data"),
        ({"learned": ["1"]}, "every task file has been learned", "into /data"),
        ({"state": "restarting", "reason": "exit status -9"}, "exit status -9", "log"),
    ],
)
def test_training_that_stands_still_has_a_cause(changes: dict[str, Any], why: str, change: str) -> None:
    reason = only(training(**changes))
    assert (reason.topic, reason.state) == ("training", changes.get("state", "idle"))
    assert reason.why == why
    assert change in (reason.change or "")


@pytest.mark.parametrize(("field", "what"), [("unreadable", "cannot be read"), ("failed", "could not be learned")])
def test_task_files_in_trouble_are_told_even_while_another_is_learned(field: str, what: str) -> None:
    reason = only(training(state="learning", **{field: {"a": "no images", "b": "no labels"}}))
    assert reason.state == f"2 task files {what}"
    assert reason.why == "a: no images; b: no labels"


def test_the_last_decision_is_told_with_its_reason_and_holds_nothing_up() -> None:
    decided = {"task": "b", "outcome": None, "decision": {"action": "reuse", "reason": "nothing to gain"}}
    document = training(state="learning", decided=decided)
    (told,) = (reason for reason in standing(document) if reason.topic == "decisions")
    assert told == Reason("decisions", "b: reuse (nothing to gain)")
    assert reasons(document) == ()


def test_files_that_wait_for_labels_are_told_by_name() -> None:
    reason = only(training(state="learning", unlabelled=["a", "c"], decided=None))
    assert (reason.topic, reason.state) == ("decisions", "2 task files undecided")
    assert (reason.why or "").endswith("a; c")
    assert "labels" in (reason.change or "")


def test_batches_of_a_stream_that_wait_are_told() -> None:
    streams = [{"name": "s", "waiting": 3}, {"name": "t", "waiting": 0}]
    reason = only(training(state="learning", streams=streams))
    assert (reason.topic, reason.state) == ("decisions", "3 batches of stream s wait")
    assert "three new ones in a row" in (reason.why or "")


def test_averaging_can_be_off_or_have_nobody_to_average_with() -> None:
    assert only(averaging(enabled=False)).state == "off"
    assert "no expert hosted here has a replica" in (only(averaging(replicated=0)).why or "")


def test_rounds_that_mostly_fail_are_explained_by_the_commonest_cause() -> None:
    reason = only(averaging(committed=2, abandoned={"incomplete": 1, "partner_silent": 4}))
    assert reason.state == "2 rounds committed, 5 abandoned"
    assert reason.why == "mostly because a member was not heard in time (4 times)"


def test_a_round_that_fails_now_and_then_is_how_a_mesh_is() -> None:
    assert reasons(averaging(committed=5, abandoned={"partner_silent": 5})) == ()


def test_every_cause_of_an_abandoned_round_that_is_counted_has_a_meaning() -> None:
    assert set(_ABANDONED) == set(AbandonReason) - {AbandonReason.NOTHING_TO_DO}


def test_serving_needs_to_be_on_and_something_to_serve() -> None:
    off = reasons(status(serving={"enabled": False}))
    assert [reason.state for reason in off if reason.topic == "serving"] == ["off"]
    assert only(status(experts={"local": 0, "mesh": 3})).why == "no expert is hosted here"


def test_an_empty_router_is_told() -> None:
    assert only(status(router={"contributions": 0, "samples": {}})).topic == "routing"


def test_a_cpu_is_explained_unless_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    fallen_back = choose_device("auto", require_gpu=False)
    reason = only(status(device={"used": fallen_back.used, "reason": fallen_back.reason}))
    assert (reason.topic, reason.state, reason.why) == ("device", "cpu", fallen_back.reason)
    chosen = choose_device("cpu", require_gpu=False)
    assert reasons(status(device={"used": chosen.used, "reason": chosen.reason})) == ()


def test_listening_on_loopback_keeps_other_machines_out() -> None:
    reason = only(status(listen={"host": "127.0.0.1", "loopback": True}))
    assert reason.topic == "reach"
    assert "--listen 0.0.0.0" in (reason.change or "")


def test_a_node_that_serves_nothing_does_not_average_either_and_is_told_why() -> None:
    off = reasons(status(serving={"enabled": False, "queue": 0}))
    assert {reason.topic for reason in off} == {"averaging", "serving"}
    assert all("[serve]" in (reason.change or "") for reason in off)


def test_a_broker_that_is_away_is_told_with_its_error() -> None:
    reason = only(status(mqtt={"enabled": True, "connected": False, "error": "refused", "dropped": 2}))
    assert (reason.state, reason.why) == ("not connected, 2 messages dropped", "refused")
    assert reasons(status(mqtt={"enabled": True, "connected": True, "error": None, "dropped": 0})) == ()


def test_a_broker_is_told_nothing_before_there_is_a_mesh_and_that_is_what_to_look_at() -> None:
    waiting = status(mesh=None, mqtt={"enabled": True, "connected": False, "error": "no mesh yet", "dropped": 0})
    (reason,) = [reason for reason in reasons(waiting) if reason.topic == "mqtt"]
    assert "meshnode why mesh" in (reason.change or "")


def test_settings_changed_after_the_start_are_not_in_force() -> None:
    assert "/home/config.toml" in (only(status(config={"path": "/home/config.toml", "changed": True})).why or "")


def test_a_node_that_stops_says_so() -> None:
    assert only(status(state="draining")).topic == "daemon"


def test_experts_that_cannot_be_used_are_told_with_the_reason() -> None:
    left_out = [{"uid": "ab" * 32, "name": "owl", "reason": "architecture 'rnn': known kinds: mlp"}]
    reason = only(status(experts=status()["experts"] | {"left_out": left_out}))
    assert reason.topic == "routing"
    assert "1 expert left out" in reason.state
    assert "known kinds: mlp" in str(reason.why)
    assert "install the package" in str(reason.change)


def test_a_teacher_that_cannot_be_loaded_holds_learning_up() -> None:
    training = {
        "state": "waiting",
        "reason": "a teacher that the settings name cannot be loaded: timm:x: timm is not installed",
        "unusable_teachers": {"timm:x": "timm is not installed"},
    }
    reason = only(status(training=training))
    assert "timm is not installed" in str(reason.why)
    assert "teachers in [train]" in str(reason.change)
    pulling = {"state": "waiting", "reason": "a replica could not be pulled"}
    assert "tried again" in str(only(status(training=pulling)).change)


def test_an_expert_of_one_replica_is_named_with_what_keeps_it_from_having_another() -> None:
    short = [{"uid": "ab" * 32, "replicas": 1, "reason": "no peer has room"}]
    reason = only(status(placement={"enabled": True, "replicas": 2, "short": short}))
    assert (reason.topic, reason.state) == ("replicas", "1 expert with fewer than 2")
    assert reason.why == "expert abababababab has 1 replica: no peer has room"
    assert "room" in (reason.change or "")


def test_a_node_that_hands_over_says_so() -> None:
    handover = {"under_way": True, "taken": {}, "left": ["ab" * 32], "reason": None}
    assert "hands over 1 expert that no other node holds" in (
        only(status(state="draining", handover=handover)).why or ""
    )
