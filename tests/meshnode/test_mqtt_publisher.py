"""What a real broker hears of a node, through its restarts and silences."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop
from mosquitto import Mosquitto, Observer, retained
from mqtt_node import ACCEPTED, PEER, QUICK, ROOT, WITH_TESTS, Node, hangs_up, listener, running

from meshnode.mqtt.publisher import MAX_QUEUED_EVENTS


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def listening(broker: Mosquitto) -> Iterator[Observer]:
    with Observer(broker) as listening:
        yield listening


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The log lines that contain a text."""
    caplog.set_level(logging.DEBUG)
    return lambda part: [record.getMessage() for record in caplog.records if part in record.getMessage()]


async def emitted(node: Node, listening: Observer, kind: str) -> None:
    node.events.emit(kind)
    await listening.on(f"event/{kind}")


# What is told


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_the_broker_is_told_of_the_whole_node(broker: Mosquitto, listening: Observer, version: str) -> None:
    async with running(broker.url, version=version) as node:
        node.events.emit("task_learned", task="1")
        (event,) = await listening.on("event/task_learned")
        await listening.on("telemetry/serve")

        assert [(message.topic.removeprefix(ROOT), message.qos) for message in listening.heard] == [
            ("status", 1),
            ("info", 1),
            ("state", 1),
            ("expert/e1/state", 1),
            ("expert/e2/state", 1),
            ("event/task_learned", 1),
            ("telemetry/system", 0),
            ("telemetry/net", 0),
            ("telemetry/train", 0),
            ("telemetry/serve", 0),
        ]
        document = json.loads(event.payload)
        assert (document["schema"], document["type"], document["task"]) == ("meshnode.event/1", "task_learned", "1")
        assert f"(p{5 if version == '5' else 2}, " in broker.log()

        lasting = await retained(broker)
        assert lasting.pop(ROOT + "status") == b"online"
        assert {topic.removeprefix(ROOT): json.loads(payload) for topic, payload in lasting.items()} == {
            "info": {"schema": "meshnode.mqtt-info/1", "name": "a node"},
            "state": {"schema": "meshnode.mqtt-state/1", "state": "ready"},
            "expert/e1/state": {"schema": "meshnode.mqtt-expert/1", "generation": 1},
            "expert/e2/state": {"schema": "meshnode.mqtt-expert/1", "generation": 1},
        }
        assert node.publisher.connected
        assert node.publisher.error is None


async def test_telemetry_names_its_part_and_comes_every_period(broker: Mosquitto, listening: Observer) -> None:
    async with running(broker.url, every="0.1s"):
        first, *_ = await listening.on("telemetry/net", count=3)
        assert json.loads(first.payload) == {"schema": "meshnode.mqtt-telemetry-net/1", "peers": 1}


async def test_state_is_sent_when_it_changes_and_only_then(broker: Mosquitto, listening: Observer) -> None:
    async with running(broker.url) as node:
        await node.connected()
        node.source.now = {"state": "draining"}
        node.source.hosted = {"e1": {"generation": 2}, "e2": {"generation": 1}}
        await listening.until(lambda message: b"draining" in message.payload)
        await listening.until(lambda message: b'"generation":2' in message.payload)
        await asyncio.sleep(5 * QUICK.look_s)
        for topic, times in (("/state", 2 + 3), ("info", 1), ("e1/state", 2), ("e2/state", 1)):
            assert sum(message.topic.endswith(topic) for message in listening.heard) == times, topic


async def test_an_expert_that_is_dropped_leaves_nothing_behind(broker: Mosquitto, listening: Observer) -> None:
    async with running(broker.url) as node:
        await node.connected()
        del node.source.hosted["e1"]
        await listening.on("e1/state", b"")
        assert [topic for topic in await retained(broker) if "/expert/" in topic] == [ROOT + "expert/e2/state"]


async def test_an_expert_that_is_dropped_during_an_outage_leaves_nothing_behind(broker: Mosquitto) -> None:
    async with running(broker.url) as node:
        await node.connected()
        broker.freeze()
        node.source.hosted["e3"] = {"generation": 1}  # sent, and never confirmed
        await node.failed("no answer")
        del node.source.hosted["e1"], node.source.hosted["e3"]
        broker.thaw()
        await node.connected()
        assert [topic for topic in await retained(broker) if "/expert/" in topic] == [ROOT + "expert/e2/state"]


