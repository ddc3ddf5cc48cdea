"""Tidying: the mesh does without experts that say what others say, or that nobody asks, and keeps what they know.

Two ways lead there, for any expert that others answer for all classes of:

- *Merged*: another expert of the same classes says the same (mean total variation on held-out images). One node of
  those that hold either compares the two, and has the one that tells more about classes learn what the other one knows.
- *Unused*: it gets next to no gate mass and adds next to nothing to I(E;C), for as long as a lease. Then one node of
  those that hold it has the experts learn what it knows that answer for its classes.

What a node finds it says in its record (`protocol.records.SpareExpert`), and an expert goes only once all that hold it
say so: a node that has images of all its classes after a look of its own, any other one once all the others do. Whose
turn it is to do what is to be done once follows from the records (`protocol.placement.turn_among`). Where it was
learned it stays on the disk, as retired; replicas that were placed are dropped.

Nothing is lost by a kill: what was learned is one generation, and until its row is written the same is done again.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from experts.continual.redundancy import PruneVerdict, RedundancyConfig, judge_usage
from experts.errors import ExpertsError
from meshnode.directory import Directory
from meshnode.dropping import Dropping, family_of
from meshnode.errors import NodeError
from meshnode.hosting import ExpertHost
from meshnode.listings import ExpertListing
from meshnode.logs import get_logger
from meshnode.spare import MERGED, TOLD, UNUSED, Spare, TidyConfig, by_information, standing_in
from meshnode.state.rows import Reached, SpareRow
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.handing import Handed, Handing
from meshnode.trainer.process import TrainerDied
from meshnode.trainer.service import Trainer
from protocol.errors import ModuleMeshError
from protocol.identifiers import ExpertUid, PeerId
from protocol.limits import MAX_SPARE_PER_RECORD
from protocol.placement import turn_among
from protocol.records import SpareExpert

__all__ = ["Tidying"]

log = get_logger(__name__)


class _Waiting(NamedTuple):
    """Something that is to be done once in the mesh, seen since a moment."""

    since_s: float
    turn: int


@dataclass(kw_only=True, slots=True)
class Tidying:
    """Finds what the mesh can do without, and does without it, while `run` runs.

    Attributes:
        handing: Compares experts and distils; None where training is off.
        let_go: Waits until no round of an expert is under way.
        announce: Has the node's record published anew.
        now_s: The DHT's clock, in seconds since the epoch.
    """

    me: PeerId
    state: State
    host: ExpertHost
    directory: Directory
    dropping: Dropping
    trainer: Trainer | None
    handing: Handing | None
    let_go: Callable[[ExpertUid], Awaitable[None]]
    config: TidyConfig
    now_s: Callable[[], float]
    announce: Callable[[], None] = lambda: None
    telemetry: Telemetry = field(default_factory=Telemetry)
    _looked: asyncio.Event = field(default_factory=asyncio.Event)
    _said: tuple[SpareExpert, ...] = ()
    _reached: dict[ExpertUid, Reached | None] = field(default_factory=dict)
    """The training run that each expert held when it was looked at last."""
    _waiting: dict[tuple[ExpertUid, ExpertUid], _Waiting] = field(default_factory=dict)
    _waited: dict[tuple[ExpertUid, ExpertUid], _Waiting] = field(default_factory=dict)
    """What is to be done once, by the experts concerned: as of this look, and as of the last one."""
    _again_at_s: dict[tuple[ExpertUid, ExpertUid], float] = field(default_factory=dict)
    """When two experts that were held against each other may be again."""

    def look_again(self) -> None:
        """The directory was read anew."""
        self._looked.set()

    async def run(self) -> None:
        """Tidy for ever."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            await self.step()

    async def step(self) -> None:
        """Do what it is time for."""
        self._waited, self._waiting = self._waiting, {}
        for uid in (*self.state.ledger.spare().keys() - self.host.experts.keys(), *self.host.experts):
            await self._trying(uid, self._note)
        for uid in tuple(self.directory.spare()):
            await self._trying(uid, self._follow)
        for uid in tuple(self.directory.current()):
            await self._trying(uid, self._merge)
        for uid in tuple(self.host.experts):
            await self._trying(uid, self._preserve)
            await self._trying(uid, self._give_up)
        if self._said != (says := self.says()):
            self._said = says
            self.announce()

    def says(self) -> tuple[SpareExpert, ...]:
        """What this node's record says, of experts that are still advertised."""
        found = [row for row in self.state.ledger.spare().values() if row.uid in self.directory.experts()]
        due = [row for row in found if row.cause != UNUSED or self._left_s(row) <= 0]
        return tuple(SpareExpert(uid=row.uid, handed_on=row.handed_on) for row in due[:MAX_SPARE_PER_RECORD])

    def spare(self) -> tuple[Spare, ...]:
        """What the mesh could do without, as far as this node is concerned, and what it waits for."""
        names = {record.peer_id: record.peer_name for record in self.directory.records()}
        told = self.directory.spare()
        found = []
        for row in self.state.ledger.spare().values():
            listing = self.directory.experts().get(row.uid)
            holding_on = [] if listing is None else sorted(listing.holders - told.get(row.uid, {}).keys() - {self.me})
            found.append(
                Spare(
                    row=row,
                    left_s=max(0.0, self._left_s(row)) if row.cause == UNUSED else 0.0,
                    holding_on=tuple(names.get(peer_id, peer_id) for peer_id in holding_on),
                    is_gone=listing is None and row.uid not in self.host.experts,
                )
            )
        return tuple(found)

    async def _trying(self, uid: ExpertUid, step: Callable[[ExpertUid], Awaitable[None]]) -> None:
        try:
            await step(uid)
        except (ModuleMeshError, NodeError, ExpertsError, TrainerDied, OSError) as failure:
            log.info("the mesh cannot do without an expert yet", expert=uid, reason=str(failure))

    # --- what is unused, and what no longer is ---

    async def _note(self, uid: ExpertUid) -> None:
        """Begin the lease of an expert that is unused; take back what does not hold any more of one that is there."""
        row, expert = self._row(uid), self.host.experts.get(uid)
        verdict = None if expert is None else self.verdict(uid)
        has_learned = False
        if expert is not None:
            has_learned = self._reached.setdefault(uid, expert.reached) != expert.reached
            self._reached[uid] = expert.reached
        if row is not None and uid in self.directory.experts() and (has_learned or not self._holds(row, verdict)):
            await asyncio.to_thread(self.state.ledger.drop_spare, uid)
        elif row is None and verdict is not None and verdict.verdict == "prune" and not has_learned:
            await self._write(SpareRow(uid=uid, since=self.now_s(), cause=UNUSED))

    def verdict(self, uid: ExpertUid) -> PruneVerdict | None:
        """Whether an expert hosted here is used, by the gates on this node's own images; None if these do not tell."""
        measured = self.trainer.specialization if self.trainer else None
        listing = family_of(self.directory, uid)
        if measured is None or listing is None or uid not in measured.uids:
            return None
        seen = {name for name, count in zip(measured.classes, measured.num_samples_C.tolist(), strict=True) if count}
        if not seen.issuperset(listing.classes):
            return None
        others: dict[str, tuple[str, ...]] = {
            one.uid: one.classes for one in self._stand_ins(listing) if one.uid in measured.uids
        }
        verdicts = judge_usage(measured, {**others, uid: listing.classes}, self._limits())
        return next(verdict for verdict in verdicts if verdict.uid == uid)

    def _holds(self, row: SpareRow, verdict: PruneVerdict | None) -> bool:
        if row.cause == UNUSED:
            return verdict is None or verdict.verdict == "prune"
        if row.cause == TOLD:
            return self._all_others_say(row.uid)
        stays = None if row.instead is None else family_of(self.directory, row.instead)
        # Two nodes that have each merged one into the other: the lower uid stays.
        crossed = stays is not None and bool(self._others_say(stays.uid)) and row.uid < stays.uid
        return stays is not None and not crossed

    # --- what others say ---

    async def _follow(self, uid: ExpertUid) -> None:
        """Say it too of what is hosted here, if this node finds the same, or has nothing to tell it by."""
        says = any(one.uid == uid for one in self.says())
        if uid not in self.host.experts or says or not self._others_say(uid):
            return
        if not self._can_tell(uid):
            if self._all_others_say(uid):
                await self._write(SpareRow(uid=uid, since=self.now_s(), cause=TOLD))
            return
        listing = family_of(self.directory, uid)
        same = [] if listing is None else [one for one in self._stand_ins(listing) if one.classes == listing.classes]
        for other in same:
            if self.handing is not None and self._may_compare(uid, other.uid):
                found = await self.handing.compare(uid, other.uid)
                if found.objection(self.config.margin) is None:
                    await self._write(SpareRow(uid=uid, since=self.now_s(), cause=MERGED, instead=other.uid))
                    return

    def _can_tell(self, uid: ExpertUid) -> bool:
        """Whether this node has to look for itself: it has images of all of the expert's classes, or may have."""
        if self.trainer is None:
            return False
        if self.trainer.status.state == "starting":
            return True
        known = {name for task in self.trainer.learned_files for name in task.classes}
        return known.issuperset(self.host.get(uid).classes)

    def _others_say(self, uid: ExpertUid) -> set[PeerId]:
        return set(self.directory.spare().get(uid, {})) - {self.me}

    def _all_others_say(self, uid: ExpertUid) -> bool:
        listing, saying = self.directory.experts().get(uid), self._others_say(uid)
        return bool(saying) and listing is not None and listing.holders - {self.me} <= saying

    # --- merging ---

    async def _merge(self, uid: ExpertUid) -> None:
        """Have one of two experts of the same classes that say the same know what both know."""
        first, handing = self.directory.current().get(uid), self.handing
        if first is None or handing is None:
            return
        for other in tuple(self.directory.current().values()):
            is_pair = other.uid > uid and other.classes == first.classes and not self._is_spoken_of(uid, other.uid)
            if not is_pair or not self._is_my_turn(uid, other.uid, first.holders | other.holders):
                continue
            if self._may_compare(uid, other.uid):
                measured = self.trainer.specialization if self.trainer else None
                goes, stays = by_information(measured, (first, other))
                done = await handing.hand_on(goes.uid, stays.uid, max_difference=self.config.max_difference)
                await self._merged(goes, stays, done)

    async def _merged(self, goes: ExpertListing, stays: ExpertListing, done: Handed) -> None:
        reason = done.objection(self.config.margin)
        if reason is not None or not done.has_learned:
            log.debug("two experts are not merged", experts=(goes.uid, stays.uid), reason=reason)
            return
        row = SpareRow(uid=goes.uid, since=self.now_s(), cause=MERGED, instead=stays.uid, handed_on=True)
        await self._write(row)
        facts = {"classes": goes.classes, **done.facts()}
        self.telemetry.events.emit("experts_merged", expert=stays.uid, instead_of=goes.uid, **facts)

    def _is_spoken_of(self, *uids: ExpertUid) -> bool:
        """Whether somebody does without one of these, or is about to."""
        rows = [self._row(uid) for uid in uids]
        return any(self.directory.spare().get(uid) for uid in uids) or any(row and row.cause != UNUSED for row in rows)

    # --- retiring ---

    async def _preserve(self, uid: ExpertUid) -> None:
        """Have those that answer for its classes learn what an unused expert knows, if nobody has yet."""
        listing, row = self.directory.experts().get(uid), self._row(uid)
        if listing is None or row is None or self._is_handed_on(uid) or not self.directory.is_let_go(listing):
            return
        if self.handing is None or not self._can_tell(uid):
            return
        if not self._is_my_turn(uid, uid, listing.holders) or not self._may_compare(uid, uid):
            return
        for other in self._stand_ins(listing):
            if len({*other.classes} & {*listing.classes}) > 1:
                reason = (await self.handing.hand_on(uid, other.uid)).objection(self.config.margin)
                if reason is not None:
                    log.info("an unused expert stays: what it knows cannot be handed on", expert=uid, reason=reason)
                    return
        await self._write(replace(row, handed_on=True))

    async def _give_up(self, uid: ExpertUid) -> None:
        """Host an expert no more that all do without, once what it knows is with others, and these are there."""
        listing = self.directory.experts().get(uid)
        row, expert = self._row(uid), self.host.experts.get(uid)
        if listing is None or row is None or expert is None or expert.deltas is not None:
            return
        if not self.directory.is_let_go(listing) or not self._is_handed_on(uid):
            return
        there = [one for one in self._stand_ins(listing) if await self._is_there(one)]
        if not {*listing.classes} <= {name for one in there for name in one.classes}:
            return
        await self.let_go(uid)
        keeps = not expert.placed or listing.holders <= {self.me}
        await (self.host.retire(uid) if keeps else self.host.drop(uid, unwanted=False))
        instead = [one.uid for one in there]
        self.telemetry.events.emit(
            "expert_retired", expert=uid, classes=expert.classes, cause=row.cause, instead=instead, kept=keeps
        )

    def _is_handed_on(self, uid: ExpertUid) -> bool:
        row = self._row(uid)
        return bool(row and row.handed_on) or any(one.handed_on for one in self.directory.spare().get(uid, {}).values())

    async def _is_there(self, listing: ExpertListing) -> bool:
        """Whether somebody answers for it: a record may outlive its peer."""
        here = any(kin.uid in self.host.experts for kin in listing.family)
        return here or await self.dropping.num_others(listing) > 0

    # --- what is where ---

    def _stand_ins(self, listing: ExpertListing) -> list[ExpertListing]:
        """Current experts that share classes with this one and stay: of those spoken of the lower uid goes first."""
        spoken_of = self.directory.spare()
        return [
            one
            for one in standing_in(listing, self.directory.current().values())
            if one.uid not in spoken_of or one.uid > listing.uid
        ]

    def _row(self, uid: ExpertUid) -> SpareRow | None:
        return self.state.ledger.spare().get(uid)

    async def _write(self, row: SpareRow) -> None:
        await asyncio.to_thread(self.state.ledger.put_spare, row)

    def _left_s(self, row: SpareRow) -> float:
        return row.since + self.config.lease_s - self.now_s()

    def _is_my_turn(self, uid: ExpertUid, other: ExpertUid, peers: frozenset[PeerId]) -> bool:
        """Whether this node is to do now what concerns two experts, or one, and is to be done once."""
        turn = turn_among(self.me, uid, peers)
        if turn is None:
            return False
        before = self._waited.get((uid, other))
        waiting = before if before is not None and before.turn == turn else _Waiting(self.now_s(), turn)
        self._waiting[uid, other] = waiting
        return self.now_s() >= waiting.since_s + turn * self.config.slot_s

    def _may_compare(self, one: ExpertUid, other: ExpertUid) -> bool:
        """Whether two experts have not been held against each other for a while; they are from now on."""
        if self.now_s() < self._again_at_s.get((one, other), -math.inf):
            return False
        self._again_at_s[one, other] = self.now_s() + self.config.every_s
        return True

    def _limits(self) -> RedundancyConfig:
        return RedundancyConfig(max_usage=self.config.max_usage, max_information_nats=self.config.max_information_nats)
