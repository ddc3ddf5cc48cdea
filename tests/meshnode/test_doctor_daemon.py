"""Who holds a home, asked without disturbing it, and what a daemon that was killed has left."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor_subject import about, outcomes

from meshnode.cli.client import ApiFailure
from meshnode.doctor.daemon import START_S, check_daemon
from meshnode.doctor.holder import Holder, find_holder, keeping_daemons_out
from meshnode.doctor.subject import Subject
from meshnode.errors import AlreadyRunning, DaemonNotRunning, Refused, Timeout
from meshnode.home import DaemonNote, Home
from meshnode.lock import DaemonLock

NOTE = DaemonNote(1, "http://127.0.0.1:1")
HOLDER = """
import sys
from pathlib import Path
from meshnode.home import DaemonNote, Home
from meshnode.lock import DaemonLock
home = Home(Path(sys.argv[1]))
with DaemonLock(home):
    home.write_daemon_note(DaemonNote(1, "http://127.0.0.1:1"))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def daemon(home: Home) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_holder_is_found_and_not_disturbed(home: Home, daemon: subprocess.Popen[str]) -> None:
    assert find_holder(home) == Holder(daemon.pid)
    with pytest.raises(AlreadyRunning) as caught, keeping_daemons_out(home):
        pytest.fail("the lock was taken twice")
    assert caught.value.pid == daemon.pid
    assert home.read_daemon_note() == NOTE
    assert home.lock.read_text() == f"{daemon.pid}\n"


def test_a_lock_file_alone_is_no_holder(home: Home) -> None:
    assert find_holder(home) is None
    assert not home.lock.exists()  # asking makes none
    home.lock.write_text(f"{os.getpid()}\n")
    assert find_holder(home) is None
    assert [outcome for outcome, _ in outcomes(check_daemon, about(home))] == ["ok"]


def test_no_daemon_starts_while_they_are_kept_out(home: Home) -> None:
    with keeping_daemons_out(home), pytest.raises(AlreadyRunning), DaemonLock(home):
        pytest.fail("a daemon started")
    with keeping_daemons_out(home), pytest.raises(AlreadyRunning), keeping_daemons_out(home):
        pytest.fail("two mend at once")
    with DaemonLock(home):
        assert find_holder(home) == Holder(os.getpid())


def test_the_note_of_a_killed_daemon_is_told_and_with_fix_removed(home: Home, daemon: subprocess.Popen[str]) -> None:
    daemon.kill()
    daemon.wait()
    ((outcome, message),) = outcomes(check_daemon, about(home))
    assert outcome == "note"
    assert "process 1, which was killed" in message
    assert home.read_daemon_note() == NOTE
    assert [outcome for outcome, _ in outcomes(check_daemon, about(home), fix=True)] == ["fixed", "ok"]
    assert not home.daemon_json.exists()


def test_a_note_is_left_where_a_daemon_has_started_meanwhile(home: Home, daemon: subprocess.Popen[str]) -> None:
    before = about(home)  # as if taken in when nothing ran yet
    ((outcome, _),) = outcomes(check_daemon, before, fix=True)
    assert outcome == "note"
    assert home.read_daemon_note() == NOTE


def silent(home: Home, pid: int | None, silence: Timeout | DaemonNotRunning | ApiFailure | Refused) -> Subject:
    return about(home, holder=Holder(pid), silence=silence)


def test_a_daemon_that_answers_is_well(home: Home) -> None:
    subject = about(home, holder=Holder(7), status={"state": "ready", "url": "http://127.0.0.1:9"})
    assert outcomes(check_daemon, subject) == [("ok", "process 7 runs (ready) and answers at http://127.0.0.1:9")]


def test_a_daemon_that_hangs_is_a_problem_with_its_number(home: Home) -> None:
    (finding,) = check_daemon(silent(home, 7, Timeout("the answer", 5.0)))
    assert finding.outcome == "problem"
    assert "silent for 5 s" in finding.message
    assert "kill 7" in (finding.hint or "")
    assert finding.remedy is None


def test_a_daemon_that_starts_is_given_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = silent(home, os.getpid(), DaemonNotRunning(home.path))
    now_s = time.time()
    monkeypatch.setattr("psutil.Process.create_time", lambda self: now_s - START_S / 2)
    assert [finding.outcome for finding in check_daemon(starting)] == ["note"]
    monkeypatch.setattr("psutil.Process.create_time", lambda self: now_s - 2 * START_S)
    assert [finding.outcome for finding in check_daemon(starting)] == ["problem"]


def test_a_holder_at_whose_url_nobody_answers_is_a_problem(home: Home) -> None:
    failure = ApiFailure("daemon_not_running", "no meshnode daemon answers at http://127.0.0.1:1", hint=None)
    (finding,) = check_daemon(silent(home, None, failure))
    assert finding.outcome == "problem"
    assert "http://127.0.0.1:1" in finding.message


def test_a_refused_key_is_a_problem_with_the_daemons_own_hint(home: Home) -> None:
    (finding,) = check_daemon(silent(home, 7, Refused("the key is wrong", hint="Use the right one.")))
    assert (finding.outcome, finding.hint) == ("problem", "Use the right one.")