async def test_events_of_before_the_start_are_told_in_their_order(broker: Mosquitto, listening: Observer) -> None:
    async with running(broker.url) as node:
        for number in range(20):
            node.events.emit("tick", number=number)
        heard = await listening.on("event/tick", count=20)
        assert [json.loads(message.payload)["number"] for message in heard] == list(range(20))


# How it ends


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_a_node_that_stops_says_its_last_state_and_that_it_is_offline(
    broker: Mosquitto, listening: Observer, version: str
) -> None:
    async with running(broker.url, version=version) as node:
        await node.connected()
        node.source.now = {"state": "draining"}
        node.events.emit("node_stopping")
        assert await node.stop() < 0.4
        await listening.on("status", b"offline")
        assert [message.topic.removeprefix(ROOT) for message in listening.heard[-3:]] == [
            "event/node_stopping",
            "state",
            "status",
        ]
        lasting = await retained(broker)
        assert lasting[ROOT + "status"] == b"offline"
        assert b"draining" in lasting[ROOT + "state"]
        await asyncio.sleep(0.1)
        # Had it left without a goodbye, its last will would have been heard as well.
        assert sum(message.payload == b"offline" for message in listening.heard) == 1


@pytest.mark.parametrize("turns", range(5))
async def test_a_node_stops_also_when_an_event_and_the_stop_come_together(broker: Mosquitto, turns: int) -> None:
    async with running(broker.url, replace(QUICK, look_s=5.0)) as node:
        await node.connected()
        await asyncio.sleep(0.05)
        node.events.emit("node_stopping")
        for _ in range(turns):  # of the loop, between the two
            await asyncio.sleep(0)
        assert await node.stop() < 0.4


async def test_after_the_stop_nothing_is_kept_any_more(broker: Mosquitto) -> None:
    async with running(broker.url) as node:
        await node.connected()
        await node.stop()
        for _ in range(MAX_QUEUED_EVENTS + 1):
            node.events.emit("tick")
        assert node.publisher.dropped == 0
        assert not node.publisher.connected


