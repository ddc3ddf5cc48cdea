"""Replicas that this node stops hosting: because its user says so, or because the mesh has more than it wants.

A record may outlive its peer by a minute, so the others that advertise an expert are asked before it is dropped.
"""

import asyncio
from dataclasses import dataclass, field

from meshnode.averaging.averager import Averager
from meshnode.directory import Directory
from meshnode.errors import Refused
from meshnode.hosting import ExpertHost
from meshnode.listings import ExpertListing, Replica
from meshnode.telemetry import Telemetry
from meshnode.transport.interface import Transport
from protocol.errors import ModuleMeshError
from protocol.framing import Frame
from protocol.identifiers import ExpertUid
from protocol.messages import BlobGet, BlobPart

__all__ = ["Dropping", "family_of"]


def family_of(directory: Directory, uid: ExpertUid) -> ExpertListing | None:
    """The listing of the current expert of a family, whichever of the family `uid` is; None if nobody advertises it."""
    return next((one for one in directory.current().values() if any(uid == kin.uid for kin in one.family)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropping:
    """Drops replicas, each only while enough others are there.

    Attributes:
        timeout_s: How long a peer may take to show that it has its replica.
    """

    host: ExpertHost
    directory: Directory
    averager: Averager
    transport: Transport
    timeout_s: float
    telemetry: Telemetry = field(default_factory=Telemetry)

    async def drop(self, uid: ExpertUid, *, least_others: int, asked: bool) -> None:
        """Stop hosting a replica that is current here.

        Args:
            least_others: Peers that have to show that they hold a replica of it, or of another one of its family.
            asked: Whether it is not to come back by itself.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
            Refused: There are fewer others, or it is in training.
            OSError: The disk does not let it; it is hosted as before.
        """
        classes = self.host.get(uid).classes
        if least_others and (others := await self._num_others(uid)) < least_others:
            who = "no other peer that answers holds" if not others else f"of {least_others} other peers {others} holds"
            raise Refused(
                f"{who} a replica of the expert {uid}",
                hint="Let another node host it first (`meshnode experts pull` there), or lose it with --force.",
            )
        await self.averager.let_go(uid)
        await self.host.drop(uid, unwanted=asked)
        cause = "asked" if asked else "surplus"
        self.telemetry.events.emit("expert_dropped", expert=uid, classes=classes, cause=cause)

    async def _num_others(self, uid: ExpertUid) -> int:
        family = family_of(self.directory, uid)
        return 0 if family is None else await self.num_others(family)

    async def num_others(self, family: ExpertListing) -> int:
        """Other peers that hold one of a family, stay, and have just delivered a byte of it."""
        replicas = {held.peer_id: held for listing in reversed(family.family) for held in listing.replicas}
        others = [replicas[peer_id] for peer_id in family.holders if peer_id != self.transport.peer_id]
        return sum(await asyncio.gather(*(self._has(replica) for replica in others)))

    async def _has(self, replica: Replica) -> bool:
        request = Frame(BlobGet(digest=replica.advert.weights, offset=0, length=1))
        try:
            reply = await self.transport.call(replica.peer_id, request, timeout_s=self.timeout_s)
        except ModuleMeshError:
            return False
        return isinstance(reply.message, BlobPart) and reply.message.total_bytes > 0
