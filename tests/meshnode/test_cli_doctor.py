"""``meshnode doctor`` as a command: what it prints, how it ends, what it leaves alone."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_fake_node import KEY, FakeNode, served
from cli_process import Ended, python

from meshnode.doctor.examine import examine, run_check
from meshnode.doctor.finding import Finding, Remedy
from meshnode.doctor.subject import Subject
from meshnode.home import DaemonNote, Home
from meshnode.identity import api_key, load_or_create_identity
from meshnode.lock import DaemonLock

HEAVY = {"torch", "hivemind", "structlog", "fastapi", "numpy", "sklearn"}
# The command, kept to this home: other tests' sockets and processes on this machine are not ours to remove.
AT_HOME = """
import json, sys
from pathlib import Path
import meshnode.doctor.examine as examine
import meshnode.doctor.leftovers as leftovers
from meshnode.cli import main
leftovers.SOCKET_FOLDER = Path(sys.argv[2])
del examine.CHECKS["orphans"]
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    load_or_create_identity(home)
    api_key(home)
    return home


@pytest.fixture
def daemon(home: Home) -> Iterator[Home]:
    """The home while this process is its daemon."""
    home.api_key.write_text(KEY + "\n")
    with served(FakeNode()) as running, DaemonLock(home):
        home.write_daemon_note(DaemonNote(os.getpid(), running.url))
        yield home


def doctor(home: Home, *options: str) -> Ended:
    return python(AT_HOME, "--home", home.path, "doctor", *options)


def test_a_home_that_is_well_ends_with_0_and_a_line_a_finding(home: Home) -> None:
    ended = doctor(home)
    assert ended.code == 0
    lines = [line for line in ended.out.splitlines() if not line.startswith(" ")]
    assert [line.split()[1] for line in lines] == [
        "config",
        "files",
        "daemon",
        "leftovers",
        "peers",
        "data",
        "gpu",
        "disk",
    ]
    assert {line.split()[0] for line in lines} <= {"ok", "note"}


def test_a_problem_ends_with_10_and_is_still_the_result(home: Home) -> None:
    home.identity_key.chmod(0o644)
    ended = doctor(home, "--json")
    assert ended.code == 10
    document = ended.document
    assert (document["schema"], document["ok"]) == ("meshnode.doctor/1", False)
    (problem,) = [finding for finding in document["findings"] if finding["outcome"] == "problem"]
    assert problem["check"] == "files"
    assert "0644" in problem["message"]
    assert "--fix" in problem["hint"]
    people = doctor(home)
    assert people.code == 10
    lines = people.out.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("problem")]
    assert lines[number + 1].startswith("   ")


def test_fix_mends_what_it_can_and_says_so(home: Home) -> None:
    home.api_key.chmod(0o666)
    home.write_daemon_note(DaemonNote(2**22 + 1, "http://127.0.0.1:1"))
    ended = doctor(home, "--fix", "--json")
    assert ended.code == 0
    assert ended.document["ok"] is True
    fixed = [finding["check"] for finding in ended.document["findings"] if finding["outcome"] == "fixed"]
    assert fixed == ["files", "daemon"]
    assert home.api_key.stat().st_mode & 0o777 == 0o600
    assert not home.daemon_json.exists()


def test_what_cannot_be_mended_stays_a_problem_under_fix(home: Home) -> None:
    home.identity_key.write_bytes(b"broken")
    ended = doctor(home, "--fix", "--json")
    assert (ended.code, ended.document["ok"]) == (10, False)
    assert home.identity_key.read_bytes() == b"broken"


def test_a_home_that_is_not_there_is_looked_over_and_not_made(tmp_path: Path) -> None:
    for options in ((), ("--fix",)):
        ended = doctor(Home(tmp_path / "none"), *options)
        assert ended.code == 0, ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_running_daemon_is_asked_and_not_disturbed(daemon: Home) -> None:
    ended = doctor(daemon, "--fix", "--json")
    assert ended.code == 10  # the fake's only bootstrap address fails
    findings = {finding["check"]: finding for finding in ended.document["findings"]}
    assert f"process {os.getpid()} runs" in findings["daemon"]["message"]
    assert findings["peers"]["message"] == "/ip4/192.0.2.9/tcp/1: connection refused"
    assert findings["gpu"]["message"] == "the daemon computes on cpu (no GPU was found)"
    assert daemon.read_daemon_note() is not None


def test_a_daemon_is_asked_only_where_one_holds_the_lock(home: Home) -> None:
    def ask() -> dict[str, object]:
        pytest.fail("nobody is there to ask")

    examine(home, ask, fix=False)


def test_bad_settings_are_a_finding_and_no_error(home: Home) -> None:
    home.config_toml.write_text("nonsense")
    ended = doctor(home, "--json")
    assert ended.code == 10
    assert [f["outcome"] for f in ended.document["findings"] if f["check"] == "config"] == ["problem"]


def test_nothing_heavy_is_loaded(home: Home) -> None:
    ended = doctor(home)
    assert ended.code == 0, ended.err
    assert set(json.loads(ended.err.splitlines()[-1])) & HEAVY == set()


def test_what_a_remedy_did_not_mend_is_not_called_fixed(home: Home) -> None:
    def still_there(subject: Subject) -> list[Finding]:
        return [Finding("x", "problem", "broken", "mend it", Remedy("mended", lambda: None))]

    subject = Subject.take_in(home, dict)
    assert [finding.outcome for finding in run_check("x", still_there, subject, fix=True)] == ["problem"]


def test_a_remedy_that_fails_says_why(home: Home) -> None:
    def fails() -> None:
        raise PermissionError(1, "Operation not permitted", "/x")

    def broken(subject: Subject) -> list[Finding]:
        return [Finding("x", "problem", "broken", "mend it", Remedy("mended", fails))]

    (finding,) = run_check("x", broken, Subject.take_in(home, dict), fix=True)
    assert finding.outcome == "problem"
    assert "Operation not permitted" in (finding.hint or "")


def test_a_check_that_the_disk_does_not_allow_is_itself_a_problem(home: Home) -> None:
    def unreadable(subject: Subject) -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/x")

    (finding,) = run_check("x", unreadable, Subject.take_in(home, dict), fix=False)
    assert (finding.check, finding.outcome) == ("x", "problem")
    assert "Permission denied" in finding.message
