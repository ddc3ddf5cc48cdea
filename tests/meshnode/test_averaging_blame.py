"""A member that falls silent half way through a message is the one that is left out, whoever heard what of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import MemoryNode, announce_all, memory_network, memory_nodes

from meshnode.averaging.settings import AveragerConfig
from protocol.errors import PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import Message, RoundParts, RoundProposal, RoundTalk

CONFIG = AveragerConfig(period_s=10.0, timeout_s=1.0)


@asynccontextmanager
async def _four(folder: Path) -> AsyncIterator[tuple[list[np.ndarray], tuple[MemoryNode, ...]]]:
    async with memory_nodes(memory_network(), list("abcd"), folder, averager=CONFIG) as nodes:
        for node in nodes:
            uid = (await node.spawn("0", "1")).uid
        await announce_all(nodes)
        yield [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)], nodes


def _is_parts(message: Message) -> bool:
    return isinstance(message, RoundParts)


def _is_proposal(message: Message) -> bool:
    return isinstance(message, RoundTalk) and isinstance(message.words[0], RoundProposal)


def _fall_silent(node: MemoryNode, last_word: Callable[[Message], bool], *, heard_by: PeerId, is_dead: bool) -> None:
    """Let a node's last message reach one other member alone; after it nothing leaves the node any more."""
    call, transport = node.transport.call, node.transport
    is_over = asyncio.Event()

    async def fail(peer_id: PeerId) -> Frame:
        if not is_dead:
            await asyncio.Event().wait()
        raise PeerUnreachable(peer_id)

    async def call_until(peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        if is_over.is_set() or (last_word(request.message) and peer_id != heard_by):
            return await fail(peer_id)
        if last_word(request.message):
            is_over.set()
            if is_dead:
                asyncio.get_running_loop().call_later(0.02, transport._network._leave, node.peer_id)
            transport.serve(lambda sender, request: fail(node.peer_id))
        return await call(peer_id, request, timeout_s=timeout_s)

    transport.call = call_until  # type: ignore[method-assign]


async def _average(nodes: Sequence[MemoryNode], lost: MemoryNode) -> None:
    number = int(nodes[0].network.now_s // CONFIG.period_s) + 2
    hanging = asyncio.create_task(lost.averager.run_round(number))
    async with asyncio.timeout(10):
        await asyncio.gather(*(node.averager.run_round(number) for node in nodes))
    hanging.cancel()


def _assert_average_of(survivors: Sequence[MemoryNode], learned: Sequence[np.ndarray]) -> None:
    mean = np.mean(learned[: len(survivors)], axis=0, dtype=np.float64)
    for node in survivors:
        (uid,) = node.host.experts
        assert node.averager.results["committed"] == 1, dict(node.averager.results)
        np.testing.assert_allclose(node.host.snapshot(uid), mean, atol=1e-6)


@pytest.mark.parametrize("is_dead", [False, True])
@pytest.mark.parametrize("last_word", [_is_proposal, _is_parts])
async def test_who_falls_silent_when_one_of_three_has_heard_it_is_left_out_by_all_three(
    tmp_path: Path, last_word: Callable[[Message], bool], is_dead: bool
) -> None:
    async with _four(tmp_path) as (learned, (*survivors, lost)):
        _fall_silent(lost, last_word, heard_by=survivors[0].peer_id, is_dead=is_dead)
        await _average(survivors, lost)
        _assert_average_of(survivors, learned)


async def test_who_sends_its_parts_and_answers_nobody_is_left_out_by_all(tmp_path: Path) -> None:
    async with _four(tmp_path) as (learned, (*survivors, lost)):
        call = lost.transport.call

        async def call_until(peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
            if _is_parts(request.message):
                lost.go_silent()
            elif not _is_proposal(request.message):
                await asyncio.Event().wait()
            return await call(peer_id, request, timeout_s=timeout_s)

        lost.transport.call = call_until  # type: ignore[method-assign]
        await _average(survivors, lost)
        _assert_average_of(survivors, learned)
