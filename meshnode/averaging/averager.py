"""Averages every replica this node hosts with its peers' replicas, round after round: theta_i = (1/M) sum_j theta_i^j.

A round begins whenever the DHT's time passes a multiple of the period. Every member works out the group from the
records it has seen, and an attempt that a silent member spoils is made once more by the others.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from meshnode.averaging.driver import AttemptResult, RoundDriver
from meshnode.directory import Directory
from meshnode.hosting import ExpertHost
from meshnode.telemetry import Telemetry
from meshnode.transport.interface import Transport
from protocol.identifiers import ExpertUid, PeerId
from protocol.membership import group_of, round_number, round_start
from protocol.messages import (
    Ack,
    Message,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundProposal,
)
from protocol.rounds import AbandonReason, AttestationReceived, Event, OutcomeAsked, ProposalReceived

__all__ = ["Averager", "AveragerConfig"]

MAX_REMEMBERED_ROUNDS = 512
"""Ended rounds whose outcome is still answered, and rounds that peers began and we have not: oldest go first."""

V = TypeVar("V")
ApplyDelta = Callable[[ExpertUid, np.ndarray, int], Awaitable[None]]
"""(expert, delta, generation of the snapshot that went into the round)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragerConfig:
    period_s: float = 10.0
    """DHT time from one round to the next; the same at all members of a mesh, or they never meet."""
    timeout_s: float = 5.0
    """How long the others are awaited; at most the period."""


class Averager:
    """Takes part in rounds and answers what members ask about them.

    Args:
        apply: Commits a round's delta to a hosted expert (and to its training, if any).
        telemetry: Is told how rounds end and how long they take.
    """

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        host: ExpertHost,
        config: AveragerConfig,
        *,
        apply: ApplyDelta,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._host = host
        self._config = config
        self._apply = apply
        self._telemetry = telemetry or Telemetry()
        self._drivers: dict[RoundId, RoundDriver] = {}
        self._early: dict[RoundId, dict[PeerId, Event]] = {}
        self._under_way: set[ExpertUid] = set()
        self._missed: set[ExpertUid] = set()
        """Experts whose last round ended here in silence: the others may have committed it without us."""
        self.results: Counter[str] = Counter()
        """Rounds by result: "committed", or why they were abandoned. Rounds with nothing to do are not counted."""
        self.last_committed: dict[ExpertUid, tuple[int, tuple[PeerId, ...]]] = {}
        """Number and group of the last committed round, by expert."""

    async def run(self) -> None:
        """Take part in every round, for ever. One round may still be under way when the next begins."""
        async with asyncio.TaskGroup() as rounds:
            while True:
                period_s = self._config.period_s
                number = round_number(self._transport.now_s(), period_s) + 1
                # A timer may fire a little early (uvloop's count milliseconds), and a round must not begin twice.
                while (early_s := round_start(number, period_s) - self._transport.now_s()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(early_s)
                rounds.create_task(self.run_round(number), name=f"averaging round {number}")

    async def run_round(self, number: int) -> None:
        """Average every hosted expert that has other replicas, all at the same time."""
        async with asyncio.TaskGroup() as experts:
            # An expert whose last round is still under way sits this one out: a snapshot taken before that round's
            # delta is in would bring the same difference into the mean a second time.
            for uid in self._host.experts.keys() - self._under_way:
                self._under_way.add(uid)
                experts.create_task(self._average(uid, number), name=f"average {uid[:12]}")

    async def _average(self, uid: ExpertUid, number: int) -> None:
        try:
            await self._run_attempts(uid, number)
        finally:
            self._under_way.discard(uid)

    async def _run_attempts(self, uid: ExpertUid, number: int) -> None:
        records = self._directory.records()
        members = group_of(uid, records, number=number, period_s=self._config.period_s)
        for attempt in range(2):
            if self._transport.peer_id not in members or len(members) < 2:
                return
            began_s = time.monotonic()
            result = await self._attempt(RoundId(uid, number, attempt), members)
            self._count(uid, number, members, result)
            if result.abandoned is None or result.abandoned.reason is not AbandonReason.NOTHING_TO_DO:
                self._telemetry.instruments.averaging_duration.observe(time.monotonic() - began_s)
            self._note_whether_missed(uid, result)
            if result.abandoned is None or not result.abandoned.silent:
                return
            members = tuple(member for member in members if member not in result.abandoned.silent)

    async def _attempt(self, round_id: RoundId, members: tuple[PeerId, ...]) -> AttemptResult:
        uid = round_id.expert
        generation = self._host.get(uid).generation
        driver = RoundDriver(
            self._transport,
            round_id,
            members,
            self._host.snapshot(uid),
            timeout_s=self._config.timeout_s,
        )
        _remember(self._drivers, round_id, driver)

        async def commit(delta: np.ndarray) -> None:
            await self._apply(uid, delta, generation)

        early = list(self._early.pop(round_id, {}).values())
        dirty = self._host.get(uid).dirty or self._may_differ(uid, members)
        return await driver.run(dirty=dirty, early=early, commit=commit)

    def _may_differ(self, uid: ExpertUid, members: tuple[PeerId, ...]) -> bool:
        """Whether the others may have averaged without this replica: while it was away, or beyond its reach.

        It takes two others to do so; in a pair nobody can commit alone.
        """
        return len(members) > 2 and (uid in self._missed or uid not in self.last_committed)

    def _note_whether_missed(self, uid: ExpertUid, result: AttemptResult) -> None:
        if result.abandoned is None or result.abandoned.reason is AbandonReason.NOTHING_TO_DO:
            self._missed.discard(uid)
        elif result.abandoned.reason is not AbandonReason.DIFFERING_VIEWS:
            self._missed.add(uid)

    def _count(self, uid: ExpertUid, number: int, members: tuple[PeerId, ...], result: AttemptResult) -> None:
        if result.abandoned is None:
            self.results["committed"] += 1
            self.last_committed[uid] = (number, members)
            self._telemetry.instruments.averaging_group_peers.set(len(members))
            self._telemetry.events.emit(
                "round_committed", level="debug", expert=uid, round=number, members=len(members)
            )
        elif result.abandoned.reason is not AbandonReason.NOTHING_TO_DO:
            self.results[str(result.abandoned.reason)] += 1
            reason = str(result.abandoned.reason)
            self._telemetry.events.emit("round_abandoned", expert=uid, round=number, reason=reason)

    async def handle(self, sender: PeerId, message: RoundProposal | RoundAttestation | RoundOutcomeQuery) -> Message:
        """Answer a member's message about a round."""
        driver = self._drivers.get(message.round)
        match message:
            case RoundProposal():
                event = ProposalReceived(sender, message.group_digest, message.ready, message.dirty)
                if driver is None:
                    _remember(self._early, message.round, self._early.get(message.round, {}) | {sender: event})
                else:
                    driver.feed(event)
                return Ack()
            case RoundAttestation():
                if driver is None:
                    return RoundOutcome(round=message.round, outcome="unknown")
                driver.feed(AttestationReceived(sender, message.full))
                acknowledged = driver.round.acknowledges
                return Ack() if acknowledged else RoundOutcome(round=message.round, outcome=driver.round.outcome)
            case RoundOutcomeQuery():
                if driver is None:
                    return RoundOutcome(round=message.round, outcome="unknown")
                driver.feed(OutcomeAsked(sender))
                return RoundOutcome(round=message.round, outcome=driver.round.outcome)


def _remember(memory: dict[RoundId, V], round_id: RoundId, value: V) -> None:
    memory[round_id] = value
    while len(memory) > MAX_REMEMBERED_ROUNDS:
        del memory[next(iter(memory))]
