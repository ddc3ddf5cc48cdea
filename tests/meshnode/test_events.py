"""Events: told once to the log and to every listener, numbered without gaps."""

import logging

import pytest

from meshnode.telemetry.events import Event, Events


def test_listeners_get_each_event_in_order_with_its_number_and_facts() -> None:
    events, heard = Events(), list[Event]()
    events.emit("node_ready")
    events.listen(heard.append)
    events.emit("task_learned", task="1", seconds=3.5)
    events.emit("peer_left", name="ben")
    assert [(event.number, event.kind, event.facts) for event in heard] == [
        (2, "task_learned", {"task": "1", "seconds": 3.5}),
        (3, "peer_left", {"name": "ben"}),
    ]


def test_a_listener_that_ends_hears_no_more_and_the_others_still_do() -> None:
    events, first, second = Events(), list[Event](), list[Event]()
    end = events.listen(first.append)
    events.listen(second.append)
    events.emit("a")
    end()
    events.emit("b")
    assert [event.kind for event in first] == ["a"]
    assert [event.kind for event in second] == ["a", "b"]


def test_the_document_names_type_time_and_facts() -> None:
    event = Event(number=7, time_s=1_700_000_000.12345, kind="peer_joined", facts={"name": "ben"})
    assert event.document() == {
        "schema": "meshnode.event/1",
        "id": 7,
        "time": 1_700_000_000.123,
        "type": "peer_joined",
        "name": "ben",
    }


@pytest.mark.parametrize(("level", "number"), [("debug", logging.DEBUG), ("warning", logging.WARNING)])
def test_each_event_is_a_log_line_at_its_level(caplog: pytest.LogCaptureFixture, level: str, number: int) -> None:
    with caplog.at_level(logging.DEBUG):
        Events().emit("bootstrap_failed", level=level, address="x")  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.levelno == number
    assert "bootstrap failed" in str(record.msg)
    assert "x" in str(record.msg)
