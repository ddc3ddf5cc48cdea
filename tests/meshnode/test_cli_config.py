"""``meshnode config``: what holds, asked of the daemon or read from the file, and what is wrong with a file."""

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_process import Ended, meshnode, python

from meshnode.home import DaemonNote, Home
from meshnode.settings.config import load_settings
from meshnode.settings.documents import config_schema, settings_document

HEAVY = {
    "torch",
    "hivemind",
    "fastapi",
    "starlette",
    "uvicorn",
    "structlog",
    "prometheus_client",
    "httpx",
    "matplotlib",
}
# Runs the command in this interpreter, then tells on stderr what it left loaded.
PROGRAM = """
import json, sys
from meshnode.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    home.api_key.write_text("k3y\n")
    return home


def config(home: Home, *words: object, env: dict[str, str] | None = None) -> Ended:
    return meshnode("--home", home.path, "config", *words, env=env)


def rows(ended: Ended) -> dict[str, list[str]]:
    """The cells of a printed table by the first of each line."""
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in ended.out.splitlines())}


@contextlib.contextmanager
def daemon(home: Home, document: dict[str, Any]) -> Iterator[None]:
    """Something on loopback that answers for the home's daemon: with ``document``, to whoever has the key."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/api/v1/config" and self.headers["authorization"] == "Bearer k3y"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(document if known else {}).encode())

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        home.write_daemon_note(DaemonNote(os.getpid(), f"http://127.0.0.1:{server.server_port}"))
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def running(home: Home, **flags: object) -> dict[str, Any]:
    """What a daemon started now, with these options for the section ``net``, would answer."""
    overrides = {f"net.{name}": value for name, value in flags.items()}
    return settings_document(load_settings(home, overrides, environment={}))


def test_without_a_daemon_the_file_and_the_environment_are_shown_and_that_is_said(home: Home) -> None:
    home.config_toml.write_text('[net]\nport = 4001\nrefresh = 0.5\n[train]\nenabled = false\ndata = "tasks"')
    ended = config(home, "show", env={"MESHNODE_LOG__LEVEL": "debug"})
    assert ended.code == 0
    assert "No daemon runs" in ended.err
    shown = rows(ended)
    assert shown["NAME"] == ["VALUE"]
    assert shown["net.port"] == ["4001"]
    assert shown["net.refresh"] == ["500ms"]
    assert shown["net.record_ttl"] == ["1m"]
    assert shown["train.enabled"] == ["false"]
    assert shown["train.data"] == [str(home.path / "tasks")]
    assert shown["log.level"] == ["debug"]
    assert shown["net.join"] == shown["mesh.id"] == ["-"]


def test_each_origin_is_named_with_the_place(home: Home) -> None:
    home.config_toml.write_text("[net]\nport = 4001")
    shown = rows(config(home, "show", "--origin", env={"MESHNODE_LOG__LEVEL": "debug"}))
    assert shown["NAME"] == ["VALUE", "ORIGIN"]
    assert shown["net.port"] == ["4001", "file (config.toml)"]
    assert shown["log.level"] == ["debug", "env (MESHNODE_LOG__LEVEL)"]
    assert shown["net.listen"] == ["127.0.0.1", "default"]
    with daemon(home, running(home, port=5001)):
        assert rows(config(home, "show", "--origin"))["net.port"] == ["5001", "flag (--port)"]


def test_a_running_daemon_answers_for_itself(home: Home) -> None:
    with daemon(home, running(home, port=5001)):
        ended = config(home, "show", "net", env={"MESHNODE_NET__LISTEN": "0.0.0.0"})
        assert (ended.code, ended.err) == (0, "")
        shown = rows(ended)
        assert (shown["net.port"], shown["net.listen"]) == (["5001"], ["127.0.0.1"])
        assert config(home, "get", "net.port").out == "5001\n"


def test_a_file_that_has_changed_under_the_daemon_is_told_with_the_settings_that_wait(home: Home) -> None:
    home.config_toml.write_text("[net]\nport = 1")
    document = running(home, listen="0.0.0.0")
    home.config_toml.write_text('[net]\nport = 2\nlisten = "::1"\n[train]\nsteps = 5')
    with daemon(home, document):
        ended = config(home, "show")
        assert "a restart takes up net.port, train.steps" in ended.err
        assert rows(ended)["net.port"] == ["1"]
        assert config(home, "show", "-q").err == ""
        home.config_toml.write_text("[net]\nprot = 2")
        broken = config(home, "get", "net.port")
        assert (broken.code, broken.out) == (0, "1\n")
        assert "no daemon would start with it now: net.prot" in broken.err


