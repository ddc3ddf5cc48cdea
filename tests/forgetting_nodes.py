"""Nodes in memory with a real trainer process, that learn small tasks of real digits and are told to forget them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mesh_in_memory import MESH, MemoryNode, memory_node
from training_nodes import Telling, running, trainer_parts, until

from experts.data.dataset import ImageDataset
from experts.data.npz import save_task
from experts.router.ridge import RidgeRouter
from meshnode.forget_order import ForgetReport, ForgetRequest
from meshnode.forgetting import Forgetting
from meshnode.settings.sections import TrainSection
from meshnode.telemetry import Telemetry
from meshnode.trainer.service import Trainer
from meshnode.transport.memory import MemoryNetwork
from protocol.identifiers import ExpertUid

__all__ = ["ForgettingNode", "forgetting_node", "same_router"]


@dataclass(kw_only=True)
class ForgettingNode(Telling):
    """A node whose worker runs."""

    node: MemoryNode
    trainer: Trainer | None
    forgetting: Forgetting
    home: Path
    """The trainer's folder."""
    tasks: Path

    async def learn(self, name: str, task: ImageDataset) -> None:
        """Put a task file there and wait until it is learned."""
        assert self.trainer is not None
        before = len(self.trainer.history)
        save_task(self.tasks / f"{name}.npz", task)
        self.trainer.look_again()
        await until(lambda: len(self.trainer.history) > before)  # type: ignore[union-attr]
        assert (self.trainer.history[-1]["task"], self.trainer.history[-1]["outcome"]) == (name, "learned")
        self.node.state.collect_garbage()  # as time does

    async def forget(self, **request: object) -> ForgetReport:
        return await self.forgetting.carry_out(ForgetRequest(**request))  # type: ignore[arg-type]

    def weights(self, uid: ExpertUid) -> torch.Tensor:
        return torch.from_numpy(self.node.host.snapshot(uid))

    def kept(self) -> Mapping[str, bytes]:
        """Every file of the trainer's, by name."""
        found = (path for path in self.home.rglob("*") if path.is_file())
        return {str(path.relative_to(self.home)): path.read_bytes() for path in found}


def router_of(node: MemoryNode) -> RidgeRouter:
    assert node.contributions.view is not None
    return node.contributions.view.router


def same_router(one: MemoryNode, other: MemoryNode) -> bool:
    first, second = router_of(one), router_of(other)
    return first.classes == second.classes and torch.equal(first.weights, second.weights)


@asynccontextmanager
async def forgetting_node(
    network: MemoryNetwork, name: str, folder: Path, *, train: bool = True, steps: int = 60
) -> AsyncIterator[ForgettingNode]:
    """A node on `network`, which takes up what an earlier one of its name has left."""
    telemetry = Telemetry()
    tasks, home = folder / f"{name} tasks", folder / f"{name} trainer"
    tasks.mkdir(parents=True, exist_ok=True)
    # Each task is learned by an expert, whatever there is to gain: what was learned is to be forgotten.
    settings = TrainSection(
        data=tasks, teacher_epochs=1, steps=steps, round_steps=20, checkpoint_every=0.001, min_gain=-1
    )
    async with memory_node(network, name, folder) as node:
        trainer = Trainer(trainer_parts(node, telemetry), settings, home, device="cpu", threads=1) if train else None
        forgetting = Forgetting(
            mesh=MESH,
            state=node.state,
            host=node.host,
            contributions=node.contributions,
            directory=node.directory,
            trainer=trainer,
            transport=node.transport,
            key=node.key,
            let_go=node.averager.let_go,
            telemetry=telemetry,
        )
        async with running(*([trainer.run()] if trainer else [])):
            yield ForgettingNode(
                node=node, trainer=trainer, forgetting=forgetting, home=home, tasks=tasks, telemetry=telemetry
            )
