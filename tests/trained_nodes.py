"""Nodes in memory with a real trainer process, that carry experts over and follow those of others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh_in_memory import MESH, MemoryNode, memory_node
from migrated_experts import CLASSES, SEEN, learned_weights

from experts.data.npz import save_task
from meshnode.following import Following
from meshnode.migration_order import Migration
from meshnode.migrations import Migrations
from meshnode.settings.sections import TrainSection
from meshnode.state.rows import TaskRow
from meshnode.telemetry import Telemetry
from meshnode.telemetry.events import Event
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.service import LEARNED, Trainer
from meshnode.transport.memory import MemoryNetwork
from protocol.identifiers import ExpertUid, digest_of

__all__ = ["TrainedNode", "trained_node", "until"]

PATIENCE_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass(kw_only=True)
class TrainedNode:
    """A node of which the worker, the migrations and the following run."""

    node: MemoryNode
    trainer: Trainer | None
    migrations: Migrations
    following: Following
    events: list[Event] = field(default_factory=list)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Facts of the events of this kind."""
        return [dict(event.facts) for event in self.events if event.kind == kind]

    async def learned(self) -> ExpertUid:
        """Host an expert that knows its classes."""
        return (await self.node.spawn(*CLASSES, weights=learned_weights())).uid

    async def over(self, migration: Migration) -> Migration:
        await until(lambda: migration.is_over)
        return migration


@asynccontextmanager
async def trained_node(
    network: MemoryNetwork, name: str, folder: Path, *, data: bool = True, train: bool = True, margin: float = 0.01
) -> AsyncIterator[TrainedNode]:
    """A node whose learned task, if it has `data`, is `SEEN`.

    Args:
        train: Whether it has a trainer.
        margin: By which it judges.
    """
    telemetry = Telemetry()
    events: list[Event] = []
    telemetry.events.listen(events.append)
    tasks = folder / f"{name} tasks"
    tasks.mkdir(exist_ok=True)
    if data:
        save_task(tasks / "task.npz", SEEN)
    async with memory_node(network, name, folder) as node:
        if data:
            digest = digest_of((tasks / "task.npz").read_bytes())
            node.state.ledger.put_task(TaskRow(name="task", digest=digest, state=LEARNED, learned_at=1.0))
        parts = TrainerParts(
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
        trainer = (
            Trainer(parts, TrainSection(data=tasks), folder / f"{name} trainer", device="cpu", threads=1)
            if train
            else None
        )
        following = Following(
            mesh=MESH,
            state=node.state,
            host=node.host,
            directory=node.directory,
            replicas=node.replicas,
            trainer=trainer,
            margin=margin,
            telemetry=telemetry,
        )
        migrations = Migrations(
            mesh=MESH,
            state=node.state,
            host=node.host,
            directory=node.directory,
            following=following,
            trainer=trainer,
            transport=node.transport,
            margin=margin,
            telemetry=telemetry,
        )
        services = [migrations.run(), following.run(), *([trainer.run()] if trainer else [])]
        running = [asyncio.create_task(service) for service in services]
        try:
            yield TrainedNode(node=node, trainer=trainer, migrations=migrations, following=following, events=events)
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        for task in running:
            if not task.cancelled() and task.exception():
                raise task.exception()  # type: ignore[misc]
