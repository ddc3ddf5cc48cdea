"""A member that falls silent half way through a message is the one that is left out, whoever heard what of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from averaging_groups import SHORT, average, round_number
from mesh_in_memory import MemoryNode, announce_all, memory_network, memory_nodes

from protocol.errors import NotReady, PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import Message, RoundParts, RoundProposal, RoundTalk


@asynccontextmanager
async def _four(folder: Path) -> AsyncIterator[tuple[list[np.ndarray], tuple[MemoryNode, ...]]]:
    async with memory_nodes(memory_network(), list("abcd"), folder, averager=SHORT) as nodes:
        for node in nodes:
            uid = (await node.spawn("0", "1")).uid
        await announce_all(nodes)
        yield [await node.learn(uid, seed=seed) for seed, node in enumerate(nodes)], nodes


def _is_parts(message: Message) -> bool:
    return isinstance(message, RoundParts)


def _is_proposal(message: Message) -> bool:
    return isinstance(message, RoundTalk) and isinstance(message.words[0], RoundProposal)


class _LastWord:
    """What a node says and answers until a last message, which one other member alone gets to hear."""

    def __init__(
        self, node: MemoryNode, is_last: Callable[[Message], bool], *, heard_by: PeerId, is_dead: bool
    ) -> None:
        self._node = node
        self._call = node.transport.call
        self._is_last = is_last
        self._heard_by = heard_by
        self._is_dead = is_dead
        self._is_over = False

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        is_last = self._is_last(request.message)
        if self._is_over or (is_last and peer_id != self._heard_by):
            return await self._fail(peer_id)
        if is_last:
            self._is_over = True
            if self._is_dead:
                leave = self._node.transport._network._leave
                asyncio.get_running_loop().call_later(0.02, leave, self._node.peer_id)
        return await self._call(peer_id, request, timeout_s=timeout_s)

    async def answer(self, sender: PeerId, request: Frame) -> Frame:
        if self._is_over:
            return await self._fail(self._node.peer_id)
        try:
            return await self._node.handlers(sender, request)
        except NotReady:
            if self._is_over:  # that it has given the round up it does not get to say
                return await self._fail(self._node.peer_id)
            raise

    async def _fail(self, peer_id: PeerId) -> Frame:
        if not self._is_dead:
            await asyncio.Event().wait()
        raise PeerUnreachable(peer_id)


def _fall_silent(node: MemoryNode, is_last: Callable[[Message], bool], *, heard_by: PeerId, is_dead: bool) -> None:
    """After a last message, of which one member alone hears, nothing leaves the node any more."""
    until = _LastWord(node, is_last, heard_by=heard_by, is_dead=is_dead)
    node.transport.call = until.call  # type: ignore[method-assign]
    node.transport.serve(until.answer, node.handlers.admit)


async def _average(survivors: Sequence[MemoryNode], lost: MemoryNode) -> None:
    hanging = asyncio.create_task(lost.averager.run_round(round_number(survivors)))
    await average(survivors)
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
