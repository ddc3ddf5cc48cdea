"""A mesh in memory for successions: a client that hosts nothing, and nodes with replicas of one expert."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from mesh_in_memory import (
    MESH,
    MemoryNode,
    announce_all,
    digits,
    memory_network,
    memory_nodes,
    statistics_of,
)

from meshnode.averaging.settings import AveragerConfig
from meshnode.hosted import HostedExpert
from meshnode.inference import Prediction
from protocol.identifiers import ExpertUid

FIRST, SECOND = ("0", "1"), ("2", "3")
IMAGES = digits(*FIRST, *SECOND, test=True).images[:24]
AVERAGING = AveragerConfig(period_s=10.0, timeout_s=5.0)
FEATURES = np.random.default_rng(4).normal(size=(5, MESH.spec.feature_dim)).astype(np.float32)


@asynccontextmanager
async def mesh(folder: Path, names: Sequence[str]) -> AsyncIterator[tuple[MemoryNode, ...]]:
    """A client that hosts nothing, and nodes that all hold a replica of the first expert; the first the second too."""
    async with memory_nodes(memory_network(), ["client", *names], folder, averager=AVERAGING) as (client, *nodes):
        for node in nodes:
            await node.spawn(*FIRST)
        await nodes[0].spawn(*SECOND)
        await client.contribute("t", statistics_of(*FIRST, *SECOND, num_images=400))
        await announce_all([client, *nodes])
        yield (client, *nodes)


def expert_of(node: MemoryNode, classes: tuple[str, ...] = FIRST) -> HostedExpert:
    (expert,) = [expert for expert in node.host.experts.values() if expert.classes == classes]
    return expert


async def ask(node: MemoryNode) -> Prediction:
    return await node.inference.predict(IMAGES, timeout_s=10, top_k=2)


def answered(prediction: Prediction) -> set[ExpertUid]:
    return {call.expert for call in prediction.calls if call.error is None}


async def average(nodes: Sequence[MemoryNode]) -> None:
    number = int(nodes[0].network.now_s // AVERAGING.period_s) + 2
    async with asyncio.timeout(20):
        await asyncio.gather(*(node.averager.run_round(number) for node in nodes))