def test_a_daemon_asked_for_by_url_is_not_replaced_by_a_guess(home: Home) -> None:
    ended = config(home, "show", "--api", "http://127.0.0.1:9", "--json")
    assert (ended.code, ended.document["error"]["code"]) == (4, "daemon_not_running")
    # A note that a kill left behind, and whose process id is somebody else's by now.
    home.write_daemon_note(DaemonNote(os.getpid(), "http://127.0.0.1:9"))
    assert config(home, "get", "net.port").out == "0\n"


def test_show_is_narrowed_to_a_section_or_a_setting(home: Home) -> None:
    shown = set(rows(config(home, "show", "average"))) - {"NAME"}
    assert shown > {"average.enabled", "average.every", "average.timeout"}
    assert all(name.startswith("average.") for name in shown)
    assert set(rows(config(home, "show", "net.port"))) == {"NAME", "net.port"}
    document = config(home, "show", "log", "--json").document
    assert (document["schema"], document["path"]) == ("meshnode.config/1", str(home.config_toml))
    assert [entry["name"] for entry in document["settings"]] == ["log.level", "log.format"]


@pytest.mark.parametrize(
    ("text", "name", "value", "shown"),
    [
        ("[net]\nport = 7", "net.port", 7, "7"),
        ("[net]\nrefresh = 2", "net.refresh", "2s", "2s"),
        ("[train]\nenabled = false", "train.enabled", False, "false"),
        ("", "mesh.id", None, ""),
        ("", "net.join", [], ""),
        (
            '[net]\nannounce = ["/ip4/203.0.113.7/tcp/1", "/ip4/203.0.113.8/tcp/1"]',
            "net.announce",
            ["/ip4/203.0.113.7/tcp/1", "/ip4/203.0.113.8/tcp/1"],
            "/ip4/203.0.113.7/tcp/1,/ip4/203.0.113.8/tcp/1",
        ),
    ],
)
def test_get_prints_the_bare_value(home: Home, text: str, name: str, value: object, shown: str) -> None:
    home.config_toml.write_text(text)
    assert config(home, "get", name).out == f"{shown}\n"
    document = config(home, "get", name, "--json").document
    assert (document["schema"], document["name"], document["value"]) == ("meshnode.setting/1", name, value)


def test_what_get_prints_of_a_list_can_be_given_back_as_a_variable(home: Home) -> None:
    home.config_toml.write_text('[net]\nannounce = ["/ip4/203.0.113.7/tcp/1", "/ip4/203.0.113.8/tcp/1"]')
    printed = config(home, "get", "net.announce").out.strip()
    home.config_toml.unlink()
    assert config(home, "get", "net.announce", env={"MESHNODE_NET__ANNOUNCE": printed}).out.strip() == printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("get net.prot", "did you mean net.port?"),
        ("get NET.PORT", "did you mean net.port?"),
        ("get port", "did you mean net.port?"),
        ("get net", "net is a section"),
        ("show nett", "did you mean net?"),
        ("show train.step", "did you mean train.steps?"),
        ("show xyzzyplugh", "there is no setting 'xyzzyplugh'"),
    ],
)
def test_asking_for_what_is_not_there_is_a_usage_error_with_the_nearest(home: Home, words: str, said: str) -> None:
    ended = config(home, *words.split(), "--json")
    assert (ended.code, ended.document["error"]["code"]) == (2, "usage")
    assert said in ended.document["error"]["message"]


def test_settings_that_cannot_be_followed_end_every_command_that_reads_them_with_3(home: Home) -> None:
    home.config_toml.write_text("[net]\nprot = 1")
    for words in ("show", "get net.port", "validate"):
        ended = config(home, *words.split(), "--json")
        assert (ended.code, ended.document["error"]["code"]) == (3, "config_invalid")
        assert ended.document["error"]["hint"] == "Did you mean net.port?"


def test_valid_settings_are_called_that(home: Home, tmp_path: Path) -> None:
    absent = config(home, "validate")
    assert (absent.code, absent.out) == (0, "valid\n")
    assert "does not exist, so the defaults hold" in absent.err
    home.config_toml.write_text("[net]\nport = 1")
    assert (config(home, "validate").out, config(home, "validate").err) == ("valid\n", "")
    document = config(home, "validate", "--json").document
    assert document == {
        "schema": "meshnode.config-check/1",
        "path": str(home.config_toml),
        "valid": True,
        "problems": [],
    }


