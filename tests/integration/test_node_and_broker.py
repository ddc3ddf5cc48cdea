"""A real node and a real MQTT broker: what the broker is told, and that the node does well without one."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from integration_nodes import Daemon, Daemons, complaints, digits_test, found, save_shard, shards
from mosquitto import Mosquitto, Observer, retained

from meshnode.identity import api_key

pytestmark = pytest.mark.integration

PASSWORD = "correct-horse-battery"


def node_with(daemons: Daemons, folder: Path, broker: Mosquitto, **env: str) -> Daemon:
    """A node with a mesh of its own and one task, that is to tell this broker of itself."""
    settings = {
        "MESHNODE_MQTT__ENABLED": "true",
        "MESHNODE_MQTT__URL": broker.url,
        "MESHNODE_MQTT__EVERY": "500ms",
    }
    node = daemons.make("ann", data=folder / "data", env=settings | env)
    save_shard(folder / "data", "task", shards(1)[0], "01")
    node.home.create()
    found(node.home, folder / "data" / "task.npz")
    return node


async def told(broker: Mosquitto, **login: str) -> Mapping[str, Any]:
    """What the broker holds of the one node, by the end of the topic."""
    held = await retained(broker, **login)
    return {topic.split("/", 4)[4]: payload for topic, payload in held.items()}


async def test_a_broker_is_told_of_a_node_from_its_start_to_its_end(daemons: Daemons, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Observer(broker) as observer:
        node = node_with(daemons, tmp_path, broker).launch().wait_ready()
        root = f"modulemesh/v1/digits/{node.peer_id}/"
        (learned,) = await observer.on(root + "event/task_learned")
        event = json.loads(learned.payload)
        assert (event["schema"], event["type"], event["task"]) == ("meshnode.event/1", "task_learned", "task")
        (expert,) = node.experts()

        held = await told(broker)
        assert held["status"] == b"online"
        info = json.loads(held["info"])
        assert (info["name"], info["peer_id"], info["mesh"]["name"]) == ("ann", node.peer_id, "digits")
        assert info["device"] == node.status()["device"]
        hosted = json.loads(held[f"expert/{expert['uid']}/state"])
        assert hosted["classes"] == ["0", "1"]
        (system,) = await observer.on(root + "telemetry/system")
        assert json.loads(system.payload)["rss_bytes"] > 50e6
        for part in ("net", "train", "serve"):
            await observer.on(root + f"telemetry/{part}")
        assert node.status()["mqtt"] == {"enabled": True, "connected": True, "error": None, "dropped": 0}
        assert "modulemesh_mqtt_connected 1.0" in node.metrics()

        assert node.terminate() == 0
        held = await told(broker)
        assert held["status"] == b"offline"
        assert json.loads(held["state"])["state"] == "draining"
    assert complaints(node.stderr) == []


async def test_the_last_will_tells_of_a_node_that_was_killed(daemons: Daemons, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Observer(broker) as observer:
        node = node_with(daemons, tmp_path, broker).launch().wait_ready()
        await observer.on("/status", b"online")
        os.kill(node.pid, signal.SIGKILL)
        (message,) = await observer.on("/status", b"offline")
        assert message.qos == 1
        assert (await told(broker))["status"] == b"offline"


async def test_a_broker_that_is_away_costs_a_node_one_warning_and_no_more(daemons: Daemons, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "password").chmod(0o600)
    broker = Mosquitto(tmp_path, users={"ann": PASSWORD})
    node = node_with(
        daemons,
        tmp_path,
        broker,
        MESHNODE_MQTT__USER="ann",
        MESHNODE_MQTT__PASSWORD_FILE=str(tmp_path / "password"),
        MESHNODE_LOG__LEVEL="debug",
    )
    node.launch().wait_ready()
    node.wait_for(lambda node: node.status()["training"]["learned"] == ["task"], "its task learned")
    mqtt = node.status()["mqtt"]
    assert (mqtt["enabled"], mqtt["connected"]) == (True, False)
    assert "refused" in mqtt["error"]
    assert node.infer(digits_test("01", 5).images)["missing_mass"] == [0.0] * 5

    with broker:
        node.wait_for(lambda node: node.status()["mqtt"]["connected"], "the broker found")
        # What happened meanwhile is told now.
        held = await told(broker, username="ann", password=PASSWORD)
        assert held["status"] == b"online"
        assert json.loads(held["state"])["experts"]["local"] == 1
        assert node.terminate() == 0
    # At the level of debug everybody speaks, and all of it is JSON, a line an event.
    entries = [json.loads(line) for line in node.stderr.splitlines()]
    warnings = [entry["event"] for entry in entries if entry["level"] not in {"debug", "info"}]
    assert len(warnings) == 1, "one for the broker, however often it was tried"
    origins = {str(entry.get("logger")).partition(".")[0] for entry in entries}
    assert {"None", "hivemind", "p2pd"} <= origins
    for secret in (PASSWORD, api_key(node.home)):
        assert secret not in node.stderr
    assert "Traceback" not in node.stderr
