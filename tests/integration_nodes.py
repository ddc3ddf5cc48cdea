"""Real daemons for the integration tests: each ``meshnode run`` a process of its own on loopback, with its own home.

Every process that a test starts, and every process that those start in turn (p2pd, the trainer), carries a mark in its
environment. By it the tests find what is left over, and end it by its pid, whatever else runs on the machine.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import numpy as np
import psutil

from experts.data.dataset import ImageDataset
from experts.data.named import load_named
from experts.data.npz import save_task
from meshnode.founding import Founding, found_mesh
from meshnode.home import Home
from meshnode.identity import api_key

__all__ = [
    "Daemon",
    "Daemons",
    "FAST",
    "RUN_MARK",
    "complaints",
    "digits_test",
    "end_process",
    "eventually",
    "found",
    "is_running",
    "marked_processes",
    "save_shard",
    "shards",
]

T = TypeVar("T")

RUN_MARK = ("MODULEMESH_TEST_RUN", uuid.uuid4().hex)
"""In the environment of this process from the import on, and so of everything it starts."""
os.environ[RUN_MARK[0]] = RUN_MARK[1]

FAST: Mapping[str, str] = {
    "MESHNODE_NET__REFRESH": "500ms",
    "MESHNODE_NET__CALL_TIMEOUT": "3s",
    "MESHNODE_AVERAGE__EVERY": "1s",
    "MESHNODE_AVERAGE__TIMEOUT": "900ms",
    "MESHNODE_TRAIN__STEPS": "60",
    "MESHNODE_TRAIN__ROUND_STEPS": "30",
    "MESHNODE_TRAIN__CHECKPOINT_EVERY": "1ms",
    "MESHNODE_TRAIN__TEACHER_EPOCHS": "1",
    # Every shard is learned, whether there is anything to gain by it or not: what is looked at here comes after that.
    "MESHNODE_TRAIN__MIN_GAIN": "-1",
    "MESHNODE_PLACE__ENABLED": "false",
    "MESHNODE_PLACE__HANDOVER": "0s",
    "MESHNODE_COMPUTE__DEVICE": "cpu",
    "MESHNODE_COMPUTE__THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Settings with which seconds do for what takes a mesh minutes; who holds what is the test's own choice."""

PIXELS = 8
"""The digits' own size."""

START_S = 40.0
"""Importing torch and hivemind takes 3 s on an idle core; several daemons at once on a busy one take a while."""

END_S = 10.0


def eventually(check: Callable[[], T], *, within_s: float, what: str) -> T:
    """The first truthy result of `check`, asked again and again; AssertionError after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(0.1)
    return result


# --- processes ---


def marked_processes() -> dict[psutil.Process, str]:
    """The p2pd, trainers and daemons that this test run has started and that live, with their command lines."""
    found: dict[psutil.Process, str] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(RUN_MARK[0]) == RUN_MARK[1]:
                line = " ".join(process.cmdline())
                if "p2pd" in line or "meshnode" in line:
                    found[process] = line
    return found


def end_process(process: psutil.Process) -> None:
    """SIGKILL, which ends a stopped process too, and wait until it is gone."""
    with suppress(psutil.Error):
        process.kill()
        process.wait(END_S)


def is_running(process: psutil.Process) -> bool:
    """Whether it lives; a zombie does not, nor does another process that has got its pid."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- data ---


def shards(number: int) -> tuple[ImageDataset, ...]:
    """The digits' training part, dealt out."""
    return load_named("digits")[0].shard(number, seed=0)


def digits_test(classes: Sequence[str], number: int) -> ImageDataset:
    """The first `number` test images of these classes."""
    return load_named("digits")[1].of_classes(classes).select(range(number))


