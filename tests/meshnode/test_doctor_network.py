"""Ports that the next start needs, and peers that it would start from."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor_subject import about, outcomes

from meshnode.doctor import peers
from meshnode.doctor.peers import check_peers
from meshnode.doctor.ports import check_ports
from meshnode.home import Home

PEER = "p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("setting", ["net.port", "api.listen"])
def test_a_taken_port_is_a_problem_that_names_port_setting_and_process(home: Home, port: int, setting: str) -> None:
    value: object = port if setting == "net.port" else f"127.0.0.1:{port}"
    ((outcome, message),) = outcomes(check_ports, about(home, {setting: value}))
    assert outcome == "problem"
    assert f"port {port} on 127.0.0.1 is in use" in message
    assert setting in message
    assert f"process {os.getpid()}" in message


def test_a_free_port_is_well_and_stays_free(home: Home, free_port: int) -> None:
    for _ in range(2):
        ((outcome, _),) = outcomes(check_ports, about(home, {"net.port": free_port}))
        assert outcome == "ok"


def test_any_port_needs_no_check(home: Home) -> None:
    assert outcomes(check_ports, about(home)) == []


def test_a_running_daemons_port_is_not_held_against_it(home: Home, port: int) -> None:
    assert outcomes(check_ports, about(home, {"net.port": port}, status={})) == []


def test_an_address_that_this_machine_has_not_is_a_problem(home: Home) -> None:
    ((outcome, message),) = outcomes(check_ports, about(home, {"net.listen": "192.0.2.1"}))
    assert outcome == "problem"
    assert "192.0.2.1" in message


def test_starting_alone_is_no_problem(home: Home) -> None:
    assert [outcome for outcome, _ in outcomes(check_peers, about(home))] == ["note"]


def test_a_peer_that_can_be_reached_is_well(home: Home, port: int) -> None:
    join = [f"/ip4/127.0.0.1/tcp/{port}/{PEER}", f"/dns4/localhost/tcp/{port}/{PEER}"]
    assert [outcome for outcome, _ in outcomes(check_peers, about(home, {"net.join": join}))] == ["ok"]


def test_a_peer_that_is_away_is_a_problem_unless_another_answers(home: Home, port: int, free_port: int) -> None:
    away, here = (f"/ip4/127.0.0.1/tcp/{number}/{PEER}" for number in (free_port, port))
    assert outcomes(check_peers, about(home, {"net.join": [away]})) == [("problem", f"{away}: Connection refused")]
    assert outcomes(check_peers, about(home, {"net.join": [away, here]})) == [("note", f"{away}: Connection refused")]


def test_silent_peers_are_waited_for_all_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECT_S", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        number = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)):  # the queue is full: who comes now is not answered
            join = [f"/ip4/127.0.0.1/tcp/{number}/p2p/{PEER.removeprefix('p2p/')}"]
            found = outcomes(check_peers, about(home, {"net.join": join}))
    assert found == [("problem", f"{join[0]}: no answer within 0.3 s")]


def test_what_tcp_cannot_reach_is_left_to_a_running_node(home: Home) -> None:
    ((_, message),) = outcomes(check_peers, about(home, {"net.join": [f"/ip4/127.0.0.1/udp/4001/quic/{PEER}"]}))
    assert "no TCP address" in message


def test_a_running_daemon_is_believed_about_its_addresses(home: Home) -> None:
    failing = {"address": "/a", "state": "retrying", "error": "refused"}
    connected = {"address": "/b", "state": "connected", "error": None}
    assert outcomes(check_peers, about(home, status={"bootstrap": [failing]})) == [("problem", "/a: refused")]
    assert outcomes(check_peers, about(home, status={"bootstrap": [failing, connected]})) == [("note", "/a: refused")]
    assert [outcome for outcome, _ in outcomes(check_peers, about(home, status={"bootstrap": [connected]}))] == ["ok"]
