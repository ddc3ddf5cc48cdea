"""Nodes in memory whose trainer learns the task files of a folder with a real worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh_in_memory import MemoryNode
from training_nodes import running, trainer_parts

from meshnode.settings.sections import TrainSection
from meshnode.telemetry import Telemetry
from meshnode.trainer.service import Trainer

__all__ = ["learning"]

SETTINGS = {"teacher_epochs": 2, "steps": 300, "round_steps": 50, "checkpoint_every": 0.001}


@asynccontextmanager
async def learning(node: MemoryNode, folder: Path, data: Path, **settings: object) -> AsyncIterator[Trainer]:
    section = TrainSection(data=data, **{**SETTINGS, **settings})
    trainer = Trainer(trainer_parts(node, Telemetry()), section, folder / "trainer", device="cpu", threads=1)
    async with running(trainer.run()):
        yield trainer