async def test_a_node_that_is_killed_is_offline_by_its_last_will(broker: Mosquitto) -> None:
    program = (
        "import asyncio, mqtt_node as t\n"
        "async def main():\n"
        f"    async with t.running({broker.url!r}) as node: await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    child = subprocess.Popen([sys.executable, "-c", program], env=os.environ | WITH_TESTS)
    try:
        with Observer(broker) as listening:
            await listening.on("status", b"online")
            child.send_signal(signal.SIGKILL)
            await listening.on("status", b"offline")
    finally:
        child.kill()
        child.wait(10)
    assert (await retained(broker))[ROOT + "status"] == b"offline"


async def test_a_frozen_broker_delays_the_stop_by_no_more_than_the_goodbye(broker: Mosquitto) -> None:
    async with running(broker.url, replace(QUICK, answer_timeout_s=5.0, keepalive_s=15)) as node:
        await node.connected()
        broker.freeze()
        assert await node.stop() < QUICK.goodbye_s + 0.4
        broker.thaw()
        with Observer(broker) as listening:
            await listening.on("status", b"offline")


# The broker goes and comes


async def test_a_broker_that_has_lost_everything_is_told_everything_again(
    broker: Mosquitto, lines: Callable[[str], list[str]]
) -> None:
    async with running(broker.url) as node:
        await node.connected()
        before = await retained(broker)
        broker.kill()
        await node.failed("Connection refused")
        node.events.emit("peer_left", name="b")
        node.events.emit("peer_joined", name="c")
        await asyncio.sleep(4 * QUICK.last_retry_s)
        assert len(lines("MQTT broker unavailable")) == 1

        broker.start()
        with Observer(broker) as listening:
            await listening.on("event/peer_joined")
            heard = [message.topic.removeprefix(ROOT) for message in listening.heard]
        whole = ["status", "info", "state", "expert/e1/state", "expert/e2/state"]
        assert heard[:7] == [*whole, "event/peer_left", "event/peer_joined"]
        assert await retained(broker) == before
        assert node.publisher.dropped == 0
        assert len(lines("MQTT broker connected")) == 2
        assert len(lines("MQTT broker unavailable")) == 1


async def test_the_queue_is_bounded_and_the_oldest_events_go_first(broker: Mosquitto) -> None:
    broker.kill()
    async with running(broker.url) as node:
        await node.failed("Connection refused")
        for number in range(MAX_QUEUED_EVENTS + 10):
            node.events.emit("tick", number=number)
        assert node.publisher.dropped == 10
        broker.start()
        with Observer(broker) as listening:
            heard = await listening.on("event/tick", count=MAX_QUEUED_EVENTS)
        assert [json.loads(message.payload)["number"] for message in heard] == list(range(10, MAX_QUEUED_EVENTS + 10))
        assert node.publisher.dropped == 10


async def test_measurements_do_not_wait_for_a_broker(broker: Mosquitto) -> None:
    broker.kill()
    async with running(broker.url, every="0.05s") as node:
        await asyncio.sleep(0.5)
        assert node.publisher.dropped == 0
        broker.start()
        with Observer(broker) as listening:
            await node.connected()
            await emitted(node, listening, "tick")
            assert sum(message.topic.endswith("telemetry/net") for message in listening.heard) < 5


async def test_a_frozen_broker_is_noticed_and_told_again_when_it_is_back(
    broker: Mosquitto, listening: Observer
) -> None:
    async with running(broker.url) as node:
        await node.connected()
        broker.freeze()
        await node.failed("Keep alive timeout")
        await node.failed("no answer within 0.5 s")
        for number in range(3):
            node.events.emit("tick", number=number)
        broker.thaw()
        await listening.on("event/tick", count=3)
        await node.connected()
        # Of the attempts meanwhile, none may speak up after the one that holds.
        assert (await retained(broker))[ROOT + "status"] == b"online"


async def test_an_event_that_was_under_way_when_the_broker_froze_is_told_again(broker: Mosquitto) -> None:
    async with running(broker.url) as node:
        await node.connected()
        broker.freeze()
        node.events.emit("tick", number=1)
        node.events.emit("tick", number=2)
        await node.failed("no answer within 0.5 s")
        broker.kill()
        broker.start()
        with Observer(broker) as listening:
            heard = await listening.on("event/tick", count=2)
        assert [json.loads(message.payload)["number"] for message in heard] == [1, 2]


async def test_a_new_connection_takes_the_place_of_the_nodes_old_one(broker: Mosquitto) -> None:
    async with running(broker.url) as old:
        await old.connected()
        async with running(broker.url):
            await old.failed("connection lost")
    (client_id,) = {line.split(" as ")[1].split(" ")[0] for line in broker.log().splitlines() if " as mm" in line}
    assert len(client_id) == 23  # what every broker has to accept
    assert client_id.removeprefix("mm") in PEER


async def test_pauses_grow_until_a_connection_has_held_for_a_while() -> None:
    held_s = iter([0.03, 0.03, 0.03, 0.03, 0.6])

    async def accepts_for_a_while(writer: asyncio.StreamWriter) -> None:
        writer.write(ACCEPTED)
        await asyncio.sleep(next(held_s, 0.0))
        writer.close()

    timing = replace(QUICK, last_retry_s=0.4, answer_timeout_s=5.0)
    async with listener(accepts_for_a_while) as (url, calls), running(url, timing) as node:
        while len(calls) < 6:
            assert not node.task.done()
            await asyncio.sleep(0.01)
    *growing, last = [later - earlier for earlier, later in pairwise(calls)]
    for pause, least in zip(growing, (0.05, 0.1, 0.2, 0.4), strict=True):
        assert pause > 0.95 * least, growing
    assert last < 0.6 + 0.35


async def test_a_bug_in_a_document_is_not_taken_for_an_outage(broker: Mosquitto) -> None:
    node = Node(broker.url, QUICK)
    await node.connected()
    node.source.now = None  # type: ignore[assignment]
    with pytest.raises(ExceptionGroup):
        await node.task


# The daemon's loop


def test_all_of_it_works_on_the_loop_that_the_daemon_has(
    broker: Mosquitto, listening: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    async def life() -> None:
        async with running(broker.url) as node:
            assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
            await emitted(node, listening, "one")
        async with running(broker.url) as node:
            await node.connected()
            broker.kill()
            await node.failed("Connection refused")
            broker.start()
            await node.connected()
            broker.freeze()
            await node.failed("no answer within 0.5 s")
            broker.thaw()
            await node.connected()
            assert await node.stop() < 0.4
        assert (await retained(broker))[ROOT + "status"] == b"offline"
        async with listener(hangs_up) as (url, calls), running(url):
            while len(calls) < 3:
                await asyncio.sleep(0.01)

    uvloop.run(life())
    assert [record for record in caplog.records if record.name == "asyncio"] == []
