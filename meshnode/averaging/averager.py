"""Averages every replica this node hosts with its peers' replicas, round after round: theta_i = (1/M) sum_j theta_i^j.

A round begins whenever the DHT's time passes a multiple of the period. Every member works out the group from the
records it has seen; an attempt that some members cannot take part in is made again by the others.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from experts.averaging import Averaged, codec_named
from meshnode.averaging.budget import Candidate, RoundBudget
from meshnode.averaging.driver import AttemptResult, RoundDriver, Talk
from meshnode.averaging.exchange import Exchanges
from meshnode.averaging.settings import AveragerConfig
from meshnode.beside import beside
from meshnode.directory import Directory
from meshnode.hosting import ExpertHost
from meshnode.pacing import Pacer
from meshnode.telemetry import Telemetry
from meshnode.transport.interface import Transport
from protocol.errors import MalformedMessage, MalformedTensor
from protocol.framing import Announced, Frame
from protocol.identifiers import Digest, ExpertUid, PeerId
from protocol.limits import MAX_ROUND_MEMBERS
from protocol.membership import replicas_of, round_number, round_start
from protocol.messages import (
    Ack,
    RoundAnswer,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundParts,
    RoundProposal,
    RoundTalk,
    RoundTalkReply,
    RoundWord,
)
from protocol.mixing import cycle_of, group_in_round
from protocol.rounds import AbandonReason, AttestationReceived, OutcomeAsked, ProposalReceived

__all__ = ["Averager", "Hooks"]

MAX_REMEMBERED_ROUNDS = 512
"""Ended rounds whose outcome is still answered, and rounds that peers began and we have not: oldest go first."""

MAX_ATTEMPTS = 3
"""Of one round: with all, without those that cannot, and once more for members that saw different ones fail."""

LEAST_SHARE = 0.4
"""Share of an attempt's time that must be left for another: a silent member has cost half of the round's."""

LET_GO_S = 0.1
"""Pause between two looks at whether a round has ended."""

V = TypeVar("V")
ApplyRound = Callable[[ExpertUid, Averaged, int], Awaitable[None]]
"""(expert, what the round came to, the round's number)."""

CatchUp = Callable[[ExpertUid], Awaitable[None]]
"""Brings a replica that has missed rounds to the others' state."""


class _Doubt(NamedTuple):
    """A round that ended here in silence: others may have committed it."""

    round_id: RoundId
    members: tuple[PeerId, ...]
    origin: Digest
    """Of the replica that went in."""
    averaged: Averaged


class _Group(NamedTuple):
    """Whom a replica is averaged with in a round."""

    members: tuple[PeerId, ...]
    cycle: int
    """Rounds that what one of the replicas learned takes to come to all."""
    is_whole: bool
    """Whether these are all replicas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What a node gives its averager.

    Attributes:
        apply: Commits what a round came to, to a hosted expert and to its training, if any.
        catch_up: Pulls what others have averaged without it.
        weight: What this node's replica counts for in a mean.
        pacer: What rounds may send.
    """

    apply: ApplyRound
    catch_up: CatchUp
    weight: Callable[[ExpertUid], float]
    pacer: Pacer


class Averager:
    """Takes part in rounds and answers what members ask about them."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        host: ExpertHost,
        config: AveragerConfig,
        hooks: Hooks,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._host = host
        self._config = config
        self._hooks = hooks
        self._telemetry = telemetry or Telemetry()
        self._codec = codec_named(config.compression)
        self._talk: Talk = Talk(self._say, wait_s=0.0)
        self._exchanges = Exchanges(transport, self._codec, timeout_s=config.attempt_s)
        self._budget = RoundBudget(hooks.pacer, config.period_s)
        self._drivers: dict[RoundId, RoundDriver] = {}
        self._early: dict[RoundId, dict[PeerId, ProposalReceived]] = {}
        self._under_way: set[ExpertUid] = set()
        self._doubts: dict[ExpertUid, _Doubt] = {}
        self._moving_until: dict[ExpertUid, int] = {}
        """Number of the first round that has nothing left to pass on, by expert."""
        self.results: Counter[str] = Counter()
        """Attempts by result: "committed", or why they were abandoned. Those with nothing to do are not counted."""
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
        # An expert whose last round is still under way sits this one out: a snapshot taken before that round's
        # delta is in would bring the same difference into the mean a second time.
        groups = {uid: self._group(uid, number) for uid in self._host.experts.keys() - self._under_way}
        groups = {uid: group for uid, group in groups.items() if len(group.members) > 1}
        dirty = {uid for uid in groups if self._is_dirty(uid, number)}
        affordable = self._budget.choose(self._candidate(uid, number, groups[uid].members) for uid in dirty)
        async with asyncio.TaskGroup() as experts:
            for uid, group in groups.items():
                self._under_way.add(uid)
                is_ready = uid not in dirty or uid in affordable
                average = self._average(uid, number, group, experts, is_ready=is_ready)
                experts.create_task(average, name=f"average {uid[:12]}")

    def _group(self, uid: ExpertUid, number: int) -> _Group:
        """Whom this node averages the expert with; nobody if it is not known to hold it yet."""
        config, me = self._config, self._transport.peer_id
        replicas = replicas_of(uid, self._directory.records(), number=number, period_s=config.period_s)
        if me not in replicas:
            return _Group((), 0, is_whole=False)
        members = group_in_round(me, replicas, number, method=config.method, most=config.group)
        cycle = cycle_of(len(replicas), method=config.method, most=config.group)
        return _Group(members, cycle, is_whole=members == replicas)

    def _candidate(self, uid: ExpertUid, number: int, members: Sequence[PeerId]) -> Candidate:
        num_parameters = self._host.get(uid).num_parameters
        dtype, length = self._codec.payload_header(num_parameters)
        # Parts for the others, and the means of the own slice.
        num_bytes = 2 * length * np.dtype(dtype).itemsize * (len(members) - 1) // len(members)
        return Candidate(uid, number - self._host.get(uid).round, num_bytes)

    def _is_dirty(self, uid: ExpertUid, number: int) -> bool:
        """Whether the replica changed enough, or is still on its way to the mean of all."""
        is_moving = number < self._moving_until.get(uid, 0)
        return is_moving or self._host.get(uid).drift >= self._config.min_drift

    async def let_go(self, uid: ExpertUid) -> None:
        """Wait until no round of an expert is under way, and forget what was in doubt: it is about to be dropped."""
        while uid in self._under_way:  # noqa: ASYNC110 - seconds, seldom
            await asyncio.sleep(LET_GO_S)
        self._doubts.pop(uid, None)
        self._moving_until.pop(uid, None)

    async def _average(
        self, uid: ExpertUid, number: int, group: _Group, tasks: asyncio.TaskGroup, *, is_ready: bool
    ) -> None:
        try:
            if await self._resolve_doubt(uid):
                await self._run_attempts(uid, number, group, tasks, is_ready=is_ready)
        finally:
            self._under_way.discard(uid)

    async def _run_attempts(
        self, uid: ExpertUid, number: int, group: _Group, tasks: asyncio.TaskGroup, *, is_ready: bool
    ) -> None:
        members, until_s = group.members, time.monotonic() + self._config.timeout_s
        for attempt in range(MAX_ATTEMPTS):
            round_id, began_s = RoundId(uid, number, attempt), time.monotonic()
            timeout_s = min(self._config.attempt_s, until_s - began_s)
            if timeout_s < LEAST_SHARE * self._config.attempt_s:
                return
            proposal = self._propose(round_id, members, is_ready=is_ready, is_whole=group.is_whole)
            result = await self._attempt(proposal, group.cycle, tasks, timeout_s=timeout_s)
            self._count(round_id, members, result)
            abandoned = result.abandoned
            if abandoned is None or abandoned.reason is not AbandonReason.NOTHING_TO_DO:
                self._telemetry.instruments.averaging_duration.observe(time.monotonic() - began_s)
            if abandoned is None:
                return
            if abandoned.doubtful and result.averaged is not None and len(abandoned.left_out) == len(members) - 1:
                self._doubts[uid] = _Doubt(round_id, members, proposal.origin, result.averaged)
            if self._transport.peer_id in abandoned.left_out:
                if abandoned.reason is AbandonReason.STALE:
                    await self._hooks.catch_up(uid)
                return
            members = tuple(member for member in members if member not in abandoned.left_out)
            is_worth_it = abandoned.left_out or abandoned.reason is AbandonReason.DIFFERING_VIEWS
            if not is_worth_it or len(members) < 2:
                return

    def _propose(
        self, round_id: RoundId, members: tuple[PeerId, ...], *, is_ready: bool, is_whole: bool
    ) -> RoundProposal:
        expert = self._host.get(round_id.expert)
        return RoundProposal(
            round=round_id,
            members=members,
            whole=is_whole,
            ready=is_ready,
            dirty=self._is_dirty(round_id.expert, round_id.number),
            base=expert.round,
            origin=expert.origin,
            settings=self._config.agreement,
            reference=expert.reference_digest,
            weight=self._hooks.weight(round_id.expert),
        )

    async def _attempt(
        self, proposal: RoundProposal, cycle: int, tasks: asyncio.TaskGroup, *, timeout_s: float
    ) -> AttemptResult:
        uid, number = proposal.round.expert, proposal.round.number
        driver = RoundDriver(self._transport.peer_id, proposal, self._talk, self._exchanges, timeout_s=timeout_s)
        _remember(self._drivers, proposal.round, driver)
        expert = self._host.get(uid)
        reference = expert.reference

        async def reference_of(proposals: Sequence[RoundProposal]) -> np.ndarray | None:
            if self._codec.name == "none":
                return None
            shared = {proposal.reference for proposal in proposals}
            if len(shared) == 1 and None not in shared:
                return reference
            return await asyncio.to_thread(self._host.initial, uid)

        async def commit(averaged: Averaged) -> None:
            await self._apply(uid, averaged, number, proposal.origin)
            # One that was moved has news of others, and passes it on along the other axes.
            if await beside(len(averaged.delta), _moved, averaged, self._config.min_drift):
                self._moving_until[uid] = number + cycle

        return await driver.run(
            await self._host.snapshot_beside(uid),
            reference_of,
            early=list(self._early.pop(proposal.round, {}).values()),
            commit=commit,
            tasks=tasks,
        )

    async def _resolve_doubt(self, uid: ExpertUid) -> bool:
        """Find out how a round ended that this node heard nothing more of. False while nobody answers."""
        doubt = self._doubts.get(uid)
        if doubt is None:
            return True
        others = [member for member in doubt.members if member != self._transport.peer_id]
        queries = [self._talk.send(member, RoundOutcomeQuery(round=doubt.round_id)) for member in others]
        answers = await asyncio.gather(*queries, return_exceptions=True)
        outcomes = {answer.outcome for answer in answers if isinstance(answer, RoundOutcome)}
        if not outcomes:
            return False
        del self._doubts[uid]
        if "committed" in outcomes:
            await self._apply(uid, doubt.averaged, doubt.round_id.number, doubt.origin)
        return True

    async def _apply(self, uid: ExpertUid, averaged: Averaged, number: int, origin: Digest) -> None:
        """Commit what a round came to, unless the replica that went in has gone from here meanwhile.

        An expert that was rolled back and carried over anew has the same uid, and weights of another origin.
        """
        if self._host.get(uid).origin == origin:
            await self._hooks.apply(uid, averaged, number)

    def _count(self, round_id: RoundId, members: tuple[PeerId, ...], result: AttemptResult) -> None:
        uid, number, events = round_id.expert, round_id.number, self._telemetry.events
        if result.abandoned is None:
            self.results["committed"] += 1
            self.last_committed[uid] = (number, members)
            self._telemetry.instruments.averaging_group_peers.set(len(members))
            events.emit("round_committed", level="debug", expert=uid, round=number, members=len(members))
        elif result.abandoned.reason is not AbandonReason.NOTHING_TO_DO:
            reason = str(result.abandoned.reason)
            self.results[reason] += 1
            events.emit("round_abandoned", expert=uid, round=number, reason=reason)

    def waiting(self) -> tuple[ExpertUid, ...]:
        """Hosted experts that changed enough to be averaged, sorted."""
        drifts = {uid: expert.drift for uid, expert in self._host.experts.items()}
        return tuple(sorted(uid for uid, drift in drifts.items() if drift >= self._config.min_drift))

    async def _say(self, peer_id: PeerId, words: Sequence[RoundWord]) -> Sequence[RoundAnswer]:
        timeout_s = self._config.attempt_s / 2
        reply = (await self._transport.call(peer_id, Frame(RoundTalk(tuple(words))), timeout_s=timeout_s)).message
        if not isinstance(reply, RoundTalkReply) or len(reply.answers) != len(words):
            raise MalformedMessage("RoundTalkReply", reason="an answer to each word is expected")
        return reply.answers

    def admit(self, announced: Announced) -> None:
        """Refuse parts by their header.

        Raises:
            UnknownExpert: One is of an expert that is not hosted here.
            MalformedTensor: They are more than all of their experts' parameters.
        """
        assert isinstance(announced.message, RoundParts)
        num_parameters = sum(self._host.get(round_id.expert).num_parameters for round_id in announced.message.rounds)
        if announced.body_bytes > 4 * num_parameters:
            raise MalformedTensor("part.0", "parts are slices of the parameters")

    async def answer(self, sender: PeerId, request: Frame) -> Frame:
        """Answer a member's words about rounds, or its parts.

        Raises:
            ModuleMeshError: As `Exchanges.answer`.
        """
        message = request.message
        if isinstance(message, RoundParts):
            return await self._exchanges.answer(sender, message, request.tensors)
        assert isinstance(message, RoundTalk)
        return Frame(RoundTalkReply(tuple(self._hear(sender, word) for word in message.words)))

    def _hear(self, sender: PeerId, word: RoundWord) -> RoundAnswer:
        driver = self._drivers.get(word.round)
        match word:
            case RoundProposal():
                heard = ProposalReceived(sender, word)
                if driver is not None:
                    driver.feed(heard)
                    return driver.round.proposal
                early = self._early.get(word.round, {})
                if len(early) < MAX_ROUND_MEMBERS:
                    _remember(self._early, word.round, early | {sender: heard})
                return Ack()
            case RoundAttestation():
                if driver is None:
                    return RoundOutcome(round=word.round, outcome="unknown")
                driver.feed(AttestationReceived(sender, word.full, frozenset(word.missing)))
                acknowledged = driver.round.acknowledges
                return Ack() if acknowledged else RoundOutcome(round=word.round, outcome=driver.round.outcome)
            case RoundOutcomeQuery():
                if driver is None:
                    return RoundOutcome(round=word.round, outcome="unknown")
                driver.feed(OutcomeAsked(sender))
                return RoundOutcome(round=word.round, outcome=driver.round.outcome)


def _moved(averaged: Averaged, min_drift: float) -> bool:
    return bool(np.linalg.norm(averaged.delta) >= min_drift * np.linalg.norm(averaged.mean))


def _remember(memory: dict[RoundId, V], round_id: RoundId, value: V) -> None:
    memory[round_id] = value
    while len(memory) > MAX_REMEMBERED_ROUNDS:
        del memory[next(iter(memory))]
