"""What nodes in memory with a real trainer share: its parts, what is told, and services that run as long as a block."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mesh_in_memory import MESH, MemoryNode

from meshnode.telemetry import Telemetry
from meshnode.telemetry.events import Event
from meshnode.trainer.parts import TrainerParts

__all__ = ["Telling", "running", "trainer_parts", "until"]

PATIENCE_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    """Wait, but not for ever."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def trainer_parts(node: MemoryNode, telemetry: Telemetry) -> TrainerParts:
    """What a trainer stands on."""
    return TrainerParts(
        mesh=MESH,
        state=node.state,
        host=node.host,
        contributions=node.contributions,
        directory=node.directory,
        replicas=node.replicas,
        transport=node.transport,
        key=node.key,
        telemetry=telemetry,
    )


@dataclass(kw_only=True)
class Telling:
    """Somebody whose events are kept."""

    telemetry: Telemetry
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.telemetry.events.listen(self.events.append)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Facts of the events of this kind."""
        return [dict(event.facts) for event in self.events if event.kind == kind]


@asynccontextmanager
async def running(*services: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """The services run within the block; what one of them died of is raised at its end."""
    tasks = [asyncio.create_task(service) for service in services]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()):
            raise failure
