"""Nodes in memory with a real trainer process, that find out which experts they can do without."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mesh_in_memory import MESH, MemoryNode, announce_all, digits, form, memory_node, tiny_trunk
from training_nodes import Telling, running, trainer_parts, until

from experts.checkpoint import weights_to_bytes
from experts.data.dataset import ImageDataset, class_columns
from experts.data.npz import save_task
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.forget_order import ForgetReport, ForgetRequest
from meshnode.forgetting import Forgetting
from meshnode.hosted import HostedExpert
from meshnode.settings.sections import TrainSection
from meshnode.spare import TidyConfig
from meshnode.state.rows import Reached, TaskRow
from meshnode.telemetry import Telemetry
from meshnode.tidying import Tidying
from meshnode.trainer.handing import Handing
from meshnode.trainer.service import LEARNED, Trainer
from meshnode.transport.memory import MemoryNetwork
from protocol.identifiers import ExpertUid, digest_of

__all__ = ["NARROW", "WIDE", "TidyingNode", "knowing", "look", "tidying_node"]

NARROW, WIDE = form("mlp", hidden=4), form("mlp", hidden=8)
"""Forms of experts for the same classes that are not replicas of one another."""


@cache
def knowing(*classes: str, hidden: int = 4, seed: str = "learned", steps: int = 1500) -> bytes:
    """Weights of an expert that has learned to tell these digits apart."""
    seen = digits(*classes).select(range(240))
    module = MESH.architecture(form("mlp", hidden=hidden), len(classes)).build(seed)
    data = DistillationData(
        features_ND=features_of(tiny_trunk(), seen.images), labels_N=class_columns(seen.labels, classes)
    )
    run = DistillationRun(module, data, DistillationConfig(steps=steps, alpha=1.0), torch_generator(0, seed))
    while not run.done:
        run.step()
    return weights_to_bytes(module)


@dataclass(kw_only=True)
class TidyingNode(Telling):
    """A node whose worker runs, and that tidies when it is told to look."""

    node: MemoryNode
    trainer: Trainer | None
    tidying: Tidying
    forgetting: Forgetting

    async def host(self, *classes: str, hidden: int = 4, seed: str = "learned", task: str = "") -> HostedExpert:
        """Host an expert that knows its classes, from a task of this node if that is named."""
        weights = knowing(*classes, hidden=hidden, seed=seed)
        expert = await self.node.spawn(*classes, weights=weights, form=form("mlp", hidden=hidden))
        if task:
            vector, reached = self.node.host.snapshot(expert.uid), Reached(run="run", steps=1)
            await self.node.host.checkpoint(expert.uid, vector, deltas_applied=0, reached=reached, tasks=(task,))
        return expert

    async def measured(self) -> None:
        """Wait until the gate mass on this node's images has been measured for what the mesh has now."""
        assert self.trainer is not None
        current = self.node.directory.current().keys()
        await until(lambda: (found := self.trainer.specialization) and {*found.uids} == {*current})  # type: ignore[union-attr]

    async def forget(self, task: str) -> ForgetReport:
        return await self.forgetting.carry_out(ForgetRequest(task=task))

    def accuracy(self, uid: ExpertUid, *classes: str) -> float:
        """Of one expert, on images that nobody has learned, of these classes and among its own."""
        expert, test = self.node.host.get(uid), digits(*classes, test=True)
        answers = expert.module(features_of(tiny_trunk(), test.images)).argmax(dim=1)
        return float((answers == class_columns(test.labels, expert.classes)).double().mean())

    def tasks_of(self, uid: ExpertUid) -> tuple[str, ...] | None:
        return self.node.state.ledger.generations(uid)[0].tasks

    @property
    def said(self) -> set[ExpertUid]:
        """What this node says that it could do without."""
        return {one.uid for one in self.tidying.says()}


async def look(*nodes: TidyingNode, rounds: int = 1) -> None:
    """Everybody says what it hosts and what it could do without, everybody looks, and acts on it."""
    for _ in range(rounds):
        await announce_all([one.node for one in nodes])
        for one in nodes:
            await one.tidying.step()
    await announce_all([one.node for one in nodes])


@asynccontextmanager
async def tidying_node(
    network: MemoryNetwork,
    name: str,
    folder: Path,
    *,
    tasks: Mapping[str, ImageDataset] | None = None,
    train: bool = True,
    config: TidyConfig | None = None,
    steps: int = 150,
    known: Iterable[str] = ("0", "1", "2"),
) -> AsyncIterator[TidyingNode]:
    """A node on `network`, which takes up what an earlier one of its name has left.

    Args:
        tasks: Task files that it has learned, of which its router statistics are.
        train: Whether it has a trainer.
        config: When it does without an expert.
        steps: Of a lesson.
        known: Classes that the router is to know even without a task here.
    """
    telemetry = Telemetry()
    data = folder / f"{name} tasks"
    data.mkdir(parents=True, exist_ok=True)
    config = config or TidyConfig(lease_s=100.0)
    async with memory_node(network, name, folder) as node:
        for task, images in (tasks or {}).items():
            save_task(data / f"{task}.npz", images)
            digest = digest_of((data / f"{task}.npz").read_bytes())
            node.state.ledger.put_task(TaskRow(name=task, digest=digest, state=LEARNED, learned_at=1.0))
        seen = digits(*known).select(range(240))
        statistics = ClassStatistics.from_features(
            features_of(tiny_trunk(), seen.images), seen.labels, fingerprint=MESH.fingerprint
        )
        await node.contribute("router", statistics.to_bytes())
        parts = trainer_parts(node, telemetry)
        settings = TrainSection(data=data, teacher_epochs=1, steps=steps, round_steps=50, checkpoint_every=0.001)
        trainer = Trainer(parts, settings, folder / f"{name} trainer", device="cpu", threads=1) if train else None
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
        tidying = Tidying(
            me=node.peer_id,
            state=node.state,
            host=node.host,
            directory=node.directory,
            dropping=node.dropping,
            trainer=trainer,
            handing=None if trainer is None else Handing(parts, trainer, config.margin),
            let_go=node.averager.let_go,
            config=config,
            now_s=node.transport.now_s,
            telemetry=telemetry,
        )
        node.says.append(tidying.says)
        async with running(*([trainer.run()] if trainer else [])):
            if trainer is not None:
                await until(lambda: trainer.status.state == "idle")
            yield TidyingNode(node=node, trainer=trainer, tidying=tidying, forgetting=forgetting, telemetry=telemetry)
