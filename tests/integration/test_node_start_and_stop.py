"""How a daemon starts where something is in its way, and how it stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_process import meshnode
from integration_nodes import (
    FAST,
    Daemon,
    Daemons,
    complaints,
    digits_test,
    eventually,
    found,
    is_running,
    save_shard,
    shards,
)

from meshnode.identity import load_or_create_identity

pytestmark = pytest.mark.integration


def _founded(daemons: Daemons, folder: Path, **settings: Any) -> Daemon:
    node = daemons.make("ann", data=folder / "data", **settings)
    save_shard(node.data, "task", shards(2)[0], ("0", "1"))
    found(node.home, node.data / "task.npz")
    return node


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_node_at_work_stops_in_order_and_refuses_a_second_on_its_home_or_port(
    daemons: Daemons, tmp_path: Path
) -> None:
    node = _founded(daemons, tmp_path, env={"MESHNODE_TRAIN__STEPS": "20000"}).launch().wait_ready()
    node.wait_for(lambda node: node.status()["training"]["stage"] == "distil", "the middle of its training")
    children = node.children()
    assert children.keys() == {"p2pd", "trainer"}

    second = meshnode("--home", node.home.path, "run", env=dict(FAST))
    assert second.code == 5
    assert str(node.pid) in second.err
    assert "Traceback" not in second.err

    port = node.address.split("/")[4]
    other = meshnode("--home", tmp_path / "other", "run", "--port", port, env=dict(FAST))
    assert other.code == 6
    assert f"port {port} on 127.0.0.1 is in use" in other.err
    assert "Traceback" not in other.err

    assert node.infer(digits_test("01", 5).images)["missing_mass"] == [0.0] * 5
    assert node.terminate() == 0
    assert not any(is_running(child) for child in children.values())
    assert complaints(node.stderr) == []
    assert not node.home.daemon_json.exists()
    status = meshnode("--home", node.home.path, "status")
    assert status.code == 4


def test_a_dead_bootstrap_address_is_a_warning_with_its_cause_and_a_retry(daemons: Daemons, tmp_path: Path) -> None:
    absent = daemons.make("ben", options=["--no-train"])
    absent.home.create()
    port = _free_port()
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{load_or_create_identity(absent.home).peer_id}"
    node = _founded(daemons, tmp_path, join=[address]).launch().wait_ready()

    node.wait_for(lambda node: node.status()["bootstrap"][0]["error"], "the failure noted")
    (entry,) = node.status()["bootstrap"]
    assert (entry["address"], entry["state"]) == (address, "retrying")
    assert "refused" in entry["error"]
    (warning,) = map(json.loads, complaints(node.stderr))
    assert (warning["level"], warning["event"]) == ("warning", "bootstrap failed")
    assert (warning["address"], warning["retrying"]) == (address, True)
    assert "refused" in warning["reason"]
    # libp2p does not dial again at once; the cause is told all the same.
    for _ in range(8):
        assert "refused" in node.status()["bootstrap"][0]["error"]
        time.sleep(0.3)
    # Alone it learns, serves and answers.
    node.wait_for(lambda node: node.status()["training"]["learned"] == ["task"], "its task learned")
    assert node.infer(digits_test("01", 5).images)["missing_mass"] == [0.0] * 5

    # When somebody is there at last, they find each other, and the newcomer takes the mesh from the one that called.
    absent.options = ["--no-train", "--port", str(port)]
    absent.launch().wait_ready()
    node.wait_for(lambda node: node.status()["bootstrap"][0]["state"] == "connected", "the retry that succeeds")
    assert node.status()["bootstrap"][0]["error"] is None
    absent.wait_for(lambda node: len(node.experts()) == 1, "the expert seen by the newcomer")

    # A stop does not wait for a peer that hangs, nor fail because of it.
    for process in (absent.pid, absent.children()["p2pd"].pid):
        os.kill(process, signal.SIGSTOP)
    assert node.terminate() == 0
    assert "Traceback" not in node.stderr
    assert "hivemind" not in node.stderr


def test_the_end_of_its_terminal_stops_a_node_in_good_order_and_the_log_says_so(daemons: Daemons) -> None:
    node = daemons.make("ann").launch()
    eventually(node.home.read_daemon_note, within_s=40, what="the node up")
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    assert node.process.wait(20) == 0
    assert node.home.read_daemon_note() is None
    events = [json.loads(line)["event"] for line in node.stderr.splitlines()]
    assert events == ["node ready", "node stopping", "node stopped"]


def test_stop_returns_once_the_node_has_stopped_and_asking_twice_hastens_nothing(daemons: Daemons) -> None:
    node = daemons.make("ann").launch()
    eventually(node.home.read_daemon_note, within_s=40, what="the node up")
    stopping = [
        subprocess.Popen(
            [sys.executable, "-m", "meshnode", "--json", "--home", str(node.home.path), "stop"], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    ended = [(json.loads(process.communicate(timeout=30)[0]), process.returncode) for process in stopping]
    assert any(document.get("stopped") and code == 0 for document, code in ended), ended
    assert all(code in {0, 4} for _, code in ended), "the other may have come too late to find a daemon"
    assert node.process is not None
    assert node.process.wait(10) == 0
    assert node.home.read_daemon_note() is None


def test_a_home_of_one_mesh_is_not_run_for_another(daemons: Daemons, tmp_path: Path) -> None:
    node = _founded(daemons, tmp_path, env={"MESHNODE_MESH__ID": "ab" * 32}).launch()
    assert node.process is not None
    assert node.process.wait(40) == 7
    failure = json.loads(complaints(node.stderr)[0])
    assert (failure["level"], failure["code"]) == ("critical", "mesh_mismatch")


def test_ctrl_c_in_a_terminal_is_for_the_daemon_alone(daemons: Daemons, tmp_path: Path) -> None:
    node = _founded(daemons, tmp_path).launch().wait_ready()
    node.wait_for(lambda node: bool(node.status()["training"]["learned"]), "its task learned")
    children = node.children()
    # A terminal interrupts every process of its group: p2pd is in another session, the trainer turns a deaf ear.
    assert os.getsid(children["p2pd"].pid) != os.getsid(node.pid)
    children["trainer"].send_signal(signal.SIGINT)
    assert node.process is not None
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(20) == 0
    assert not any(is_running(child) for child in children.values())
    assert complaints(node.stderr) == []
