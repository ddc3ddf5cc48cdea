"""Drives one attempt of a round: carries out what the state machine of `protocol.rounds` asks for, over a transport.

The machine decides; this file only sends, waits and reports back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from meshnode.transport.interface import Reduced, ReduceGroup, Transport
from protocol.errors import ModuleMeshError
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.membership import group_digest
from protocol.messages import (
    Ack,
    Message,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundProposal,
)
from protocol.rounds import (
    Abandon,
    Action,
    AskOutcome,
    AttestationDelivered,
    Commit,
    DeadlinePassed,
    Event,
    ExchangeFinished,
    OutcomeLearned,
    OutcomeUnanswered,
    Round,
    RunAllReduce,
    SendAttestation,
    SendProposal,
)

__all__ = ["AttemptResult", "RoundDriver"]

RESEND_S = 0.1
"""Pause before a message that did not get through is sent again."""

REDUCE_SHARE = 0.6
"""Share of the deadline that the exchange may take; the rest is for proposals and attestations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptResult:
    """How an attempt ended here."""

    delta: np.ndarray | None
    """Group mean minus this member's vector, float32 ``(P,)``, when it was committed; else None."""
    abandoned: Abandon | None
    """Why nothing came of it; None when it was committed."""


class RoundDriver:
    """One attempt at this member.

    Args:
        transport: Reaches the others.
        round_id: Which expert, round and attempt.
        members: The group as this node sees it, itself included.
        vector: This member's parameters at the start, float32 ``(P,)``.
        timeout_s: Until when the others are awaited, in seconds from now.
    """

    def __init__(
        self,
        transport: Transport,
        round_id: RoundId,
        members: tuple[PeerId, ...],
        vector: np.ndarray,
        *,
        timeout_s: float,
    ) -> None:
        self._transport = transport
        self._members = members
        self._vector = vector
        self._timeout_s = timeout_s
        self._reduced: Reduced | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._result: asyncio.Future[AttemptResult] = asyncio.get_running_loop().create_future()
        self._deadline_moved = asyncio.Event()
        self.round = Round(round_id, transport.peer_id, members, time.monotonic() + timeout_s)

    async def run(
        self, *, dirty: bool, early: list[Event], commit: Callable[[np.ndarray], Awaitable[None]]
    ) -> AttemptResult:
        """Carry the attempt through.

        Args:
            dirty: Whether this replica has learned anything since its last committed round.
            early: What peers said before this member began.
            commit: Applies the delta; awaited before anything else once the round is committed.
        """
        async with asyncio.TaskGroup() as self._tasks:
            watch = self._tasks.create_task(self._watch_deadline(), name="round deadline")
            self._perform(self.round.start(time.monotonic(), dirty=dirty))
            for event in early:
                self.feed(event)
            result = await self._result
            watch.cancel()
            if result.delta is not None:
                await commit(result.delta)
        # The driver is kept to answer for the outcome; what was exchanged is not needed for that.
        self._vector, self._reduced = np.empty(0, np.float32), None
        return result

    def feed(self, event: Event) -> None:
        """Tell the round what happened, and do at once what it asks for."""
        self._perform(self.round.handle(event, time.monotonic()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendProposal():
                    proposal = RoundProposal(
                        round=self.round.round_id,
                        group_digest=action.group_digest,
                        ready=action.ready,
                        dirty=action.dirty,
                    )
                    self._tell_all(proposal)
                case RunAllReduce():
                    self._spawn(self._exchange())
                case SendAttestation():
                    self._tell_all(RoundAttestation(round=self.round.round_id, full=action.full))
                case AskOutcome():
                    self._deadline_moved.set()
                    for peer_id in action.peers:
                        self._spawn(self._ask(peer_id))
                case Commit():
                    assert self._reduced is not None, "a round commits only after a full exchange of its own"
                    self._result.set_result(AttemptResult(delta=self._reduced.delta, abandoned=None))
                case Abandon():
                    self._result.set_result(AttemptResult(delta=None, abandoned=action))

    def _spawn(self, work: Awaitable[None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(_as_coroutine(work), name=f"round {self.round.round_id.number}")

    def _tell_all(self, message: Message) -> None:
        for peer_id in self._members:
            if peer_id != self._transport.peer_id:
                self._spawn(self._tell(peer_id, message))

    async def _tell(self, peer_id: PeerId, message: Message) -> None:
        """Say it until it is acknowledged or nobody cares any more."""
        while True:
            try:
                reply = await self._call(peer_id, message)
            except ModuleMeshError:  # whatever a peer answers with must not end this node's rounds
                if self.round.ended:
                    return
                await asyncio.sleep(RESEND_S)
                continue
            if isinstance(reply, RoundOutcome):
                self.feed(OutcomeLearned(peer_id, reply.outcome))
            elif isinstance(message, RoundAttestation):
                self.feed(AttestationDelivered(peer_id))
            return

    async def _ask(self, peer_id: PeerId) -> None:
        try:
            reply = await self._call(peer_id, RoundOutcomeQuery(round=self.round.round_id))
        except ModuleMeshError:
            reply = None
        if isinstance(reply, RoundOutcome):
            self.feed(OutcomeLearned(peer_id, reply.outcome))
        else:
            self.feed(OutcomeUnanswered(peer_id))

    async def _call(self, peer_id: PeerId, message: Message) -> RoundOutcome | Ack:
        reply = await self._transport.call(peer_id, Frame(message), timeout_s=self._timeout_s / 2)
        return reply.message if isinstance(reply.message, RoundOutcome) else Ack()

    async def _exchange(self) -> None:
        round_id = self.round.round_id
        digest = group_digest(round_id.expert, round_id.number, round_id.attempt, self._members)
        group = ReduceGroup(group_id=bytes.fromhex(digest), members=self._members)
        self._reduced = await self._transport.all_reduce(group, self._vector, timeout_s=REDUCE_SHARE * self._timeout_s)
        self.feed(ExchangeFinished(self._reduced.full))

    async def _watch_deadline(self) -> None:
        while not self.round.ended:
            self._deadline_moved.clear()
            try:
                async with asyncio.timeout(max(0.0, self.round.deadline_s - time.monotonic())):
                    await self._deadline_moved.wait()
            except TimeoutError:
                self.feed(DeadlinePassed())


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work
