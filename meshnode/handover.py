"""Leaving by handing over: a node that stops serves what nobody else holds until somebody does, for a bounded time.

Its record says that it leaves and still names its experts. So they count as held by nobody that stays, and the peers
whose turn it is adopt them at once; whoever asks them meanwhile is answered.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from meshnode.advertiser import Advertiser
from meshnode.directory import Directory
from meshnode.dropping import family_of
from meshnode.hosting import ExpertHost
from meshnode.placement import Placement
from meshnode.telemetry import Telemetry
from protocol.identifiers import ExpertUid, PeerId
from protocol.placement import adopters

__all__ = ["HandOver"]

LOOK_AGAIN_S = 0.5
"""Pause between two look-ups: a stop should take no longer than it must."""

ALONE = "there is no other peer in the mesh"
"""Nothing that a person has to do anything about: a mesh of one node stops with it."""


@dataclass(kw_only=True, slots=True)
class HandOver:
    """Hands over once, when all services have ended but those that answer peers.

    Attributes:
        under_way: Whether it has begun and is not over.
        taken: What others have taken over, each with the name of one of them.
        left: What nobody else holds, as last seen.
        reason: Why it is not handed over; None while it may be.
    """

    me: PeerId
    host: ExpertHost
    directory: Directory
    advertiser: Advertiser
    placement: Placement
    telemetry: Telemetry = field(default_factory=Telemetry)
    under_way: bool = False
    taken: dict[ExpertUid, str] = field(default_factory=dict)
    left: tuple[ExpertUid, ...] = ()
    reason: str | None = None

    async def run(self, within_s: float) -> None:
        """Hand over what no other live peer holds; returns when that is done, is hopeless, or the time is over.

        Args:
            within_s: The longest that it may take, in seconds; with 0 nothing is handed over, nor said of it.
        """
        self.left = self._sole() if within_s else ()
        if not self.left:
            return
        self.reason = self._hopeless()
        if self.reason is None:
            self.under_way = True
            self.telemetry.events.emit("handover_begun", experts=list(self.left), within_s=within_s)
            try:
                async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                    advertising = group.create_task(self.advertiser.run(leaving=True), name="leaving")
                    await self._until_taken()
                    advertising.cancel()
            except TimeoutError:
                self.reason = f"nobody has taken it over within {within_s:g} s"
            self.under_way = False
        if self.left:
            level: Literal["info", "warning"] = "info" if self.reason == ALONE else "warning"
            self.telemetry.events.emit("handover_incomplete", level=level, experts=list(self.left), reason=self.reason)

    async def _until_taken(self) -> None:
        while self.left and self.reason is None:
            await asyncio.sleep(LOOK_AGAIN_S)
            await self.directory.refresh()
            self._note_taken()
            self.reason = self._hopeless()

    def _sole(self) -> tuple[ExpertUid, ...]:
        return tuple(uid for uid in self.host.experts if not self._others(uid))

    def _others(self, uid: ExpertUid) -> frozenset[PeerId]:
        family = family_of(self.directory, uid)
        return frozenset() if family is None else family.holders - {self.me}

    def _note_taken(self) -> None:
        names = {record.peer_id: record.peer_name for record in self.directory.records()}
        for uid in self.left:
            if others := self._others(uid):
                self.taken[uid] = names[min(others)]
                self.telemetry.events.emit("expert_handed_over", expert=uid, to=self.taken[uid])
        self.left = tuple(uid for uid in self.left if uid not in self.taken)

    def _hopeless(self) -> str | None:
        """Why none of what is left can be taken over."""
        peers = {record.peer_id for record in self.directory.records()} - {self.me}
        if not peers:
            return ALONE
        rooms = {peer_id: room for peer_id, room in self.placement.rooms().items() if peer_id != self.me}
        families = [family for uid in self.left if (family := family_of(self.directory, uid)) is not None]
        is_hopeless = self.left and not any(adopters(self.placement.kept(family), rooms) for family in families)
        return "no peer has room" if is_hopeless else None

    def document(self) -> dict[str, object]:
        """How it stands, as plain data."""
        left: Sequence[str] = self.left
        return {"under_way": self.under_way, "taken": dict(self.taken), "left": list(left), "reason": self.reason}
