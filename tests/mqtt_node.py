"""A publisher that runs with documents a test changes, and something that is no broker."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from meshnode.mqtt.publisher import MqttPublisher
from meshnode.mqtt.timing import MqttTiming
from meshnode.settings.sections import MqttSection
from meshnode.telemetry.events import Events

__all__ = ["ACCEPTED", "FakeSource", "Node", "PEER", "QUICK", "ROOT", "WITH_TESTS", "hangs_up", "listener", "running"]

PEER = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
ROOT = f"modulemesh/v1/digits/{PEER}/"
ACCEPTED = b"\x20\x02\x00\x00"  # CONNACK of MQTT 3.1.1

WITH_TESTS = {"PYTHONPATH": ":".join(map(str, Path(__file__).parents[:2]))}
"""Environment of a child process that imports this module."""

QUICK = MqttTiming(
    first_retry_s=0.05,
    last_retry_s=0.2,
    look_s=0.02,
    connect_timeout_s=1.0,
    answer_timeout_s=0.5,
    keepalive_s=1,
    goodbye_s=0.5,
)


class FakeSource:
    """Documents that a test changes."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = {"state": "ready"}
        self.hosted: dict[str, dict[str, Any]] = {"e1": {"generation": 1}, "e2": {"generation": 1}}

    def info(self) -> Mapping[str, Any]:
        return {"name": "a node"}

    def state(self) -> Mapping[str, Any]:
        return self.now

    def telemetry(self) -> Mapping[str, Mapping[str, Any]]:
        return {"system": {"rss_bytes": 1}, "net": {"peers": 1}, "train": {"loss": None}, "serve": {"queue": 0}}

    def experts(self) -> Mapping[str, Mapping[str, Any]]:
        return self.hosted


class Node:
    """A publisher with all it needs, running."""

    def __init__(self, url: str, timing: MqttTiming, **settings: Any) -> None:
        self.source = FakeSource()
        self.events = Events()
        section = MqttSection.model_validate({"enabled": True, "url": url, "every": "1h"} | settings)
        self.publisher = MqttPublisher(section, "digits", PEER, self.source, self.events, timing)
        self.task = asyncio.create_task(self.publisher.run())

    async def until(self, holds: Callable[[MqttPublisher], object]) -> None:
        """Wait until the publisher is as wanted; not for long."""
        deadline = time.monotonic() + 8
        while not holds(self.publisher):
            assert not self.task.done(), self.task
            assert time.monotonic() < deadline, (self.publisher.connected, self.publisher.error)
            await asyncio.sleep(0.01)

    async def connected(self) -> None:
        await self.until(lambda publisher: publisher.connected)

    async def failed(self, part_of_error: str) -> None:
        await self.until(lambda publisher: part_of_error in (publisher.error or ""))
        assert not self.publisher.connected

    async def stop(self) -> float:
        """Cancel it as the daemon does; returns how long it took, in seconds."""
        began_at = time.monotonic()
        self.task.cancel()
        await asyncio.wait([self.task], timeout=8)
        assert self.task.cancelled(), self.task
        return time.monotonic() - began_at


@asynccontextmanager
async def running(url: str, timing: MqttTiming = QUICK, **settings: Any) -> AsyncIterator[Node]:
    node = Node(url, timing, **settings)
    try:
        yield node
        if not node.task.cancelled():
            assert not node.task.done(), node.task
            await node.stop()
    finally:
        node.task.cancel()


@asynccontextmanager
async def listener(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[tuple[str, list[float]]]:
    """Something that accepts connections and is no broker; its URL, and when it was called."""
    calls: list[float] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(time.monotonic())
        with suppress(ConnectionError):
            await answer(writer)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", calls
    finally:
        server.close()


async def hangs_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
