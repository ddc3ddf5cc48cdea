"""In a child: hivemind's AllReduceRunner in a peer's own loop, leaderless, as this project once averaged.

Runs are found by their group id, so that a partner's parts may arrive before this peer's own run has begun. Whether a
run was full is not asked: with nobody failing it is, and the mean is checked.
"""

import asyncio
from contextlib import aclosing
from typing import Any, AsyncIterator  # noqa: UP035 - hivemind knows a stream by typing's name only

import numpy as np
import torch
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto import averaging_pb2

__all__ = ["Runner"]

TIMEOUT_S = 30.0


class _Runs(ServicerBase):  # type: ignore[misc]  # hivemind carries no types
    """Routes each incoming stream of parts to the run that its first message names."""

    def __init__(self) -> None:
        self._runs: dict[bytes, asyncio.Future[AllReduceRunner]] = {}

    def of(self, group_id: bytes) -> "asyncio.Future[AllReduceRunner]":
        return self._runs.setdefault(group_id, asyncio.get_running_loop().create_future())

    def forget(self, group_id: bytes) -> None:
        del self._runs[group_id]

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        first = await anext(stream)
        runner = await asyncio.shield(self.of(first.group_id))
        async for message in runner.rpc_aggregate_part(_with_first(first, stream), context):
            yield message


class Runner:
    """All-reduces of one peer.

    Args:
        p2p: The peer's own.
    """

    def __init__(self, p2p: P2P) -> None:
        self._p2p = p2p
        self._runs = _Runs()

    async def start(self) -> None:
        """Take parts in from now on."""
        await self._runs.add_p2p_handlers(self._p2p)

    async def delta(self, group_id: bytes, members: list[str], vector: np.ndarray) -> np.ndarray:
        """What to add to `vector`, float32 ``(P,)``, to come to the members' mean.

        Args:
            group_id: Used once.
            members: Peer ids in the order that all agree on.
            vector: The replica's parameters.
        """
        # One tensor a member: hivemind hands whole parts to reducers, and a short vector is a single part.
        pieces = [torch.from_numpy(piece.copy()) for piece in np.array_split(vector, len(members))]
        runner = AllReduceRunner(
            p2p=self._p2p,
            servicer_type=_Runs,
            prefix=None,
            group_id=group_id,
            tensors=pieces,
            weight=1.0,
            ordered_peer_ids=[PeerID.from_base58(member) for member in members],
            peer_fractions=(1 / len(members),) * len(members),
            sender_timeout=TIMEOUT_S / 3,
            reducer_timeout=TIMEOUT_S / 2,
        )
        self._runs.of(group_id).set_result(runner)
        try:
            async with asyncio.timeout(TIMEOUT_S), aclosing(runner.run()) as outputs:
                return np.concatenate([delta.numpy() async for delta in outputs])
        finally:
            self._runs.forget(group_id)


async def _with_first(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item
