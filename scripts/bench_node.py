"""A node to be measured: the real `meshnode run` as a process, found again with all it started, and ended with it."""

import itertools
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from meshnode.cli.client import ApiClient
from meshnode.home import Home

__all__ = ["BenchFailed", "Node", "POLL_S", "end_everything", "kind_of", "run_python"]

MARK, RUN = "MODULEMESH_BENCH_RUN", uuid.uuid4().hex
"""In the environment of everything started here and of all that those start in turn; what is left is found by it."""

START_S = 60.0
"""A start takes 3 s; on a busy machine a multiple of it. After this it counts as failed."""

STOP_S = 15.0

READY_POLL_S = 0.005
"""How finely a start is timed."""

POLL_S = 0.02

QUIET_S = 0.5
"""Nothing may be seen for so long before all is gone: for an instant of its start a process has no environment."""


class BenchFailed(Exception):
    """Something could not be measured."""


class Node:
    """A daemon on a home; it runs inside the ``with`` block, and nothing of it is left behind.

    Args:
        home: Where it lives.
        data: Its folder of task files; None: it has nothing to learn from.
    """

    _numbers = itertools.count()

    def __init__(self, home: Home, data: Path | None = None) -> None:
        self._home = home
        self._data = data
        self._mark = f"{RUN}-{next(self._numbers)}."
        self._log = home.path.with_suffix(".log")
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "meshnode", "--home", str(self._home.path), "run", "--name", "bench"]
        command += ["--data", str(self._data)] if self._data else []
        with self._log.open("ab") as log:
            self._began_s = time.perf_counter()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(self._mark),
                start_new_session=True,  # a Ctrl+C is for the script, which then ends this in good order
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        left, _ = self.outlived(QUIET_S)
        _end(left)

    @property
    def age_s(self) -> float:
        """Seconds since its process was started."""
        return time.perf_counter() - self._began_s

    @property
    def is_ready(self) -> bool:
        """Whether it has written down where its API is; the note that a killed daemon left is another's."""
        note = self._home.read_daemon_note()
        return note is not None and note.pid == self._process.pid

    def api(self) -> ApiClient:
        """The way to it once it is ready."""
        return ApiClient.of_home(self._home)

    def wait_ready(self) -> float:
        """Wait until it is ready; returns the seconds since its process was started.

        Raises:
            BenchFailed: It ends or takes too long, with its last words.
        """
        while not self.is_ready:
            self.require_running("ready")
            time.sleep(READY_POLL_S)
        return self.age_s

    def wait_until(self, what: str, check: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until its status passes `check`. Raises as `wait_ready` does."""
        self.wait_ready()
        while not check(self.api().get("status")):
            self.require_running(what)
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """The daemon's process and all below it."""
        daemon = psutil.Process(self._process.pid)
        return [daemon, *daemon.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far, those included that have ended."""
        seconds = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    def look(self) -> None:
        """Remember its processes: one that drops its environment would not be found again by the mark."""
        with suppress(psutil.NoSuchProcess):
            self._seen |= set(self.processes())

    def kill(self) -> None:
        """SIGKILL, to the daemon alone."""
        self._process.kill()
        self._process.wait()

    def outlived(self, within_s: float) -> tuple[set[psutil.Process], float]:
        """Wait until nothing of it lives; returns what still does after `within_s`, and after how long the rest ended.

        A zombie does not live.
        """
        began_s = last_seen_s = time.perf_counter()
        while True:
            alive = {process for process in self._seen | _marked(self._mark) if _lives(process)}
            now_s = time.perf_counter()
            last_seen_s = now_s if alive else last_seen_s
            if now_s - began_s >= within_s or now_s - last_seen_s >= QUIET_S:
                return alive, last_seen_s - began_s
            time.sleep(POLL_S)

    def require_running(self, what: str) -> None:
        """Raise BenchFailed, with the node's last words, if it has ended or takes too long to be `what`."""
        ended = self._process.poll() is not None
        if not ended and self.age_s < START_S:
            return
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        how = f"ended before it was {what}" if ended else f"was not {what} within {START_S:g} s"
        raise BenchFailed("\n  ".join([f"a node {how}; its last words:", *words]))


def kind_of(process: psutil.Process) -> str:
    """``daemon``, ``trainer``, ``p2pd`` or ``other``."""
    kinds = {"p2pd": "p2pd", "-m meshnode.trainer": "trainer", " run --name bench": "daemon"}
    with suppress(psutil.Error):
        line = " ".join(process.cmdline())
        return next((kind for words, kind in kinds.items() if words in line), "other")
    return "other"


def run_python(*arguments: object) -> float:
    """Run a Python command to its end; returns the seconds that it took.

    Raises:
        BenchFailed: It fails, with its last words, or takes too long.
    """
    command = [sys.executable, *map(str, arguments)]
    began_s = time.perf_counter()
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=START_S,
            env=_environment(RUN),
            start_new_session=True,
        )
    except subprocess.CalledProcessError as failure:
        raise BenchFailed(f"{' '.join(command[1:])} failed: {failure.stderr.strip()[-500:]}") from failure
    except subprocess.TimeoutExpired as silence:
        raise BenchFailed(f"{' '.join(command[1:])} took longer than {START_S:g} s") from silence
    return time.perf_counter() - began_s


def end_everything() -> None:
    """Kill whatever of this run still lives; nothing does, unless it was interrupted at a bad moment."""
    _end(_marked(RUN))


def _environment(mark: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    return clean | {"OMP_NUM_THREADS": "1", MARK: mark}


def _marked(mark: str) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(mark):
                found.add(process)
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
