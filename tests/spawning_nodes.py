"""Nodes in memory with a real trainer process, that spawn experts and settle what they have spawned apart."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh_in_memory import MESH, MemoryNode, announce_all, digits, memory_node
from training_nodes import Telling, running, trainer_parts, until

from experts.data.dataset import ImageDataset
from experts.data.npz import save_task
from experts.trunk.base import features_of
from meshnode.hosted import HostedExpert
from meshnode.settings.sections import TrainSection
from meshnode.settling import Settling
from meshnode.telemetry import Telemetry
from meshnode.trainer.service import Trainer
from meshnode.transport.memory import MemoryNetwork

__all__ = ["BEGUN", "DIGITS", "PLAIN", "RENAMED", "SpawningNode", "announce", "renamed", "spawning_node"]

DIGITS, RENAMED = ("3", "5"), ("five", "three")
"""Two digits that take more than a few steps to be told apart, also under other names: what an expert for those knows
is all that one for these needs."""
PLAIN = MESH.uid_of(RENAMED, MESH.form_for(2))
"""The expert for the renamed ones that begins at random."""
BEGUN = MESH.uid_of_begun(RENAMED, MESH.form_for(2))


def renamed(rows: slice = slice(None), *, test: bool = False) -> ImageDataset:
    """Real digits under other names."""
    data = digits(*DIGITS, test=test)
    chosen = data.select(range(len(data))[rows])
    return ImageDataset(chosen.images, ["three" if label == "3" else "five" for label in chosen.labels])


@dataclass(kw_only=True)
class SpawningNode(Telling):
    node: MemoryNode
    trainer: Trainer
    settling: Settling
    data: Path

    async def learn(self, name: str, task: ImageDataset) -> dict[str, Any]:
        """Put a task into the data folder, and wait until it has been learned; its entry of the history."""
        save_task(self.data / f"{name}.npz", task)
        self.trainer.look_again()
        await until(lambda: self.entries(name))
        (entry,) = self.entries(name)
        assert entry["outcome"] == "learned", entry
        return entry

    def entries(self, task: str) -> list[dict[str, Any]]:
        """What the history has of a task."""
        return [dict(entry) for entry in self.trainer.history if entry["task"] == task]

    @property
    def expert(self) -> HostedExpert:
        """The one for the renamed digits."""
        (found,) = (one for one in self.node.host.experts.values() if one.classes == RENAMED)
        return found

    async def own_accuracy(self) -> float:
        """Of that expert alone, on images that nobody has learned: the router takes them for the digits that they are,
        where it knows these too."""
        test = renamed(test=True)
        features = features_of(MESH.trunk, test.images).numpy()
        answer = await self.node.host.answer(self.expert.uid, features)
        columns = answer.probabilities.argmax(axis=1)
        return sum(RENAMED[column] == want for column, want in zip(columns, test.labels, strict=True)) / len(test)

    async def accuracy(self, test: ImageDataset) -> float:
        """Of the mesh's answers, as this node gives them."""
        answer = await self.node.inference.predict(test.images, timeout_s=5.0)
        return sum(got == want for got, want in zip(answer.predictions, test.labels, strict=True)) / len(test)


@asynccontextmanager
async def spawning_node(network: MemoryNetwork, name: str, folder: Path) -> AsyncIterator[SpawningNode]:
    """A node whose trainer runs, with an empty data folder."""
    telemetry = Telemetry()
    data = folder / f"{name} tasks"
    data.mkdir(exist_ok=True)
    async with memory_node(network, name, folder) as node:
        settings = TrainSection(
            data=data,
            teacher_epochs=2,
            steps=200,
            round_steps=50,
            checkpoint_every=0.001,
            replay_samples=40,
            min_gain=-1,
        )
        trainer = Trainer(trainer_parts(node, telemetry), settings, folder / f"{name} trainer", device="cpu", threads=1)
        settling = Settling(
            mesh=MESH,
            state=node.state,
            host=node.host,
            directory=node.directory,
            replicas=node.replicas,
            trainer=trainer,
            let_go=node.averager.let_go,
            telemetry=telemetry,
        )
        async with running(trainer.run()):
            yield SpawningNode(node=node, trainer=trainer, settling=settling, data=data, telemetry=telemetry)


async def announce(nodes: Sequence[SpawningNode]) -> None:
    """Everybody says what it hosts and knows, everybody looks, and takes in what others have contributed."""
    await announce_all([one.node for one in nodes])
    for one in nodes:
        await one.node.contributions.pull(one.node.puller, one.node.directory)
        await one.node.contributions.solve()
