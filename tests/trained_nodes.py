"""Nodes in memory with a real trainer process, that carry experts over and follow those of others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh_in_memory import MESH, MemoryNode, memory_node
from migrated_experts import CLASSES, SEEN, learned_weights
from training_nodes import Telling, running, trainer_parts, until

from experts.data.npz import save_task
from meshnode.following import Following
from meshnode.migration_order import Migration
from meshnode.migrations import Migrations
from meshnode.settings.sections import TrainSection
from meshnode.state.rows import TaskRow
from meshnode.telemetry import Telemetry
from meshnode.trainer.service import LEARNED, Trainer
from meshnode.transport.memory import MemoryNetwork
from protocol.identifiers import ExpertUid, digest_of

__all__ = ["TrainedNode", "trained_node"]


@dataclass(kw_only=True)
class TrainedNode(Telling):
    """A node of which the worker, the migrations and the following run."""

    node: MemoryNode
    trainer: Trainer | None
    migrations: Migrations
    following: Following

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
    tasks = folder / f"{name} tasks"
    tasks.mkdir(exist_ok=True)
    if data:
        save_task(tasks / "task.npz", SEEN)
    async with memory_node(network, name, folder) as node:
        if data:
            digest = digest_of((tasks / "task.npz").read_bytes())
            node.state.ledger.put_task(TaskRow(name="task", digest=digest, state=LEARNED, learned_at=1.0))
        parts, home = trainer_parts(node, telemetry), folder / f"{name} trainer"
        trainer = Trainer(parts, TrainSection(data=tasks), home, device="cpu", threads=1) if train else None
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
        async with running(*services):
            yield TrainedNode(
                node=node, trainer=trainer, migrations=migrations, following=following, telemetry=telemetry
            )
