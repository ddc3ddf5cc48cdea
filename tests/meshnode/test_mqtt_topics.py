"""Topics that every broker takes and no two nodes share, and payloads that every JSON reader takes."""

import json
import math
from pathlib import Path

import paho.mqtt.client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.mqtt.topics import Topics, encode

PEER = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


def test_every_topic_of_a_node_lies_under_its_mesh_and_peer_id() -> None:
    topics = Topics.of_node("home/modulemesh", "digits", PEER)
    root = f"home/modulemesh/v1/digits/{PEER}/"
    assert topics.status == root + "status"
    assert topics.info == root + "info"
    assert topics.state == root + "state"
    assert topics.telemetry("net") == root + "telemetry/net"
    assert topics.expert("0f3c") == root + "expert/0f3c/state"
    assert topics.event("task_learned") == root + "event/task_learned"


@pytest.mark.parametrize(
    ("mesh", "level"),
    [
        ("my mesh", "my mesh"),
        ("Ziffern ÄÖ", "Ziffern ÄÖ"),
        ("a/b", "a_b"),
        ("+", "_"),
        ("#", "_"),
        ("", "_"),
        ("\x00\x1b\x7f", "___"),
        ("\ud800\uffff", "__"),
    ],
)
def test_a_mesh_name_is_one_level_without_wildcards(mesh: str, level: str) -> None:
    assert Topics.of_node("p", mesh, PEER).status == f"p/v1/{level}/{PEER}/status"


@given(st.text(max_size=64), st.text(max_size=64))
def test_whatever_a_mesh_and_an_expert_are_called_the_topic_is_valid_and_as_deep(mesh: str, uid: str) -> None:
    topic = Topics.of_node("p", mesh, PEER).expert(uid)
    assert topic.count("/") == 6
    assert "" not in topic.split("/")
    paho.mqtt.client.Client(paho.mqtt.client.CallbackAPIVersion.VERSION2).will_set(topic)  # raises for wildcards
    topic.encode("utf-8")


def test_a_document_is_json_with_its_schema_first() -> None:
    assert encode({"peers": 2}, "state") == b'{"schema":"meshnode.mqtt-state/1","peers":2}'


def test_a_document_that_has_a_schema_stays_as_it_is() -> None:
    document = {"schema": "meshnode.event/1", "id": 1, "name": "Zürich"}
    assert json.loads(encode(document)) == document


def test_numbers_that_json_has_no_word_for_are_null() -> None:
    document = {"loss": math.nan, "nested": [{"best": math.inf}, (-math.inf, 0.5)]}
    assert json.loads(encode(document)) == {"loss": None, "nested": [{"best": None}, [None, 0.5]]}


def test_what_json_does_not_know_is_its_text() -> None:
    assert json.loads(encode({"data": Path("/data"), 1: {2}})) == {"data": "/data", "1": "{2}"}
