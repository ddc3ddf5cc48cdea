"""Drives one attempt of a round: carries out what the state machine of `protocol.rounds` asks for, over a transport.

The machine decides; this file only sends, waits and reports back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from experts.averaging import Averaged
from meshnode.averaging.exchange import Exchanges, Member
from meshnode.averaging.gathering import Gatherer
from protocol.errors import ModuleMeshError
from protocol.identifiers import PeerId
from protocol.messages import (
    Ack,
    RoundAnswer,
    RoundAttestation,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundProposal,
    RoundWord,
)
from protocol.rounds import (
    Abandon,
    Action,
    AskOutcome,
    AttestationDelivered,
    Commit,
    DeadlinePassed,
    Event,
    Exchange,
    ExchangeFinished,
    OutcomeLearned,
    OutcomeUnanswered,
    ProposalReceived,
    Round,
    SendAttestation,
    SendProposal,
)

__all__ = ["AttemptResult", "RoundDriver", "Talk"]

RESEND_S = 0.1
"""Pause before a message that did not get through is sent again."""

PROPOSALS_SHARE = 0.4
"""Share of the deadline by which all have to have proposed: before parts are found missing."""

EXCHANGE_SHARE = 0.7
"""Share of the deadline by which parts have to be here; the rest is for answers and attestations."""

GRACE_SHARE = 0.2
"""Answers about the outcome are awaited for this share of the deadline's time after it."""

ReferenceOf = Callable[[Sequence[RoundProposal]], Awaitable[np.ndarray | None]]
"""Parameters that members with these proposals hold alike; None without compression."""

Talk = Gatherer[PeerId, RoundWord, RoundAnswer]
"""Says words about rounds to peers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptResult:
    """How an attempt ended here."""

    averaged: Averaged | None
    """What was exchanged in full; it holds if the attempt was not abandoned."""
    abandoned: Abandon | None
    """Why nothing came of it; None when it was committed."""


class RoundDriver:
    """One attempt at this member.

    Args:
        me: This member.
        proposal: What it sees at the start.
        talk: Reaches the others.
        exchanges: Where parts are exchanged.
        timeout_s: Until when the others are awaited, in seconds from now.
    """

    def __init__(
        self, me: PeerId, proposal: RoundProposal, talk: Talk, exchanges: Exchanges, *, timeout_s: float
    ) -> None:
        self._me = me
        self._talk = talk
        self._exchanges = exchanges
        self._began_s = time.monotonic()
        self._timeout_s = timeout_s
        self._averaged: Averaged | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._exchanging: asyncio.Task[None] | None = None
        self._result: asyncio.Future[AttemptResult] = asyncio.get_running_loop().create_future()
        self._deadline_moved = asyncio.Event()
        self.round = Round(
            me,
            proposal,
            self._began_s + timeout_s,
            grace_s=GRACE_SHARE * timeout_s,
            proposals_by_s=self._began_s + PROPOSALS_SHARE * timeout_s,
        )

    async def run(
        self,
        vector: np.ndarray,
        reference: ReferenceOf,
        *,
        early: Sequence[ProposalReceived],
        commit: Callable[[Averaged], Awaitable[None]],
        tasks: asyncio.TaskGroup,
    ) -> AttemptResult:
        """Carry the attempt through.

        Args:
            vector: This member's parameters, float32 ``(P,)``.
            reference: What coded differences are relative to, by the members' proposals.
            early: What peers said before this member began.
            commit: Applies what was exchanged; awaited before anything else once the round is committed.
            tasks: What is said lives in it, and may go on being said to those that have not heard it when this returns.
        """
        self._exchange_as = partial(self._exchange, vector, reference)
        self._tasks = tasks
        watch = tasks.create_task(self._watch_deadline(), name="round deadline")
        self._perform(self.round.start(time.monotonic()))
        for event in early:
            self.feed(event)
        result = await self._result
        watch.cancel()
        if self._exchanging is not None:
            self._exchanging.cancel()  # of an attempt that somebody else has ended
        if result.abandoned is None:
            assert result.averaged is not None, "a round commits only after a full exchange of its own"
            await commit(result.averaged)
        # The driver is kept to answer for the outcome; what was exchanged is not needed for that.
        self._averaged, self._exchanging = None, None
        del self._exchange_as
        return result

    def feed(self, event: Event) -> None:
        """Tell the round what happened, and do at once what it asks for; nothing once `run` was cancelled."""
        if self._result.cancelled():  # this node stops, and members do not know it yet
            return
        self._perform(self.round.handle(event, time.monotonic()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendProposal():
                    self._tell_all(self.round.proposal)
                case Exchange():
                    self._exchanging = self._spawn(self._exchange_as(action.proposals))
                case SendAttestation():
                    missing = tuple(sorted(action.missing))
                    self._tell_all(RoundAttestation(round=self.round.round_id, full=action.full, missing=missing))
                case AskOutcome():
                    self._deadline_moved.set()
                    for peer_id in action.peers:
                        self._spawn(self._ask(peer_id))
                case Commit():
                    self._result.set_result(AttemptResult(averaged=self._averaged, abandoned=None))
                case Abandon():
                    self._result.set_result(AttemptResult(averaged=self._averaged, abandoned=action))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work, name=f"round {self.round.round_id.number}")

    def _tell_all(self, word: RoundWord) -> None:
        for peer_id in self.round.proposal.members:
            if peer_id != self._me:
                self._spawn(self._tell(peer_id, word))

    async def _tell(self, peer_id: PeerId, word: RoundWord) -> None:
        """Say it until it is acknowledged or nobody cares any more."""
        while True:
            try:
                answer = await self._talk.send(peer_id, word)
            except ModuleMeshError:  # whatever a peer answers with must not end this node's rounds
                if self.round.ended:
                    return
                await asyncio.sleep(RESEND_S)
                continue
            match answer:
                case RoundOutcome():
                    self.feed(OutcomeLearned(peer_id, answer.outcome))
                case RoundProposal():
                    self.feed(ProposalReceived(peer_id, answer))
                case Ack() if isinstance(word, RoundAttestation):
                    self.feed(AttestationDelivered(peer_id))
            return

    async def _ask(self, peer_id: PeerId) -> None:
        try:
            answer = await self._talk.send(peer_id, RoundOutcomeQuery(round=self.round.round_id))
        except ModuleMeshError:
            answer = Ack()
        if isinstance(answer, RoundOutcome):
            self.feed(OutcomeLearned(peer_id, answer.outcome))
        else:
            self.feed(OutcomeUnanswered(peer_id))

    async def _exchange(
        self,
        vector: np.ndarray,
        reference_of: ReferenceOf,
        proposals: Sequence[RoundProposal],
    ) -> None:
        members = [
            Member(peer, proposal.weight) for peer, proposal in zip(self.round.proposal.members, proposals, strict=True)
        ]
        exchanged = await self._exchanges.run(
            self.round.round_id,
            members,
            vector,
            await reference_of(proposals),
            timeout_s=max(0.0, self._began_s + EXCHANGE_SHARE * self._timeout_s - time.monotonic()),
        )
        self._averaged = exchanged.averaged
        self.feed(ExchangeFinished(exchanged.averaged is not None, exchanged.missing))

    async def _watch_deadline(self) -> None:
        while not self.round.ended:
            self._deadline_moved.clear()
            try:
                async with asyncio.timeout(max(0.0, self.round.deadline_s - time.monotonic())):
                    await self._deadline_moved.wait()
            except TimeoutError:
                self.feed(DeadlinePassed())
