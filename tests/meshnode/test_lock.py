"""One daemon per home."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.errors import AlreadyRunning
from meshnode.home import DaemonNote, Home
from meshnode.lock import DaemonLock

HOLDER = """
import sys, time
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
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_daemon_is_told_of_the_first(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):  # asking must not disturb what the holder wrote down
        with pytest.raises(AlreadyRunning) as caught, DaemonLock(Home(tmp_path)):
            pass
        assert caught.value.pid == holder.pid
        assert caught.value.url == "http://127.0.0.1:1"


def test_a_holder_that_is_killed_lets_go_and_its_note_is_not_believed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    home = Home(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert home.read_daemon_note() is not None
    with DaemonLock(home):
        assert home.read_daemon_note() is None
        with pytest.raises(AlreadyRunning) as caught, DaemonLock(Home(tmp_path)):
            pass
        assert (caught.value.pid, caught.value.url) == (os.getpid(), None)


def test_a_good_end_lets_go_and_takes_the_note_back(tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    for _ in range(2):
        with DaemonLock(home):
            home.write_daemon_note(DaemonNote(os.getpid(), "http://127.0.0.1:1"))
        assert home.read_daemon_note() is None


def test_a_child_process_does_not_keep_the_lock_alive(tmp_path: Path) -> None:
    with DaemonLock(Home(tmp_path)):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with DaemonLock(Home(tmp_path)):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_failing_disk_at_the_start_leaves_the_lock_free(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.daemon_json.mkdir()  # cannot be unlinked
    with pytest.raises(OSError, match="daemon"), DaemonLock(home):
        pass
    home.daemon_json.rmdir()
    with DaemonLock(Home(tmp_path)):
        pass


def test_homes_do_not_lock_each_other(tmp_path: Path) -> None:
    with DaemonLock(Home(tmp_path / "a")), DaemonLock(Home(tmp_path / "b")):
        pass
