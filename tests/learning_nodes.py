"""Nodes in memory whose trainer learns the task files of a folder with a real worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mesh_in_memory import MESH, MemoryNode

from meshnode.settings.sections import TrainSection
from meshnode.telemetry import Telemetry
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.service import Trainer

__all__ = ["learning", "until"]

PATIENCE_S = 60.0
SETTINGS = {"teacher_epochs": 2, "steps": 300, "round_steps": 50, "checkpoint_every": 0.001}


@asynccontextmanager
async def learning(node: MemoryNode, folder: Path, data: Path, **settings: object) -> AsyncIterator[Trainer]:
    parts = TrainerParts(
        mesh=MESH,
        state=node.state,
        host=node.host,
        contributions=node.contributions,
        directory=node.directory,
        replicas=node.replicas,
        transport=node.transport,
        key=node.key,
        telemetry=Telemetry(),
    )
    section = TrainSection(data=data, **{**SETTINGS, **settings})
    trainer = Trainer(parts, section, folder / "trainer", device="cpu", threads=1)
    running = asyncio.create_task(trainer.run())
    try:
        yield trainer
    finally:
        running.cancel()
        await asyncio.wait([running])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)
