"""Commits of the replicas hosted here. The rounds of many experts end at the same time: what is ready by then is built
in one trip to a thread, and written in one transaction.

Legend: P parameters.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np

from experts.averaging import Averaged
from meshnode.batches import Batches
from meshnode.compute import Compute
from meshnode.generations import Built, build_next
from meshnode.hosted import HostedExpert
from meshnode.state.rows import Generation, NewWeights, Reached, all_tasks
from meshnode.state.state import State

__all__ = ["Commits", "serve"]

MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Weights that are built, and that are written, in one go: more would only be held in memory for longer."""


class Commits:
    """Makes changes of replicas durable, and then effective.

    Args:
        state: Where generations are kept.
        compute: The threads that torch runs in.
        device: Where the modules live.
    """

    def __init__(self, state: State, compute: Compute, *, device: str) -> None:
        self._state = state
        self._compute = compute
        self._device = device
        self._building = Batches(self._build_all, size=_change_bytes, most=MAX_BATCH_BYTES)
        self._writing = Batches(self._write_all, size=_weights_bytes, most=MAX_BATCH_BYTES)

    async def commit(
        self,
        expert: HostedExpert,
        change: np.ndarray | Averaged,
        *,
        cause: str,
        reached: Reached | None = None,
        number: int | None = None,
        tasks: Collection[str] | None = (),
    ) -> None:
        """Write a generation, then serve it: what is advertised can be served, and survives a kill.

        Args:
            expert: The replica, which nothing else changes meanwhile.
            change: New parameters, float32 ``(P,)``, or what a round adds to the present ones.
            cause: As `Generation.cause`.
            reached: The last training run behind it; None if there was none here.
            number: Of the last averaging round that it holds; None if that is the replica's still.
            tasks: As `NewWeights.tasks`.

        Raises:
            CorruptWeights: The change is not finite.
        """
        number = expert.round if number is None else number
        built = await self._building.do(_Change(expert, change))
        new = NewWeights(
            uid=expert.uid,
            weights=built.data,
            cause=cause,
            reached=reached,
            round=number,
            tasks=all_tasks(tasks),
        )
        generation = await self._writing.do(new)
        serve(expert, built, generation)

    async def _build_all(self, changes: Sequence["_Change"]) -> "Sequence[Built | Exception]":
        # Beside the loop, for answers must not wait for it.
        return await self._compute.run_own(lambda: [self._built_or_failure(change) for change in changes])

    def _built_or_failure(self, change: "_Change") -> Built | Exception:
        try:
            return build_next(change.expert, change.to, device=self._device)
        except Exception as failure:  # noqa: BLE001 - of this one expert, and no other's
            return failure

    async def _write_all(self, new: Sequence[NewWeights]) -> Sequence[Generation]:
        return await asyncio.to_thread(self._state.commit_generations, new)


def serve(expert: HostedExpert, built: Built, generation: Generation) -> None:
    """Have a replica be what was written."""
    expert.module, expert.generation, expert.weights = built.module, generation.number, generation.digest
    expert.committed_at, expert.reached, expert.round = generation.created_at, generation.reached, generation.round
    expert.reference, expert.reference_digest, expert.drift = built.reference, built.digest, built.drift


class _Change(NamedTuple):
    expert: HostedExpert
    to: np.ndarray | Averaged


def _change_bytes(change: _Change) -> int:
    return 4 * change.expert.num_parameters


def _weights_bytes(new: NewWeights) -> int:
    return len(new.weights)
