"""``meshnode bench serve`` against real daemons: what it measures is what the mesh does."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_process import meshnode
from integration_nodes import Daemon, Daemons, complaints, found, save_shard, shards

from meshnode.inference.standings import LEAST_PATIENCE_S

pytestmark = pytest.mark.integration

CLASSES = ("0", "1", "2")


@dataclass(frozen=True)
class Pair:
    first: Daemon
    second: Daemon


@pytest.fixture(scope="module")
def pair(_no_process_is_left_by_a_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two nodes, each with a replica of the one expert."""
    folder = tmp_path_factory.mktemp("bench")
    for name, shard in zip(("ann", "ben"), shards(2), strict=True):
        save_shard(folder / f"{name}-data", "task", shard, CLASSES)
    with Daemons.within(folder) as made:
        first = made.make("ann", data=folder / "ann-data")
        found(first.home, folder / "ann-data" / "task.npz")
        first.launch().wait_ready()
        second = made.make("ben", data=folder / "ben-data", join=[first.address]).launch().wait_ready()
        for node in (first, second):
            node.wait_for(_is_settled, "two replicas, nothing left to learn", within_s=60)
        yield Pair(first, second)


def _is_settled(node: Daemon) -> bool:
    status = node.status()
    return (
        [len(expert["replicas"]) for expert in node.experts()] == [2]
        and status["training"]["state"] == "idle"
        and status["router"]["contributions"] >= 2
        and status["averaging"]["waiting"] == []
    )


def _received(node: Daemon) -> int:
    return int(node.status()["traffic"]["received"].get("inference", 0))


def _start(*options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "meshnode", "--json", "bench", "serve", *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for_load(node: Daemon) -> None:
    """Until more requests have come than the one before the load."""
    before = _received(node)
    node.wait_for(lambda node: _received(node) > before + 20_000, "a load")


def test_a_run_measures_both_replicas_over_the_network(pair: Pair, tmp_path: Path) -> None:
    before = _received(pair.first) + _received(pair.second)
    ended = meshnode(
        *("--home", pair.first.home.path, "--json", "bench", "serve", "--out", tmp_path / "out"),
        # Long enough for a replica that was slow at first, on a busy machine, to be asked again.
        *("--rate", 8, "--duration", "12500ms", "--warm-up", "2500ms", "--batch", 2),
    )
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["schema"] == "meshnode.bench_serve/1"
    assert document["mesh"]["id"] == pair.first.status()["mesh"]["id"]
    assert (document["mesh"]["experts"], document["mesh"]["replicas"], document["mesh"]["peers"]) == (1, 2, 2)
    requests = document["requests"]
    assert 60 < requests["offered"] == requests["answered"] == document["latency_ms"]["count"] < 140
    assert (requests["failed"], requests["partial"], requests["not_sent"]) == (0, 0, 0)
    latency, asking = document["latency_ms"], document["asking_ms"]
    assert 0 < asking["p50"] < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]
    peers = {peer["name"]: peer for peer in document["peers"]}
    assert {peer["peer_id"] for peer in document["peers"]} == {pair.first.peer_id, pair.second.peer_id}
    assert sum(peer["rows"] for peer in document["peers"]) == 2 * requests["answered"]
    assert sum(peers[name]["share"] for name in ("ann", "ben")) == pytest.approx(1.0)
    assert all(peers[name]["rows"] > 0 for name in ("ann", "ben")), "they share the load"
    # What the client says it has sent arrived at the nodes, with the warm-up's and the first request on top.
    arrived = _received(pair.first) + _received(pair.second) - before
    of_all = 1 + (1 + requests["warm_up"]) / requests["offered"]
    assert arrived == pytest.approx(of_all * document["traffic"]["sent"]["inference"], rel=0.15)
    assert complaints(pair.first.stderr + pair.second.stderr) == []
    assert json.loads((tmp_path / "out" / "serve.json").read_text()) == document
    assert (tmp_path / "out" / "serve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_replica_that_hangs_shows_in_the_percentiles_and_beside_its_name(pair: Pair, tmp_path: Path) -> None:
    hung = [psutil.Process(pair.second.pid), *pair.second.children().values()]
    spans = ("--duration", "8s", "--warm-up", "0s", "--timeout", "2s")
    bench = _start("--join", pair.first.address, "--out", tmp_path, "--rate", 20, *spans)
    try:
        _wait_for_load(pair.second)
        for process in hung:
            process.suspend()
        out, err = bench.communicate(timeout=60)
    finally:
        for process in hung:
            process.resume()
    assert bench.returncode == 0, err.decode()
    document: dict[str, Any] = json.loads(out)
    assert document["requests"]["answered"] == document["requests"]["offered"]
    peers = {peer["name"]: peer for peer in document["peers"]}
    assert peers["ben"]["failures"] > 0
    assert peers["ann"]["failures"] == 0
    # The first that were sent to it had to wait before the other replica was asked, and were answered in time.
    assert 1e3 * LEAST_PATIENCE_S < document["latency_ms"]["max"] < 2000


def test_ctrl_c_ends_a_run_with_what_it_has(pair: Pair, tmp_path: Path) -> None:
    pair.first.wait_for(_is_settled, "the other node back")
    spans = ("--duration", "5m", "--warm-up", "0s")
    bench = _start("--join", pair.first.address, "--out", tmp_path, "--concurrency", 2, *spans)
    _wait_for_load(pair.first)
    time.sleep(0.5)
    bench.send_signal(signal.SIGINT)
    out, err = bench.communicate(timeout=20)
    assert bench.returncode == 130, err.decode()
    document: dict[str, Any] = json.loads(out)
    assert document["interrupted"] is True
    assert document["load"]["loop"] == "closed"
    assert document["requests"]["answered"] > 5
    assert 0.4 < document["window_s"] < 60
    assert b"Traceback" not in err
    assert (tmp_path / "serve.png").exists()


def test_an_address_where_nobody_is_and_one_that_is_none(pair: Pair, tmp_path: Path) -> None:
    nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{pair.first.peer_id}"
    ended = meshnode("--json", "bench", "serve", "--join", nobody, "--out", tmp_path)
    assert (ended.code, ended.document["error"]["code"]) == (8, "peer_unreachable")
    ended = meshnode("--json", "bench", "serve", "--join", "somewhere", "--out", tmp_path)
    assert (ended.code, ended.document["error"]["code"]) == (2, "malformed_address")
