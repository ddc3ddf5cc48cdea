"""Replicas that this node's user asks for: pulled one after the other, each with how far it has come."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experts.errors import ExpertsError
from meshnode.errors import NodeError, error_document
from meshnode.replicas import Replicas
from protocol.errors import ModuleMeshError
from protocol.identifiers import ExpertUid, PeerId

__all__ = ["ReplicaPull", "ReplicaPulls"]


@dataclass(slots=True)
class ReplicaPull:
    """One order, as it stands."""

    uid: ExpertUid
    source: PeerId | None
    """The only peer to take it from; None takes any."""
    state: Literal["waiting", "pulling", "hosted", "failed"] = "waiting"
    done_bytes: int = 0
    total_bytes: int | None = None
    """None until a peer has said so, and for weights that come in one part."""
    error: Mapping[str, str | None] | None = None
    """Code, message and hint of what it failed with."""

    @property
    def is_over(self) -> bool:
        return self.state in {"hosted", "failed"}

    def note_progress(self, done_bytes: int, total_bytes: int) -> None:
        """Take in how far the weights have come."""
        self.done_bytes, self.total_bytes = done_bytes, total_bytes


class ReplicaPulls:
    """Takes orders and carries them out while `run` runs."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._orders: asyncio.Queue[ReplicaPull] = asyncio.Queue()
        self._newest: dict[ExpertUid, ReplicaPull] = {}

    def order(self, uid: ExpertUid, source: PeerId | None) -> ReplicaPull:
        """Have a replica of an expert pulled. One that is on its way already is not begun again."""
        newest = self._newest.get(uid)
        if newest is None or newest.is_over:
            newest = self._newest[uid] = ReplicaPull(uid, source)
            self._orders.put_nowait(newest)
        return newest

    def newest(self, uid: ExpertUid) -> ReplicaPull | None:
        """The last order for an expert; None if there was none since the start."""
        return self._newest.get(uid)

    async def run(self) -> None:
        """Carry out orders for ever."""
        while True:
            await self._carry_out(await self._orders.get())

    async def _carry_out(self, pull: ReplicaPull) -> None:
        pull.state = "pulling"
        try:
            await self._replicas.pull(pull.uid, source=pull.source, progress=pull.note_progress)
        except (ModuleMeshError, ExpertsError, NodeError, OSError) as failure:
            # That nobody delivered it says less than why the last one of them did not.
            cause = failure.__cause__
            pull.error = error_document(cause if isinstance(cause, ModuleMeshError) else failure)
            pull.state = "failed"
        else:
            pull.state = "hosted"
