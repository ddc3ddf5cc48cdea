"""Which experts are here, and in what standing: current, retired by a successor, declined.

Those that are advertised, trained and averaged are the current ones. An expert that another one has succeeded here is
retired: it still answers who asks for it, and can take its place back. What is current on the disk is current here:
where one takes another's place, retires or comes back, that is written first.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from experts.errors import ExpertsError
from meshnode.errors import Refused
from meshnode.hosted import HostedExpert
from meshnode.loading import load_replica
from meshnode.logs import get_logger
from meshnode.state.rows import Generation, Standing
from meshnode.state.state import State
from protocol.errors import UnknownExpert
from protocol.identifiers import ExpertUid

__all__ = ["Roster", "check_idle"]

log = get_logger(__name__)


class Roster:
    """The replicas of this node, and what they are to it.

    Args:
        state: Where generations are kept.
        device: Where the modules live.
        now_s: The DHT's clock, in seconds since the epoch.
    """

    def __init__(self, state: State, *, device: str = "cpu", now_s: Callable[[], float] = time.time) -> None:
        self._state = state
        self._device = device
        self._now_s = now_s
        self._experts: dict[ExpertUid, HostedExpert] = {}
        self._retired: dict[ExpertUid, HostedExpert] = {}
        self._unusable: dict[ExpertUid, str] = {}
        self.changed = asyncio.Event()
        """Set whenever a generation was committed; whoever waits clears it first."""

    async def load(self) -> None:
        """Take up every expert the state holds, retired ones too, at its newest intact generation.

        A successor that has lost them all gives its place back.
        """
        lost = []
        for row in self._state.hosted_experts():
            generation = self._state.current(row.uid)
            if generation is None:
                lost.append(row)
                continue
            try:
                expert = load_replica(self._state, row, generation, device=self._device, since=self._now_s())
            except ExpertsError as failure:
                self._unusable[row.uid] = str(failure)
                log.warning("a kept expert cannot be served", expert=row.uid, reason=str(failure))
                continue
            held = self._experts if row.standing == "current" else self._retired
            held[row.uid] = expert
        for row in lost:
            if row.standing == "current" and (ancestor := self._ancestor(row.ancestors)) is not None:
                self._state.roll_back(row.uid, ancestor.uid)
                ancestor.standing = "current"
                self._experts[ancestor.uid] = self._retired.pop(ancestor.uid)
                log.warning("a successor's weights are lost, rolled back", expert=row.uid, to=ancestor.uid)

    @property
    def unusable(self) -> Mapping[ExpertUid, str]:
        """Experts in the state that this machine cannot build, such as of a kind whose package is gone: why not."""
        return self._unusable

    @property
    def experts(self) -> Mapping[ExpertUid, HostedExpert]:
        """The current ones: what is advertised, trained and averaged."""
        return self._experts

    @property
    def retired(self) -> Mapping[ExpertUid, HostedExpert]:
        """Those that another one has succeeded here, and successors that were rolled back; they only answer."""
        return self._retired

    def find(self, uid: ExpertUid) -> HostedExpert | None:
        """The replica hosted here, current or retired; None if there is none."""
        return self._experts.get(uid) or self._retired.get(uid)

    def get(self, uid: ExpertUid) -> HostedExpert:
        """The replica hosted here, current or retired.

        Raises:
            UnknownExpert: There is none.
        """
        expert = self.find(uid)
        if expert is None:
            raise UnknownExpert(uid)
        return expert

    def check_welcome(self, uid: ExpertUid) -> None:
        """Whether an expert that is not current here may come to be, without taking another one's place.

        Raises:
            Refused: A current expert here succeeds it, or it is kept as retired or declined.
        """
        newer = next((expert.uid for expert in self._experts.values() if uid in expert.ancestors), None)
        if newer is not None:
            raise Refused(f"the expert {uid} was succeeded here by {newer}", hint="Roll that one back first.")
        if (kept := self._retired.get(uid)) is not None:
            raise Refused(f"the expert {uid} is kept here already, as {kept.standing}")

    async def keep(self, uid: ExpertUid) -> None:
        """Host a replica for a reason of this node's own from now on, also if it came by placement.

        Raises UnknownExpert if it is not hosted here, or not as current.
        """
        if (expert := self._current(uid)).placed:
            expert.placed = False
            await asyncio.to_thread(self._state.keep, uid)

    async def drop(self, uid: ExpertUid, *, unwanted: bool) -> None:
        """Host an expert no more, nor its retired and declined kin; `unwanted` ones are not to come back by themselves.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
            Refused: It is in training.
        """
        expert = self._current(uid)
        async with expert.changed:
            self._current(uid)
            check_idle(expert)
            family = [kept.uid for kept in self._retired.values() if kept.uid in expert.line or uid in kept.line]
            # Averaged and advertised is what is current here: that ends before the disk forgets it.
            del self._experts[uid]
            unwanted_at = self._now_s() if unwanted else None
            try:
                await asyncio.to_thread(self._state.drop, [uid, *family], unwanted_at=unwanted_at)
            except OSError:
                self._experts[uid] = expert
                raise
            for relative in family:
                del self._retired[relative]
            self.changed.set()

    async def retire(self, uid: ExpertUid) -> None:
        """Host an expert no more but as one to go back to, that answers whoever still asks for it by its uid.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
            Refused: It is in training.
        """
        expert = self._current(uid)
        async with expert.changed:
            self._current(uid)
            check_idle(expert)
            await asyncio.to_thread(self._state.retire, uid)
            expert.standing = "retired"
            self._retired[uid] = self._experts.pop(uid)
            self.changed.set()

    async def revive(self, uid: ExpertUid) -> None:
        """Host an expert again that was retired without a successor.

        Raises:
            UnknownExpert: It is not kept here as retired.
        """
        await asyncio.to_thread(self._state.revive, uid)
        expert = self._retired.pop(uid)
        expert.standing, expert.since, expert.placed = "current", self._now_s(), False
        self._experts[uid] = expert
        self.changed.set()

    async def erase(self, uid: ExpertUid) -> None:
        """Keep nothing of an expert, whatever its standing, and serve it no more; the mesh's replicas are not asked.

        Raises:
            Refused: It is in training.
        """
        expert = self.find(uid)
        # Nor is it ever to come back by itself, as what the mesh has too few of does.
        erase = partial(self._state.drop, [uid], unwanted_at=math.inf)
        if expert is None:  # one that this machine cannot build
            await asyncio.to_thread(erase)
            self._unusable.pop(uid, None)
            return
        async with expert.changed:
            check_idle(expert)
            await asyncio.to_thread(erase)
            self._experts.pop(uid, None)
            self._retired.pop(uid, None)
            self.changed.set()

    def _current(self, uid: ExpertUid) -> HostedExpert:
        try:
            return self._experts[uid]
        except KeyError:
            raise UnknownExpert(uid) from None

    def _ancestor(self, ancestors: Sequence[ExpertUid]) -> HostedExpert | None:
        """The newest of these that is retired here."""
        kept = [self._retired[uid] for uid in reversed(ancestors) if uid in self._retired]
        return next((expert for expert in kept if expert.standing == "retired"), None)

    async def _exchange(
        self, gone: HostedExpert, come: HostedExpert, standing: Standing, write: Callable[[], Generation | None]
    ) -> HostedExpert:
        """Write that one expert is current in another's place, and have it so here: never both, and never neither.

        Also where the waiting is cancelled: what is current on the disk has to be what is current here.
        """
        writing = asyncio.ensure_future(asyncio.to_thread(write))
        try:
            await asyncio.shield(writing)
        finally:
            if (first := await writing) is not None:
                come.generation, come.weights, come.committed_at = first.number, first.digest, first.created_at
            gone.standing, come.standing, come.since = standing, "current", self._now_s()
            self._retired.pop(come.uid, None)
            del self._experts[gone.uid]
            self._retired[gone.uid], self._experts[come.uid] = gone, come
            self.changed.set()
        return come


def check_idle(expert: HostedExpert) -> None:
    """Whether nothing is training it.

    Raises:
        Refused: Something is.
    """
    if expert.deltas is not None:
        raise Refused(f"the expert {expert.uid} is in training", hint="`meshnode status` shows when it no longer is.")
