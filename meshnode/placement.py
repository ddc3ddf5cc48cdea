"""Placement: this node hosts what its mesh has too few replicas of, as far as it has room, and gives back what it has
too many of.

Whose turn it is follows from the records (`protocol.placement`); here are the clock, the weights and the memory of what
has been short, or too much, since when. Nothing is given back that this node learns or that its user has asked for.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from experts.errors import ExpertsError
from meshnode.directory import Directory
from meshnode.dropping import Dropping
from meshnode.errors import NodeError, Refused
from meshnode.hosted import HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.listings import ExpertListing
from meshnode.logs import get_logger
from meshnode.mesh import Mesh
from meshnode.replicas import Replicas
from meshnode.state.state import State
from protocol.errors import ModuleMeshError
from protocol.identifiers import ExpertUid, PeerId
from protocol.limits import MAX_EXPERTS_PER_RECORD
from protocol.placement import Adoption, KeptExpert, adopters, adoptions, surplus_turn, wait_s
from protocol.records import fitting

__all__ = ["Placement", "PlacementConfig", "Shortage"]

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementConfig:
    """How a node takes part in placement."""

    replicas: int = 2
    """Of each expert that the mesh is to have."""
    room: int = 16
    """Experts that are hosted here at most because of placement; 0 takes in none."""
    room_bytes: int = 256 * 2**20
    """The same in bytes of parameters."""
    slot_s: float = 15.0
    """Time of one turn: an adoption, and everybody's next look at the records."""
    surplus_s: float = 600.0
    """How long there have to be too many replicas before one is given back: longer than most restarts of a node."""
    unwanted_s: float = 6 * 3600.0
    """How long an expert that its user has dropped does not come back by placement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """An expert of which there are too few replicas, and why this is still so."""

    uid: ExpertUid
    num_holders: int
    reason: str


class _Turn(NamedTuple):
    """Something that this node is to do, seen since a moment."""

    turn: int
    since_s: float
    jitter: float


@dataclass(kw_only=True, slots=True)
class Placement:
    """Adopts and gives back while `run` runs.

    Attributes:
        now_s: The DHT's clock, in seconds since the epoch.
        rng: Draws how long turns are waited for.
        worth: What experts add to I(E;C), by uid, as far as it was measured here: of equally rare ones the one that
            tells most is adopted first, and the one that tells least given back first.
    """

    me: PeerId
    mesh: Mesh
    state: State
    host: ExpertHost
    directory: Directory
    replicas: Replicas
    dropping: Dropping
    config: PlacementConfig
    now_s: Callable[[], float]
    rng: random.Random
    worth: Callable[[], Mapping[str, float]] = dict
    _looked: asyncio.Event = field(default_factory=asyncio.Event)
    _short: dict[ExpertUid, _Turn] = field(default_factory=dict)
    _surplus: dict[ExpertUid, _Turn] = field(default_factory=dict)
    _failures: dict[ExpertUid, tuple[float, str]] = field(default_factory=dict)
    """Until when an expert is not tried again, and why it could not be adopted."""
    _sizes: dict[ExpertUid, int] = field(default_factory=dict)

    @property
    def room_bytes(self) -> int:
        """What this node says that it would still take in; what it would give back for it is not counted as taken."""
        if len(self.host.experts) >= MAX_EXPERTS_PER_RECORD:
            return 0
        spare = self._spare()
        return self._room([expert for expert in self._placed() if expert.uid not in spare])

    def look_again(self) -> None:
        """The directory was read anew."""
        self._looked.set()

    async def run(self) -> None:
        """Place for ever."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            await self.step()

    async def step(self) -> None:
        """Do what it is time for."""
        while (uid := self._next_adoption()) is not None:
            await self._adopt(uid)
        for uid in self._next_surplus():
            await self._give_back(uid)

    def kept(self, listing: ExpertListing) -> KeptExpert:
        """A current expert with who holds it; of itself this node knows better than its last record."""
        uid = listing.uid
        if uid not in self._sizes:
            form = listing.replicas[0].advert.form
            self._sizes[uid] = 4 * self.mesh.architecture(form, len(listing.classes)).num_parameters
        is_here = any(kin.uid in self.host.experts for kin in listing.family)
        holders = listing.holders - {self.me} | ({self.me} if is_here else set())
        worth = self.worth().get(uid, 0.0)
        return KeptExpert(uid=uid, num_bytes=self._sizes[uid], holders=holders, worth=worth)

    def rooms(self) -> dict[PeerId, int]:
        """Room of every live peer that has some, in bytes."""
        rooms = {record.peer_id: record.room_bytes for record in self.directory.records()}
        return {peer_id: room for peer_id, room in (rooms | {self.me: self.room_bytes}).items() if room > 0}

    def shortages(self) -> tuple[Shortage, ...]:
        """What there are too few replicas of, the rarest first."""
        names = {record.peer_id: record.peer_name for record in self.directory.records()}
        rooms, found = self.rooms(), list[Shortage]()
        for listing in self._current():
            kept = self.kept(listing)
            if (number := len(kept.holders)) < self.config.replicas:
                reason = self._why(kept, listing, rooms=rooms, names=names)
                found.append(Shortage(uid=kept.uid, num_holders=number, reason=reason))
        return tuple(sorted(found, key=lambda shortage: (shortage.num_holders, shortage.uid)))

    # --- adopting ---

    def _next_adoption(self) -> ExpertUid | None:
        """What this node is to adopt now."""
        now_s, families = self.now_s(), {listing.uid: listing for listing in self._current()}
        due, seen = None, dict[ExpertUid, _Turn]()
        experts = map(self.kept, families.values())
        for adoption in adoptions(self.me, experts, self.rooms(), replicas=self.config.replicas):
            # A peer whose turn has changed waits anew: what was before it may be doing its part just now.
            turn = self._turn(self._short.get(adoption.uid), adoption.turn, now_s)
            seen[adoption.uid] = turn
            is_due = due is None and self._is_due(adoption, turn, now_s)
            if is_due and self._objection(families[adoption.uid]) is None:
                due = adoption.uid
        self._short = seen
        return due

    def _is_due(self, adoption: Adoption, turn: _Turn, now_s: float) -> bool:
        # Nobody will hold it soon: the first ones do not wait to see whether others take themselves for the first.
        jitter = turn.jitter if adoption.num_holders else 0.0
        return now_s >= turn.since_s + wait_s(turn.turn, slot_s=self.config.slot_s, jitter=jitter)

    def _objection(self, listing: ExpertListing) -> str | None:
        """Why this node passes its turn."""
        now_s, family = self.now_s(), {kin.uid for kin in listing.family}
        dropped = self.state.ledger.dropped()
        if any(now_s < dropped[uid] + self.config.unwanted_s for uid in family & dropped.keys()):
            return "this node's user does not want it"
        if self.state.is_declined(listing.uid) or family & self.host.retired.keys():
            return "this node has gone back to another form, or does without it"
        until_s, failure = self._failures.get(listing.uid, (0.0, ""))
        if now_s < until_s:
            return f"it could not be pulled: {failure}"
        adverts = [expert.advert() for expert in self.host.experts.values()]
        if len(fitting((*adverts, listing.replicas[0].advert))) <= len(adverts):
            return "this node's record is full"
        return None

    async def _adopt(self, uid: ExpertUid) -> None:
        """Host a replica; one that cannot be had is tried again, and by those whose turn is next."""
        num_bytes, spare = self._sizes[uid], self._spare()
        try:
            while self._room(self._placed()) < num_bytes:
                if not spare:
                    raise Refused("there is no room for it any more")
                await self.dropping.drop(spare.pop(), least_others=self.config.replicas, asked=False)
            await self.replicas.pull(uid, placed=True)
        except (ModuleMeshError, NodeError, ExpertsError, OSError) as failure:
            if uid not in self._failures:
                log.warning("an expert of few replicas cannot be adopted yet", expert=uid, reason=str(failure))
            self._failures[uid] = (self.now_s() + self.config.slot_s, str(failure))
        else:
            self._failures.pop(uid, None)

    # --- giving back ---

    def _next_surplus(self) -> list[ExpertUid]:
        """What this node is to give back now."""
        now_s, config = self.now_s(), self.config
        due, seen = list[ExpertUid](), dict[ExpertUid, _Turn]()
        for uid, number in self._surplus_turns():
            turn = seen[uid] = self._turn(self._surplus.get(uid), number, now_s)
            wait = config.surplus_s + wait_s(turn.turn, slot_s=config.slot_s, jitter=turn.jitter)
            if now_s >= turn.since_s + wait:
                due.append(uid)
        self._surplus = seen
        return due

    async def _give_back(self, uid: ExpertUid) -> None:
        try:
            await self.dropping.drop(uid, least_others=self.config.replicas, asked=False)
        except (ModuleMeshError, NodeError, OSError) as failure:
            # The others are there in their records only, or a run has begun with it: it is needed here after all.
            log.debug("a replica is not given back", expert=uid, reason=str(failure))
            self._surplus.pop(uid, None)

    def _spare(self) -> list[ExpertUid]:
        """What could be given back at once if the room were needed, what tells least last."""
        worth = self.worth()
        return sorted((uid for uid, turn in self._surplus_turns() if turn == 0), key=lambda uid: -worth.get(uid, 0.0))

    def _surplus_turns(self) -> Iterator[tuple[ExpertUid, int]]:
        """Placed replicas here that the mesh has too many of, each with the turns to wait."""
        families = {kin.uid: listing for listing in self._current() for kin in listing.family}
        for expert in self._placed():
            family = families.get(expert.uid)
            if family is not None:
                turn = surplus_turn(self.me, self.kept(family), replicas=self.config.replicas)
                if turn is not None:
                    yield expert.uid, turn

    # --- what is where ---

    def _placed(self) -> list[HostedExpert]:
        return [expert for expert in self.host.experts.values() if expert.placed]

    def _room(self, placed: list[HostedExpert]) -> int:
        """Bytes that could be taken in beside these."""
        if len(placed) >= self.config.room:
            return 0
        return max(0, self.config.room_bytes - sum(expert.num_bytes for expert in placed))

    def _current(self) -> tuple[ExpertListing, ...]:
        """What is asked more than once must be asked of one view: a lease may end between two looks."""
        return tuple(one for one in self.directory.current().values() if not self.directory.is_let_go(one))

    def _turn(self, before: _Turn | None, turn: int, now_s: float) -> _Turn:
        if before is not None and before.turn == turn:
            return before
        return _Turn(turn, now_s, self.rng.random())

    def _why(
        self, kept: KeptExpert, listing: ExpertListing, *, rooms: dict[PeerId, int], names: dict[PeerId, str]
    ) -> str:
        if len(names.keys() | {self.me}) == 1:
            return "there is no other peer in the mesh"
        order = adopters(kept, rooms)
        if not order:
            return "no peer has room"
        if order[0] != self.me:
            return f"{names.get(order[0], order[0])} is to adopt it"
        objection = self._objection(listing)
        return "this node is about to adopt it" if objection is None else objection
