"""The processes that a benchmark is made of: started, told what to do over their pipes, and ended.

Every child carries the mark of `bench_node` in its environment, so that whatever it has started can be found and ended
even where it dies itself; and it ends by itself when its pipe does.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bench_node import MARK, RUN, BenchFailed

__all__ = ["Child", "Children", "together"]

ROLES: Mapping[str, Sequence[str]] = {
    "loop": ("bench_serving_child.py",),
    "moe-server": ("bench_serving_moe.py", "server"),
    "moe-client": ("bench_serving_moe.py", "client"),
    "averagers": ("bench_averaging_rivals.py",),
    "averaging-peer": ("bench_averaging_child.py",),
    "faults": ("bench_averaging_faults.py",),
}
"""Script and arguments of each kind of child."""

FOLDER = Path(__file__).parent

START_S = 60.0
"""Importing torch and hivemind takes 2 s of an idle core; a dozen children at once on a busy machine take a while."""

ANSWER_S = 120.0
"""The longest order takes a minute."""

END_S = 6.0


class Child:
    """One child process; made by `Children`.

    Args:
        name: For people.
        role: One of `ROLES`.
        folder: Where its stderr goes.
    """

    def __init__(self, name: str, role: str, folder: Path) -> None:
        script, *arguments = ROLES[role]
        self.name = name
        self._log = folder / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MESHNODE_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(FOLDER / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean | {"OMP_NUM_THREADS": "1", MARK: RUN},
                start_new_session=True,  # a Ctrl+C is for the script, which then ends this
            )
        self._is_starting = True
        """Whether it has not yet said that it is ready."""
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"answers of {name}", daemon=True).start()

    def send(self, command: str, **arguments: Any) -> None:
        """Order something; `answer` waits for what comes of it. A child does one thing at a time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise BenchFailed(self._words(f"has ended before it was told to {command}")) from exc

    def answer(self, within_s: float = ANSWER_S) -> Any:
        """The outcome of the oldest order that has not been answered.

        Raises:
            BenchFailed: It failed, or took too long.
        """
        if self._is_starting:
            self._is_starting = False
            self.answer(START_S)
        try:
            line = self._answers.get(timeout=within_s)
        except queue.Empty:
            raise BenchFailed(self._words(f"has not answered within {within_s:g} s")) from None
        if not line:
            raise BenchFailed(self._words("has ended"))
        outcome = json.loads(line)
        if "failure" in outcome:
            raise BenchFailed(self._words(f"could not do it: {outcome['failure']}"))
        return outcome["result"]

    def call(self, command: str, within_s: float = ANSWER_S, **arguments: Any) -> Any:
        """`send`, then `answer`."""
        self.send(command, **arguments)
        return self.answer(within_s)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def kill_all(self) -> None:
        """SIGKILL, to it and to all that it has forked."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def hang_up(self) -> None:
        """Close its pipe, at which it ends in good order."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def wait_ended(self, within_s: float) -> None:
        """Until it has; what takes longer is killed."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _words(self, what: str) -> str:
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        return "\n  ".join([f"the process {self.name} {what}; its last words:", *words])


class Children:
    """All children of a run, ended together.

    Args:
        folder: Exists; their logs go there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(*self._children)

    def get(self, *names: str, role: str = "loop") -> tuple[Child, ...]:
        """The children of these names; those that are asked for the first time are starting when this returns."""
        for name in names:
            if name not in self._children:
                self._children[name] = Child(name, role, self._folder)
        return tuple(self._children[name] for name in names)

    def again(self, name: str, *, role: str) -> Child:
        """This child anew; the old one is killed."""
        self.kill(name)
        return self.get(name, role=role)[0]

    def empty(self, *names: str) -> None:
        """Have these close all that they have opened; those that were killed are forgotten."""
        for name in names:
            if self._children[name].is_running:
                self._children[name].send("empty")
            else:
                del self._children[name]
        for name in names:
            if name in self._children:
                self._children[name].answer()

    def kill(self, *names: str) -> None:
        """SIGKILL, to those of these names that there are and to all that they have forked."""
        for name in names:
            if name in self._children:
                self._children.pop(name).kill_all()

    def end(self, *names: str) -> None:
        """End those of these names that there are."""
        ending = [self._children.pop(name) for name in names if name in self._children]
        for child in ending:
            child.hang_up()
        until_s = time.monotonic() + END_S
        for child in ending:
            child.wait_ended(max(0.1, until_s - time.monotonic()))


def together(orders: Iterable[tuple[Child, str, Mapping[str, Any]]], within_s: float = ANSWER_S) -> list[Any]:
    """Orders to several children at the same time; their outcomes in the same order, each awaited for so long."""
    given = list(orders)
    for child, command, arguments in given:
        child.send(command, **arguments)
    return [child.answer(within_s) for child, _, _ in given]