def save_shard(folder: Path, task: str, shard: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """Put a task file into a node's data folder; returns what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = shard.of_classes(classes)
    save_task(folder / f"{task}.npz", chosen)
    return chosen


def found(home: Home, data: Path) -> str:
    """Found a mesh in this home; its id."""
    return str(found_mesh(home, Founding(name="digits", data=data, pixels=PIXELS)))


# --- daemons ---


@dataclass
class Daemon:
    """One node: its home, and its process while it runs."""

    home: Home
    name: str
    data: Path | None = None
    join: Sequence[str] = ()
    options: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _children: set[psutil.Process] = field(default_factory=set)

    @property
    def stderr_path(self) -> Path:
        return self.home.path.parent / f"{self.home.path.name}.stderr"

    @property
    def stderr(self) -> str:
        """All that this node has written so far, over all its starts."""
        return self.stderr_path.read_text() if self.stderr_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def launch(self) -> Self:
        """Start the process; `wait_ready` waits for it."""
        command = [sys.executable, "-m", "meshnode", "--home", str(self.home.path), "run", "--name", self.name]
        command += [word for address in self.join for word in ("--join", address)]
        command += ["--data", str(self.data)] if self.data else []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
        self.stderr_path.parent.mkdir(parents=True, exist_ok=True)
        with self.stderr_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=clean | FAST | self.env,
            )
        return self

    def wait_ready(self) -> Self:
        """Until it belongs to a mesh."""
        return self.wait_for(lambda daemon: daemon.status()["state"] == "ready", "ready", within_s=START_S)

    def wait_for(self, check: "Callable[[Daemon], object]", what: str, *, within_s: float = 30.0) -> Self:
        """Until `check` of this daemon holds; its stderr is in the error when it does not."""
        deadline_s = time.monotonic() + within_s
        while True:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} has ended: {self.stderr}"
            with suppress(httpx.TransportError, FileNotFoundError):
                if self.home.read_daemon_note() is not None and check(self):
                    return self
            assert time.monotonic() < deadline_s, f"{self.name}: not within {within_s} s: {what}\n{self.stderr}"
            time.sleep(0.1)

    # --- its API ---

    def metrics(self) -> str:
        """What a scraper reads."""
        return self._ask("GET", "metrics").text

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        return self._call("POST", path, json=body)

    def status(self) -> dict[str, Any]:
        return self.get("status")

    def experts(self) -> list[dict[str, Any]]:
        return list(self.get("experts")["experts"])

    def infer(self, images: np.ndarray, *, top_k: int | None = None) -> dict[str, Any]:
        body: dict[str, Any] = {"images": images.tolist()}
        return self._call("POST", "infer", json=body if top_k is None else body | {"top_k": top_k})

    def _call(self, verb: str, path: str, **request: Any) -> dict[str, Any]:
        document = self._ask(verb, f"api/v1/{path}", **request).json()
        assert isinstance(document, dict)
        return document

    def _ask(self, verb: str, path: str, **request: Any) -> httpx.Response:
        note = self.home.read_daemon_note()
        if note is None:
            raise FileNotFoundError(self.home.daemon_json)
        headers = {"authorization": f"Bearer {api_key(self.home)}"}
        with httpx.Client(trust_env=False, timeout=20.0) as client:
            response = client.request(verb, f"{note.url}/{path}", headers=headers, **request)
        assert response.is_success, response.text
        return response

    @property
    def address(self) -> str:
        return str(self.status()["addresses"][0])

    @property
    def peer_id(self) -> str:
        return str(self.status()["peer_id"])

    # --- its processes ---

    def children(self) -> dict[str, psutil.Process]:
        """Its p2pd and, while there is one, its trainer."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.pid).children():
            line = " ".join(child.cmdline())
            found |= {kind: child for kind in ("p2pd", "trainer") if kind in line}
        self._children |= set(found.values())
        return found

    def terminate(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(2 * END_S)

    def kill(self) -> dict[str, psutil.Process]:
        """SIGKILL; returns the children it had, which are to end by themselves."""
        children = self.children()
        assert self.process is not None
        self.process.kill()
        self.process.wait(END_S)
        return children

    def end(self) -> None:
        """Make sure that nothing of it is left; what a test does when it is done or has failed."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with suppress(psutil.Error):
                self.children()
            for process in (psutil.Process(self.pid), *self._children):
                with suppress(psutil.Error):
                    process.resume()
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(END_S)
        _, alive = psutil.wait_procs(self._children, timeout=END_S / 2)
        for process in alive:
            end_process(process)


class Daemons:
    """Makes the daemons of a test in one folder and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Daemon] = []

    @classmethod
    @contextmanager
    def within(cls, folder: Path) -> "Iterator[Daemons]":
        daemons = cls(folder)
        try:
            yield daemons
        finally:
            for daemon in reversed(daemons._all):
                daemon.end()

    def make(self, name: str, **settings: Any) -> Daemon:
        """A node with a home of its own, not started."""
        daemon = Daemon(home=Home(self.folder / name), name=name, **settings)
        self._all.append(daemon)
        return daemon


def complaints(stderr: str) -> list[str]:
    """The lines of a daemon's stderr that are not log lines below WARNING."""
    return [line for line in stderr.splitlines() if line.strip() and not _is_talk(line)]


def _is_talk(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.get("level") in {"debug", "info"} and "event" in entry
