"""Every exit code of the interface, reached by the real command as a user would reach it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from api_fake_node import FakeNode, serving_home
from cli_process import Ended, meshnode

from meshnode.errors import ExitCode
from meshnode.home import DaemonNote, Home
from meshnode.identity import api_key, load_or_create_identity
from meshnode.lock import DaemonLock
from protocol.errors import NoRoute


def ends(ended: Ended, code: ExitCode, error: str | None = None) -> Ended:
    """Assert how a command ended, and with which named error."""
    assert ended.code == code, (ended.out, ended.err)
    if error is not None:
        assert ended.document["error"]["code"] == error
    return ended


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A node's folder with its keys."""
    home = Home(tmp_path / "home")
    home.create()
    load_or_create_identity(home)
    api_key(home)
    return home


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.fixture
def silent(home: Home, taken_port: int) -> Home:
    """The home of a daemon whose loop stands still: it is connected to, and says nothing."""
    home.write_daemon_note(DaemonNote(os.getpid(), f"http://127.0.0.1:{taken_port}"))
    return home


def test_0_ok() -> None:
    ends(meshnode("version"), ExitCode.OK)


def test_1_failure(home: Home) -> None:
    home.ledger.write_bytes(b"no database" * 1000)
    ended = ends(meshnode("--json", "--home", home.path, "run"), ExitCode.FAILURE, "state_unreadable")
    assert ended.document["error"]["hint"]


@pytest.mark.parametrize(
    "line", [("run", "--port", "many"), ("--home", "", "status"), ("--home", __file__, "status"), ("dance",)]
)
def test_2_usage(line: tuple[str, ...]) -> None:
    ends(meshnode("--json", *line), ExitCode.USAGE, "usage")


def test_3_bad_config_of_an_address_that_is_not_this_machines(home: Home) -> None:
    run = ("--json", "--home", home.path, "run", "--listen", "192.0.2.1")
    ended = ends(meshnode(*run), ExitCode.CONFIG_INVALID, "config_invalid")
    assert "192.0.2.1" in ended.document["error"]["message"]


def test_3_bad_config(home: Home) -> None:
    home.config_toml.write_text("[net]\nprot = 4001\n")
    ended = ends(meshnode("--json", "--home", home.path, "run"), ExitCode.CONFIG_INVALID, "config_invalid")
    assert "net.port" in ended.document["error"]["hint"]


def test_4_daemon_not_running(home: Home) -> None:
    ends(meshnode("--json", "--home", home.path, "status"), ExitCode.DAEMON_NOT_RUNNING, "daemon_not_running")
    with DaemonLock(home):  # up, but it has not told where it answers
        held = meshnode("--json", "--home", home.path, "status")
    ends(held, ExitCode.DAEMON_NOT_RUNNING, "daemon_not_running")
    assert f"process {os.getpid()}" in held.document["error"]["message"]


def test_5_already_running(home: Home) -> None:
    with DaemonLock(home):
        home.write_daemon_note(DaemonNote(os.getpid(), "http://127.0.0.1:9"))
        ended = ends(meshnode("--json", "--home", home.path, "run"), ExitCode.ALREADY_RUNNING, "already_running")
    assert str(os.getpid()) in ended.document["error"]["message"]
    assert "http://127.0.0.1:9" in ended.document["error"]["message"]


def test_6_port_in_use(home: Home, taken_port: int) -> None:
    run = ("--json", "--home", home.path, "run", "--port", taken_port)
    ended = ends(meshnode(*run), ExitCode.PORT_IN_USE, "port_in_use")
    assert str(taken_port) in ended.document["error"]["message"]


def test_7_refused(tmp_path: Path) -> None:
    with serving_home(tmp_path / "home", FakeNode()) as home:
        home.api_key.write_text("another-key-than-the-daemon-s\n")
        ends(meshnode("--json", "--home", home.path, "status"), ExitCode.REFUSED, "refused")


def test_8_no_such_peer_or_expert_or_no_route(tmp_path: Path) -> None:
    image = tmp_path / "image.npy"
    np.save(image, np.zeros((1, 4, 4), np.uint8))
    with serving_home(tmp_path / "home", FakeNode(failure=NoRoute())) as home:
        infer = ("--json", "--home", home.path, "infer", "--input", image)
        ends(meshnode(*infer), ExitCode.NO_SUCH_PEER_OR_EXPERT, "no_route")


def test_9_timeout(silent: Home) -> None:
    ends(meshnode("--json", "--home", silent.path, "status"), ExitCode.TIMEOUT, "timeout")


def test_10_a_check_failed(home: Home) -> None:
    home.identity_key.chmod(0o644)
    ended = ends(meshnode("--json", "--home", home.path, "doctor"), ExitCode.CHECK_FAILED)
    assert ended.document["ok"] is False


def test_11_a_required_resource_is_absent(home: Home) -> None:
    run = ("--json", "--home", home.path, "run", "--device", "cuda:99")
    ends(meshnode(*run), ExitCode.RESOURCE_ABSENT, "resource_absent")


def test_12_identity_unusable(home: Home) -> None:
    home.identity_key.write_bytes(b"no key")
    ends(meshnode("--json", "--home", home.path, "run"), ExitCode.IDENTITY_UNUSABLE, "identity_unusable")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_130_interrupted_before_it_was_up(home: Home, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "meshnode", "--home", str(home.path), "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # While torch is imported: a traceback out of the midst of it would help nobody.
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    ends(Ended(process.returncode, out.decode(), err.decode()), ExitCode.INTERRUPTED)
    assert (out, err) == (b"", b"")


def test_130_interrupted(silent: Home) -> None:
    command = [sys.executable, "-m", "meshnode", "--home", str(silent.path), "status"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)  # it waits for the daemon's answer by now, which never comes
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    ends(Ended(process.returncode, out.decode(), err.decode()), ExitCode.INTERRUPTED)
    assert (out, err) == (b"", b"")


def test_every_exit_code_has_its_test_here() -> None:
    numbers = {
        int(name.split("_")[1]) for name in globals() if name.startswith("test_") and name.split("_")[1].isdigit()
    }
    assert numbers == set(ExitCode)
