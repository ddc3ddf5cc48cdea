"""Processes that outlived their daemon are found and ended; those of a daemon that lives are not touched."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from doctor_subject import about

from meshnode.doctor import orphans
from meshnode.doctor.finding import Finding
from meshnode.doctor.orphans import check_orphans
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.lock import DaemonLock

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
DAEMON = """
import asyncio, sys
from pathlib import Path
from meshnode.home import Home
from meshnode.lock import DaemonLock
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
home = Home(Path(sys.argv[1]))
async def main():
    with DaemonLock(home):
        await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key))
        print("up", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@contextmanager
def running(*line: str, executable: str = sys.executable, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process with this command line that has said it is up."""
    process = subprocess.Popen(line, executable=executable, cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def p2pd(identity: object, program: str = SLEEP) -> list[str]:
    return ["/somewhere/p2pd", "-c", program, "-tls=1", f"-id={identity}"]


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[[int], list[str]]:
    """The command line of a trainer of some daemon, with a stand-in for the worker's module."""
    module = tmp_path / "code" / "meshnode" / "trainer" / "worker.py"
    module.parent.mkdir(parents=True)
    module.write_text(SLEEP)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    return lambda parent_pid: [sys.executable, "-m", "meshnode.trainer.worker", str(parent_pid)]


def about_process(home: Home, pid: int) -> list[Finding]:
    """What is found of one process; this machine may have orphans of its own."""
    return [finding for finding in check_orphans(about(home)) if f"process {pid}," in finding.message]


def mend(finding: Finding) -> None:
    assert finding.remedy is not None
    finding.remedy.apply()


def test_a_p2pd_with_this_homes_identity_and_no_daemon_is_an_orphan(home: Home) -> None:
    with running(*p2pd(home.identity_key)) as process:
        (finding,) = about_process(home, process.pid)
        assert finding.outcome == "problem"
        assert process.poll() is None  # looking ends nothing
        mend(finding)
        assert process.wait(0) == -signal.SIGTERM
        assert about_process(home, process.pid) == []


def test_a_p2pd_whose_daemon_holds_the_lock_is_left_alone(home: Home) -> None:
    with running(*p2pd(home.identity_key)) as process, DaemonLock(home):
        assert about_process(home, process.pid) == []


def test_a_p2pd_is_left_alone_while_the_holder_of_the_lock_is_unknown(home: Home) -> None:
    with running(*p2pd(home.identity_key)) as process, DaemonLock(home):
        home.lock.write_text("")
        assert about_process(home, process.pid) == []


def test_a_p2pd_of_another_home_is_none_of_ours(home: Home, tmp_path: Path) -> None:
    with running(*p2pd(tmp_path / "other" / "identity.key")) as process:
        assert about_process(home, process.pid) == []


def test_a_path_is_taken_from_where_the_daemon_was_started(home: Home, tmp_path: Path) -> None:
    with running(*p2pd("home/identity.key"), cwd=tmp_path) as process:
        assert len(about_process(home, process.pid)) == 1
    with running(*p2pd("home/identity.key"), cwd=home.path) as process:
        assert about_process(home, process.pid) == []


def test_another_program_with_such_an_option_is_no_p2pd(home: Home) -> None:
    with running("/bin/ssh", *p2pd(home.identity_key)[1:]) as process:
        assert about_process(home, process.pid) == []


def test_one_that_does_not_end_is_killed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "END_S", 0.2)
    with running(*p2pd(home.identity_key, STUBBORN)) as process:
        (finding,) = about_process(home, process.pid)
        mend(finding)
        assert process.wait(1) == -signal.SIGKILL


def test_one_that_has_ended_is_neither_found_nor_signalled(home: Home) -> None:
    with running(*p2pd(home.identity_key)) as process:
        (finding,) = about_process(home, process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        assert about_process(home, process.pid) == []
        process.wait()
        mend(finding)  # its number may be another process's by now


def test_processes_of_another_container_are_not_judged(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(path: str) -> str:
        return "pid:[1]" if path == "/proc/self/ns/pid" else "pid:[2]"

    with running(*p2pd(home.identity_key)) as process:
        monkeypatch.setattr(orphans.os, "readlink", elsewhere)
        assert about_process(home, process.pid) == []


def test_a_trainer_is_an_orphan_once_its_daemon_is_not_its_parent(
    home: Home, tmp_path: Path, trainer: Callable[[int], list[str]]
) -> None:
    with running(*trainer(os.getpid()), cwd=tmp_path / "code") as process:
        assert about_process(home, process.pid) == []
    with running(*trainer(2**22 + 1), cwd=tmp_path / "code") as process:
        (finding,) = about_process(home, process.pid)
        assert f"process {2**22 + 1})" in finding.message
        mend(finding)
        assert process.wait(0) == -signal.SIGTERM


@pytest.mark.integration
def test_a_real_p2pd_that_survives_its_daemon_is_found_and_ended(home: Home) -> None:
    load_or_create_identity(home)
    with running(sys.executable, "-c", DAEMON, str(home.path)) as daemon:
        (child,) = psutil.Process(daemon.pid).children()
        assert about_process(home, child.pid) == []
        child.suspend()  # else it would end with its daemon, as it should
        daemon.kill()
        daemon.wait()
        try:
            (finding,) = about_process(home, child.pid)
            mend(finding)
            assert not orphans._lives(child)
        finally:
            if child.is_running():
                child.kill()
    deadline = time.monotonic() + 5
    while about_process(home, child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert about_process(home, child.pid) == []
