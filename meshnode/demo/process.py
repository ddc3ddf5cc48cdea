"""One node of the demo: a daemon in a process of its own, spoken to through its API as any program would."""

import asyncio
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from meshnode.errors import NodeError, Timeout
from meshnode.home import Home

__all__ = ["DemoFailed", "DemoNode", "until"]

START_S = 60.0
STOP_S = 10.0
POLL_S = 0.1

PACE = {
    "MESHNODE_NET__REFRESH": "500ms",
    "MESHNODE_NET__RECORD_TTL": "20s",
    "MESHNODE_AVERAGE__EVERY": "2s",
    "MESHNODE_AVERAGE__TIMEOUT": "1500ms",
    "MESHNODE_TRAIN__ROUND_STEPS": "250",
    "MESHNODE_PLACE__ENABLED": "false",
    "MESHNODE_PLACE__HANDOVER": "0s",
}
"""A demo is watched: everything that a real mesh does every few seconds happens several times as often. Who holds what
is part of its story, and who is killed has to find it as it was."""


class DemoFailed(NodeError):
    """The demo did not show what it is there to show."""

    code = "demo_failed"


class DemoNode:
    """A node's home folder and, while it runs, its process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.home = Home(folder / name)
        self.data = folder / name / "data"
        self.port = _free_port()
        self._past_sent: Counter[str] = Counter()
        self._process: asyncio.subprocess.Process | None = None
        self._log_path = folder / f"{name}.log"
        self._client: httpx.AsyncClient | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, join: list[str]) -> None:
        """Start the daemon; returns at once."""
        self.data.mkdir(parents=True, exist_ok=True)
        options = ["--name", self.name, "--port", str(self.port), "--data", str(self.data)]
        for address in join:
            options += ["--join", address]
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "meshnode", "--home", str(self.home.path), "run", *options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **PACE},
            )

    async def ready(self) -> None:
        """Wait until the daemon answers."""

        async def answers() -> bool:
            assert self._process is not None
            if self._process.returncode is not None:
                raise DemoFailed(f"node {self.name} ended while starting", hint=f"Its log: {self._log_path}")
            note = self.home.read_daemon_note()
            if note is None or note.pid != self._process.pid:
                return False
            key = self.home.api_key.read_text().strip()
            self._client = httpx.AsyncClient(
                base_url=f"{note.url}/api/v1", headers={"Authorization": f"Bearer {key}"}, timeout=30.0
            )
            return True

        await until(answers, what=f"node {self.name} to start", timeout_s=START_S)

    async def get(self, path: str, **params: str) -> Any:
        """One document of the node's API."""
        assert self._client is not None
        answer = await self._client.get(path, params=params)
        answer.raise_for_status()
        return answer.json()

    async def post(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """Ask the node to do something."""
        assert self._client is not None
        answer = await self._client.post(path, json=content or {})
        answer.raise_for_status()
        return answer.json()

    async def sent(self) -> Counter[str]:
        """Bytes this node has sent to peers by kind, over all its processes."""
        status = await self.get("/status")
        return self._past_sent + Counter(status["traffic"]["sent"])

    async def kill(self) -> None:
        """SIGKILL: no goodbye, nothing saved."""
        self._past_sent = await self.sent()
        assert self._process is not None
        self._process.kill()
        await self._forget()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that takes too long; nothing to do if it does not run."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except TimeoutError:
                self._process.kill()
        await self._forget()

    async def _forget(self) -> None:
        assert self._process is not None
        await self._process.wait()
        self._process = None
        if self._client is not None:
            await self._client.aclose()
            self._client = None


async def until(condition: Callable[[], Awaitable[bool]], *, what: str, timeout_s: float) -> None:
    """Wait until the async `condition` holds.

    Raises:
        Timeout: It did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            raise Timeout(f"waiting for {what}", timeout_s)
        await asyncio.sleep(POLL_S)


def _free_port() -> int:
    """A port free at this moment. Fixed for the node's life, so that peers find it again after a restart."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
