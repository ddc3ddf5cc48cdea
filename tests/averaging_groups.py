"""Nodes that hold replicas of one expert, and rounds between them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import equations
import numpy as np
from mesh_in_memory import MemoryNode, announce_all, memory_network, memory_nodes

from meshnode.averaging.settings import AveragerConfig
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId
from protocol.messages import (
    RoundAnswer,
    RoundId,
    RoundProposal,
    RoundTalk,
    RoundTalkReply,
    RoundWord,
)

__all__ = [
    "PATIENT",
    "PERIOD_S",
    "SHORT",
    "average",
    "generations",
    "group",
    "mean_of",
    "next_rounds",
    "proposal_of",
    "round_number",
    "say",
]

PERIOD_S = 10.0
PATIENT = AveragerConfig(period_s=PERIOD_S, timeout_s=20.0)
"""For rounds that end by themselves."""
SHORT = AveragerConfig(period_s=PERIOD_S, timeout_s=5.0)
"""For rounds in which somebody is awaited in vain; a second attempt has to fit in on a busy machine too."""


@asynccontextmanager
async def group(
    folder: Path, names: str, config: AveragerConfig
) -> AsyncIterator[tuple[ExpertUid, tuple[MemoryNode, ...]]]:
    """Nodes that hold replicas of one expert and know each other."""
    async with memory_nodes(memory_network(), list(names), folder, averager=config) as nodes:
        for node in nodes:
            expert = await node.spawn("0", "1")
        await announce_all(nodes)
        yield expert.uid, nodes


def round_number(nodes: Sequence[MemoryNode]) -> int:
    """The first round in which replicas that are hosted by now take part."""
    return int(nodes[0].network.now_s // PERIOD_S) + 2


async def say(node: MemoryNode, sender: PeerId, word: RoundWord) -> RoundAnswer:
    reply = (await node.averager.answer(sender, Frame(RoundTalk((word,))))).message
    assert isinstance(reply, RoundTalkReply)
    (answer,) = reply.answers
    return answer


def proposal_of(node: MemoryNode, round_id: RoundId, members: Sequence[PeerId], *, ready: bool = True) -> RoundProposal:
    expert = node.host.get(round_id.expert)
    return RoundProposal(
        round=round_id,
        members=tuple(sorted(members)),
        whole=True,
        ready=ready,
        dirty=True,
        base=expert.round,
        origin=expert.origin,
        settings=PATIENT.agreement,
        reference=None,
        weight=1.0,
    )


async def average(nodes: Sequence[MemoryNode], *, number: int | None = None) -> None:
    if number is None:
        number = round_number(nodes)
    async with asyncio.timeout(20):
        await asyncio.gather(*(node.averager.run_round(number) for node in nodes))


def mean_of(vectors: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(equations.mean_of([vector.tolist() for vector in vectors]))


def generations(uid: ExpertUid, nodes: Sequence[MemoryNode]) -> list[int]:
    return [node.host.get(uid).generation for node in nodes]


async def next_rounds(nodes: Sequence[MemoryNode], rounds: int) -> None:
    """One after the other, as time goes by."""
    for _ in range(rounds):
        await average(nodes)
        nodes[0].network.now_s += PERIOD_S
        await announce_all(nodes)
