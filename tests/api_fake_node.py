"""A node that answers from memory, served by the real API on loopback from a thread of its own."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from meshnode.api import ApiServer
from meshnode.forget_order import ForgetRequest
from meshnode.home import DaemonNote, Home
from meshnode.migration_order import MigrationRequest

__all__ = ["EXPERT", "HTTP", "KEY", "PEER_ID", "FakeNode", "Served", "served", "serving_home"]

KEY = "k3y-of-the-node-under-test"
PEER_ID = "QmFakeNodeUnderTest111111111111111111111111111"
EXPERT = "ab" * 32
HTTP = httpx.Client(trust_env=False, timeout=20)
"""One for all calls of a test run: making a client takes longer than any call."""


@dataclass
class FakeNode:
    """Says what it was told to and remembers what it was asked."""

    failure: Exception | None = None
    """Raised by every call that is not a plain read, and by ``status``."""
    is_ready: bool = True
    peer_name: str = "calm-fox"
    asked: list[tuple[NDArray[np.uint8], int | None, str | None, float | None]] = field(default_factory=list)
    shutdowns: int = 0
    answer_after_s: float = 0.0
    last_loss: float = 0.25
    measured: dict[str, Any] | None = None
    pull_steps: list[dict[str, Any]] = field(default_factory=list)
    """How a pull stands each time somebody looks; the last one stays."""
    pulled: list[tuple[str, str | None]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    imported: list[tuple[bytes, bool]] = field(default_factory=list)
    migration_steps: list[dict[str, Any]] = field(default_factory=list)
    """How a migration stands each time somebody looks; the last one stays."""
    migrated: list[tuple[str, MigrationRequest]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    """What leaves the machine."""
    forgot: list[ForgetRequest] = field(default_factory=list)
    forgetting: dict[str, Any] = field(default_factory=dict)
    """What came of it."""
    dropped: list[tuple[str, bool]] = field(default_factory=list)
    num_holders: int = 2
    handed_over: dict[str, Any] = field(default_factory=dict)
    rolled_back: list[str] = field(default_factory=list)
    line: list[dict[str, Any]] = field(default_factory=list)
    """The experts of every lineage."""

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def status(self) -> dict[str, Any]:
        self._fail()
        return {
            "name": "quiet-owl",
            "peer_id": PEER_ID,
            "mesh": {"id": "cd" * 32, "name": "digits"},
            "state": "waiting",
            "reason": "no peers yet",
            "device": {"used": "cpu", "reason": "no GPU was found"},
            "addresses": ["/ip4/127.0.0.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001"],
            "bootstrap": [{"address": "/ip4/192.0.2.9/tcp/1", "state": "failed", "error": "connection refused"}],
            "peers": 2,
            "experts": {"local": 1, "mesh": 3},
            "training": {"state": "learning", "task": "task-0", "step": 7, "loss": self.last_loss},
            "averaging": {"rounds": 4, "next_in_s": 65.0},
            "serving": {"enabled": True, "queue": 3},
            "mqtt": {"enabled": True, "connected": True, "error": None, "dropped": 2},
            "traffic": {"sent_bytes": 1_234_567, "received_bytes": 10},
            "uptime_s": 3725.0,
            "version": "0.1.0",
            "pid": os.getpid(),
            "url": "http://127.0.0.1:1",
        }

    def identity(self) -> dict[str, Any]:
        return {"name": "quiet-owl", "peer_id": PEER_ID, "addresses": ["/ip4/127.0.0.1/tcp/4001"]}

    def peers(self) -> list[dict[str, Any]]:
        return [
            {"peer_id": PEER_ID, "name": "quiet-owl", "experts": 1, "expires_in_s": 59.6, "self": True},
            {"peer_id": "QmOther", "name": self.peer_name, "experts": 2, "expires_in_s": 12, "self": False},
        ]

    def experts(self, *, local: bool) -> list[dict[str, Any]]:
        replica = {"peer_id": PEER_ID, "name": "quiet-owl", "generation": 3, "weights": "ef" * 32}
        here = {
            "uid": EXPERT,
            "kind": "mlp",
            "config": {"feature_dim": 640, "hidden": 8, "input_scale": 0.3},
            "classes": ["ankle boot", "bag"],
            "replicas": [replica],
            "local": True,
            "standing": "current",
            "placed": False,
            "holders": self.num_holders,
            "ancestors": [],
            "superseded_by": None,
            "parameters": 1234,
        }
        return [here] if local else [here, {**here, "uid": "12" * 32, "local": False, "standing": None}]

    def specialization(self) -> dict[str, Any]:
        return {"tasks": ["task-0"], "measured": self.measured}

    def averaging(self) -> dict[str, Any]:
        return {"rounds": 4}

    def training(self) -> dict[str, Any]:
        return {"state": "learning", "loss": self.last_loss}

    def settings(self) -> dict[str, Any]:
        return {"path": "config.toml", "settings": []}

    def metrics(self) -> bytes:
        return b"modulemesh_peers 2.0\n"

    def ready(self) -> bool:
        return self.is_ready

    async def infer(
        self, images: NDArray[np.uint8], *, top_k: int | None, task: str | None, timeout_s: float | None
    ) -> dict[str, Any]:
        await asyncio.sleep(self.answer_after_s)
        self._fail()
        self.asked.append((images.copy(), top_k, task, timeout_s))
        rows = range(len(images))
        return {
            "classes": ["bag", "shirt"],
            "predictions": ["bag" for _ in rows],
            "outputs": [[0.75, 0.25] for _ in rows],
            "missing_mass": [0.125 for _ in rows],
            "route": [
                {"row": row, "expert": EXPERT, "peer": "calm-fox", "gate": 0.875, "ms": 1.5, "ok": True} for row in rows
            ],
            "elapsed_ms": 2.5,
        }

    async def train_now(self) -> dict[str, Any]:
        self._fail()
        return {"queued": True}

    def pull_expert(self, uid: str, peer_id: str | None) -> dict[str, Any]:
        self._fail()
        self.pulled.append((uid, peer_id))
        return self.expert_pull(uid)

    def expert_pull(self, uid: str) -> dict[str, Any]:
        step = self.pull_steps.pop(0) if len(self.pull_steps) > 1 else self.pull_steps[0]
        return {"uid": uid, "peer": None, "done_bytes": 0, "total_bytes": None, "error": None, **step}

    async def expert_file(self, uid: str) -> bytes:
        self._fail()
        return self.files[uid]

    async def import_expert(self, data: bytes, *, replace: bool) -> dict[str, Any]:
        self._fail()
        self.imported.append((data, replace))
        return {"expert": {"uid": EXPERT, "classes": ["ankle boot", "bag"], "generation": 4, "weights": "ef" * 32}}

    async def drop_expert(self, uid: str, *, force: bool) -> dict[str, Any]:
        self._fail()
        self.dropped.append((uid, force))
        return {"uid": uid, "classes": ["ankle boot", "bag"]}

    def migrate_expert(self, uid: str, request: MigrationRequest) -> dict[str, Any]:
        self._fail()
        self.migrated.append((uid, request))
        return self.expert_migration(uid)

    def expert_migration(self, uid: str) -> dict[str, Any]:
        step = self.migration_steps.pop(0) if len(self.migration_steps) > 1 else self.migration_steps[0]
        return {
            "uid": uid,
            "successor": "5d" * 32,
            "kind": "mlp",
            "config": {"feature_dim": 640, "hidden": 16, "input_scale": 0.3},
            "done": 0,
            "total": 0,
            "left_s": None,
            "followed": False,
            "accuracy": None,
            "layers": [],
            "error": None,
            **step,
        }

    async def roll_back_expert(self, uid: str) -> dict[str, Any]:
        self._fail()
        self.rolled_back.append(uid)
        return {"uid": uid, "expert": {"uid": "12" * 32, "classes": ["ankle boot", "bag"]}}

    async def expert_lineage(self, uid: str) -> dict[str, Any]:
        self._fail()
        return {"uid": uid, "classes": ["ankle boot", "bag"], "experts": self.line}

    def privacy(self) -> dict[str, Any]:
        self._fail()
        return self.told

    async def forget(self, request: ForgetRequest) -> dict[str, Any]:
        self._fail()
        self.forgot.append(request)
        blank: dict[str, Any] = {"dropped": [], "retired": [], "redistilled": [], "not_forgotten": []}
        asked = {"task": request.task, "peer": request.peer, "undo": request.undo, "dry_run": request.dry_run}
        return blank | asked | self.forgetting

    async def handover(self, *, wait_s: float) -> dict[str, Any]:
        return {"under_way": False, "over": True, "taken": {}, "left": [], "reason": None} | self.handed_over

    def request_shutdown(self) -> None:
        self.shutdowns += 1


@dataclass(frozen=True)
class Served:
    """A served node: what to ask, and where."""

    node: FakeNode
    url: str
    key: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@contextlib.contextmanager
def served(node: FakeNode, *, key: str = KEY) -> Iterator[Served]:
    """Serve ``node`` on a free port until the block ends."""
    started: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    up = threading.Event()

    async def serve() -> None:
        stop = asyncio.Event()
        async with ApiServer(node, "127.0.0.1:0", key) as api:
            started.append((api.url, asyncio.get_running_loop(), stop))
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="api under test")
    thread.start()
    assert up.wait(20)
    url, loop, stop = started[0]
    try:
        yield Served(node, url, key)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving_home(path: Path, node: FakeNode) -> Iterator[Home]:
    """A home folder whose daemon is this process, serving ``node``."""
    home = Home(path)
    home.create()
    home.api_key.write_text(KEY + "\n")
    home.api_key.chmod(0o600)
    with served(node) as running:
        home.write_daemon_note(DaemonNote(os.getpid(), running.url))
        yield home