def test_all_problems_are_told_at_once_each_with_its_place_and_what_was_meant(home: Home) -> None:
    home.config_toml.write_text(
        '[net]\nprot = 1\n[average]\nevery = "5s"\nevry = 1\n[trian]\nalpha = 2\n[log]\nlevel = 1'
    )
    env = {"MESHNODE_SERVE__QUEUE": "0", "MESHNODE_NODE__NAM": "owl"}
    ended = config(home, "validate", env=env)
    assert ended.code == 3
    assert "7 problems" in ended.err
    path = str(home.config_toml)
    assert rows(ended) == {
        "SETTING": ["PROBLEM", "WRITTEN IN", "DID YOU MEAN"],
        "net.prot": ["no such setting", path, "net.port"],
        "average": ["timeout must be shorter than every", path, "-"],
        "average.evry": ["no such setting", path, "average.every"],
        "trian": ["no such section", path, "train"],
        "log.level": ["must be 'debug', 'info', 'warning' or 'error'", path, "-"],
        "serve.queue": ["must be at least 1", "MESHNODE_SERVE__QUEUE", "-"],
        "node.nam": ["no such setting", "MESHNODE_NODE__NAM", "node.name"],
    }
    document = config(home, "validate", "--json", env=env).document
    assert document["valid"] is False
    assert len(document["problems"]) == 7
    assert {"setting": "net.prot", "reason": "no such setting", "where": path, "did_you_mean": "net.port"} in document[
        "problems"
    ]


def test_a_file_that_is_not_toml_is_told_with_the_line(home: Home) -> None:
    home.config_toml.write_text("[net]\nport = = 1")
    ended = config(home, "validate")
    assert ended.code == 3
    assert "line 2" in ended.out


def test_a_named_file_is_checked_alone(home: Home, tmp_path: Path) -> None:
    home.config_toml.write_text("[net]\nprot = 1")
    other = tmp_path / "other.toml"
    other.write_text("[net]\nport = 1")
    assert config(home, "validate", other, env={"MESHNODE_NET__PROT": "1"}).code == 0
    other.write_text("[net]\nport = -1")
    ended = config(home, "validate", other, "--json")
    assert ended.code == 3
    assert [problem["where"] for problem in ended.document["problems"]] == [str(other)]


def test_a_named_file_that_is_not_there_is_an_error(home: Home, tmp_path: Path) -> None:
    ended = config(home, "validate", tmp_path / "none.toml", "--json")
    assert (ended.code, ended.document["error"]["code"]) == (3, "config_invalid")
    assert str(tmp_path / "none.toml") in ended.document["error"]["message"]


def test_the_path_is_told_whether_or_not_there_is_a_file(home: Home) -> None:
    assert config(home, "path").out == f"{home.config_toml}\n"
    assert config(home, "path", "--json").document["exists"] is False
    home.config_toml.touch()
    assert config(home, "path", "--json").document == {
        "schema": "meshnode.config-path/1",
        "path": str(home.config_toml),
        "exists": True,
    }


def test_the_schema_is_printed_as_it_is(home: Home) -> None:
    assert json.loads(config(home, "schema").out) == config_schema()
    document = config(home, "schema", "--json").document
    assert document.pop("schema") == "meshnode.config-schema/1"
    assert document == config_schema()


def test_no_password_is_ever_shown(home: Home) -> None:
    secret = home.path / "broker.password"
    secret.write_text("hunter2\n")
    home.config_toml.write_text(f'[mqtt]\nuser = "ann"\npassword_file = "{secret}"')
    for words in (("show", "--origin"), ("show", "--json"), ("get", "mqtt.password_file")):
        ended = config(home, *words)
        assert str(secret) in ended.out
        assert "hunter2" not in ended.out + ended.err
    home.config_toml.write_text('[mqtt]\nurl = "mqtt://ann:hunter2@broker.example"')
    for words in (("show", "--json"), ("get", "mqtt.url"), ("validate",), ("validate", "--json")):
        ended = config(home, *words, env={"MESHNODE_MQTT__PASSWORD": "hunter2"})
        assert ended.code == 3
        assert "hunter2" not in ended.out + ended.err
        assert "mqtt.password_file" in ended.out + ended.err


def test_nothing_is_written_by_asking(tmp_path: Path) -> None:
    home = Home(tmp_path / "none")
    for words in ("show", "get net.port", "validate", "path", "schema"):
        assert config(home, *words.split()).code == 0
    assert not home.path.exists()


@pytest.mark.parametrize("words", ["show", "get net.port", "validate", "path", "schema"])
def test_nothing_heavy_is_loaded(home: Home, words: str) -> None:
    ended = python(PROGRAM, "--home", home.path, "config", *words.split())
    assert ended.code == 0, ended.err
    assert set(json.loads(ended.err.splitlines()[-1])) & HEAVY == set()
