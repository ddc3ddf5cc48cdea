"""Log lines: one an event, for people or for programs, of every library, and never with a secret."""

import json
from typing import Any

import pytest
from cli_process import Ended, python

# Writes lines of every kind, after configuring the logs as its arguments say.
PROGRAM = """
import logging, sys
from meshnode.logs import configure_logs, get_logger, keep_secret

level, form = sys.argv[1:]
configure_logs(level, form)
keep_secret("hunter2")
log = get_logger("meshnode.test")
log.debug("a detail")
log.info("task learned", task="1", seconds=3.5, classes=("0", "1"))
log.info("expert hosted", expert="0123456789ab" + 52 * "c", cause="new")
log.warning("the broker said hunter2", url="mqtt://hunter2@host")
log.info("a peer speaks", name="\\x1b[31mred\\nnext line")
logging.getLogger("hivemind.dht").info("chatter")
logging.getLogger("hivemind.dht").warning("%s is away, hunter2", "a peer")
logging.getLogger("hivemind.p2p.p2p_daemon").error("dial failed", extra={"caller": "swarm/swarm.go:3"})
try:
    raise ValueError("hunter2")
except ValueError:
    log.exception("a bug")
"""


def run(level: str = "info", form: str = "json") -> Ended:
    ended = python(PROGRAM, level, form)
    assert ended.code == 0, ended.err
    assert ended.out == ""
    return ended


def entries(level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(level).err.splitlines()]


def test_json_lines_carry_their_facts_by_name() -> None:
    learned = next(entry for entry in entries() if entry["event"] == "task learned")
    assert (learned["level"], learned["task"], learned["seconds"]) == ("info", "1", 3.5)
    assert learned["classes"] == ["0", "1"]
    assert learned["timestamp"].endswith("Z")


def test_people_see_digests_shortened_and_programs_whole() -> None:
    assert "expert=0123456789ab " in run(form="text").err
    assert "expert hosted" in {
        entry["event"] for entry in entries() if entry.get("expert") == "0123456789ab" + 52 * "c"
    }


def test_a_digest_in_colour_is_shortened_too() -> None:
    program = "from meshnode.logs import _shorten; print(_shorten(None, '', '\\x1b[35m' + 64 * 'a' + '\\x1b[0m'))"
    assert python(program).out == "\x1b[35m" + 12 * "a" + "\x1b[0m\n"


def test_a_trace_is_a_field_of_its_line() -> None:
    bug = entries()[-1]
    assert (bug["event"], bug["level"]) == ("a bug", "error")
    assert "ValueError" in bug["exception"]
    assert "Traceback" in bug["exception"]


def test_what_is_not_a_terminal_gets_json_unless_text_is_asked_for() -> None:
    assert run(form="auto").err.startswith("{")
    first = run(form="text").err.splitlines()[0]
    assert "task learned" in first
    assert "seconds=3.5" in first
    assert "\x1b" not in first


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", {"a detail", "task learned", "chatter"}),
        ("info", {"task learned"}),
        ("warning", set()),
    ],
)
def test_the_level_holds_for_our_lines_and_libraries_warn_at_least(level: str, shown: set[str]) -> None:
    events = {entry["event"] for entry in entries(level)}
    assert events & {"a detail", "task learned", "chatter"} == shown
    assert "a peer is away, [secret]" in events


def test_lines_of_libraries_name_their_origin() -> None:
    origins = {entry["event"]: entry.get("logger") for entry in entries()}
    assert origins["a peer is away, [secret]"] == "hivemind.dht"
    assert origins["dial failed"] == "p2pd"
    assert origins["task learned"] is None


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_line_holds_a_secret_whoever_wrote_it(form: str) -> None:
    ended = run("debug", form)
    assert "hunter2" not in ended.err
    assert ended.err.count("[secret]") >= 4


SECRETS = ['quo"te', "back\\slash", "pässword", "plain-one"]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked_however_it_is_escaped(form: str, secret: str) -> None:
    program = """
import sys
from meshnode.logs import configure_logs, get_logger, keep_secret
configure_logs("info", sys.argv[1])
keep_secret(sys.argv[2])
log = get_logger("meshnode.test")
log.info("said", plain=sys.argv[2], inside=[f"a {sys.argv[2]} b"], text=f"it's {sys.argv[2]}")
"""
    ended = python(program, form, secret)
    assert ended.code == 0, ended.err
    assert ended.err.count("[secret]") == 3
    assert secret not in ended.err


def test_what_a_trace_holds_cannot_steer_the_terminal() -> None:
    program = """
from meshnode.logs import configure_logs, get_logger
configure_logs("info", "text")
try:
    raise ValueError("\\x1b[2J")
except ValueError:
    get_logger("meshnode.test").exception("a bug")
"""
    ended = python(program)
    assert "ValueError" in ended.err
    assert "\x1b" not in ended.err
    assert len(ended.err.splitlines()) > 3


def test_what_a_peer_says_cannot_steer_the_terminal() -> None:
    ended = run(form="text")
    assert "\x1b" not in ended.err
    (line,) = [line for line in ended.err.splitlines() if "a peer speaks" in line]
    assert "red" in line
    assert "next line" in line
