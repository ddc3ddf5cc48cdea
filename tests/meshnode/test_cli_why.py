"""``meshnode why`` against a daemon that answers, one that does not, and none."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_fake_node import FakeNode, serving_home
from cli_process import meshnode, python

from meshnode.home import DaemonNote, Home
from meshnode.lock import DaemonLock

HEAVY = {"torch", "hivemind", "structlog", "fastapi", "cryptography", "numpy", "psutil", "meshnode.settings.config"}
PROGRAM = """
import json, sys
from meshnode.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
DEAD_PID = 2**22 + 1
"""Beyond the largest number that Linux gives a process."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with serving_home(tmp_path / "home", FakeNode()) as running:
        yield running


def test_people_get_a_block_for_what_is_held_up_and_nothing_else(home: Home) -> None:
    ended = meshnode("--home", home.path, "why")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["device", "cpu"]
    assert lines[1].split(maxsplit=1) == ["why", "no GPU was found"]
    assert lines[2].split()[0] == "change"
    assert "mesh" not in [line.split()[0] for line in lines]


def test_all_shows_what_is_well_too(home: Home) -> None:
    ended = meshnode("--home", home.path, "why", "--all")
    first_words = [line.split()[0] for line in ended.out.splitlines() if line]
    assert {"daemon", "mesh", "peers", "training", "device", "why", "change"} <= set(first_words)


def test_a_topic_is_shown_though_all_is_well_with_it(home: Home) -> None:
    ended = meshnode("--home", home.path, "why", "mesh", "--json")
    assert ended.document == {
        "schema": "meshnode.why/1",
        "reasons": [{"topic": "mesh", "state": "member of digits", "why": None, "change": None}],
    }


def test_an_unknown_topic_is_a_usage_error_that_names_the_known(home: Home) -> None:
    ended = meshnode("--home", home.path, "why", "weather")
    assert ended.code == 2
    assert "averaging" in ended.err


def test_without_a_daemon_that_is_the_reason_and_the_exit_code(tmp_path: Path) -> None:
    ended = meshnode("--home", tmp_path / "none", "why", "--json")
    assert ended.code == 4
    (reason,) = ended.document["reasons"]
    assert (reason["topic"], reason["state"]) == ("daemon", "not running")
    assert "meshnode run" in reason["change"]
    assert not (tmp_path / "none").exists()


def test_what_a_killed_daemon_left_is_called_stale(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.lock.write_text(f"{DEAD_PID}\n")
    home.write_daemon_note(DaemonNote(DEAD_PID, "http://127.0.0.1:1"))
    ended = meshnode("--home", tmp_path, "why")
    assert ended.code == 4
    assert f"process {DEAD_PID}) was killed and left daemon.json" in ended.out


def test_a_daemon_that_starts_is_not_called_absent(tmp_path: Path) -> None:
    with DaemonLock(Home(tmp_path)):
        ended = meshnode("--home", tmp_path, "why", "--json")
    assert ended.code == 4
    (reason,) = ended.document["reasons"]
    assert reason["state"] == "not ready"
    assert f"process {os.getpid()}" in reason["why"]


def test_a_url_at_which_nobody_answers_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.api_key.write_text("k" * 20)
    ended = meshnode("--home", tmp_path, "--api", "http://127.0.0.1:1", "why", "--json")
    assert ended.code == 4
    assert "http://127.0.0.1:1" in ended.document["reasons"][0]["why"]


def test_nothing_heavy_is_loaded(home: Home) -> None:
    ended = python(PROGRAM, "--home", home.path, "why", "--all")
    assert ended.code == 0, ended.err
    assert set(json.loads(ended.err.splitlines()[-1])) & HEAVY == set()
