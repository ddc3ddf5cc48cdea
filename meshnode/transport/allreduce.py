"""hivemind's butterfly all-reduce inside the node's own loop, with an honest account of what it did.

`AllReduceRunner` is used as it is. What is added: runs are found by their group id without a leader, so that a
partner's parts may arrive before this node has started its own run; and the result says whether *this* member saw
every part of every member (`Reduced.full`), which the runner itself does not.
"""

import asyncio
from contextlib import aclosing, suppress
from typing import Any, AsyncIterator  # noqa: UP035 - hivemind knows a stream by typing's name only

import numpy as np
import torch
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.averaging.partition import AllreduceException
from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto import averaging_pb2

from meshnode.transport.interface import Reduced, ReduceGroup

__all__ = ["AllReduce"]

MAX_WAITING_GROUPS = 256
"""Group ids that partners have named and we have not started: a bound on what strangers can make us remember."""

EARLY_ARRIVAL_S = 5.0
"""How long a partner's parts wait for our own run of the group to start."""


class _Runs(ServicerBase):  # type: ignore[misc]  # hivemind carries no types
    """Routes each incoming stream of parts to the run that its first message names."""

    def __init__(self) -> None:
        self._runs: dict[bytes, asyncio.Future[AllReduceRunner]] = {}

    def add(self, group_id: bytes, runner: AllReduceRunner) -> None:
        run = self._runs.setdefault(group_id, asyncio.get_running_loop().create_future())
        run.set_result(runner)

    def remove(self, group_id: bytes) -> None:
        self._runs.pop(group_id, None)

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        first = await asyncio.wait_for(anext(stream), EARLY_ARRIVAL_S)
        runner = await self._runner_of(first.group_id)
        if runner is None or context.remote_id not in runner:
            yield averaging_pb2.AveragingData(code=averaging_pb2.BAD_GROUP_ID)
            return
        async for message in runner.rpc_aggregate_part(_with_first(first, stream), context):
            yield message

    async def _runner_of(self, group_id: bytes) -> AllReduceRunner | None:
        if group_id not in self._runs:
            if len(self._runs) >= MAX_WAITING_GROUPS:
                return None
            self._runs[group_id] = asyncio.get_running_loop().create_future()
        run = self._runs[group_id]
        try:
            return await asyncio.wait_for(asyncio.shield(run), EARLY_ARRIVAL_S)
        except TimeoutError:
            if not run.done():
                self._runs.pop(group_id, None)
            return None


class AllReduce:
    """All-reduces of one node. Runs may overlap; each is named by its group id, which is used once."""

    def __init__(self, p2p: P2P) -> None:
        self._p2p = p2p
        self._runs = _Runs()

    async def start(self) -> None:
        await self._runs.add_p2p_handlers(self._p2p)

    async def run(self, group: ReduceGroup, vector: np.ndarray, *, timeout_s: float) -> Reduced:
        """Average `vector` (float32 ``(P,)``) with the group's.

        Gives up after `timeout_s` with ``full=False``; a failing partner does so too and is never an exception.
        """
        members = [PeerID.from_base58(member) for member in group.members]
        # One tensor a member: hivemind hands whole parts to reducers, and a short vector is a single part.
        pieces = [torch.from_numpy(piece.copy()) for piece in np.array_split(vector, len(members))]
        runner = AllReduceRunner(
            p2p=self._p2p,
            servicer_type=_Runs,
            prefix=None,
            group_id=group.group_id,
            tensors=pieces,
            weight=1.0,
            ordered_peer_ids=members,
            peer_fractions=(1 / len(members),) * len(members),
            sender_timeout=timeout_s / 3,
            reducer_timeout=timeout_s / 2,
        )
        self._runs.add(group.group_id, runner)
        deltas: list[np.ndarray] = []
        try:
            async with asyncio.timeout(timeout_s):
                async with aclosing(runner.run()) as outputs:
                    deltas.extend([delta.numpy() async for delta in outputs])
        except (TimeoutError, AllreduceException):
            pass
        finally:
            _finalize(runner)
            self._runs.remove(group.group_id)
        full = len(deltas) == len(pieces) and _saw_everything(runner)
        delta = np.concatenate(deltas) if full else np.zeros_like(vector)
        return Reduced(delta=delta, full=full)


def _saw_everything(runner: AllReduceRunner) -> bool:
    """Whether this member reduced every part from every sender and got every part of its own back."""
    reducer = runner.tensor_part_reducer
    received_all = all(received == reducer.num_parts for received in reducer.num_parts_received)
    return bool(received_all and not runner.banned_senders and runner.tensor_part_container.failed_size == 0)


def _finalize(runner: AllReduceRunner) -> None:
    runner.finalize(cancel=True)
    with suppress(asyncio.CancelledError, asyncio.InvalidStateError):
        runner._future.exception()  # retrieved, so that a failed run leaves no complaint behind at collection


async def _with_first(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item
