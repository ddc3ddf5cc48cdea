"""Asking experts: those of one peer in one call, and those that fail at their next replicas, until the deadline.

Where an expert has superseded older ones, they are its last replicas, so to speak: they answer, under their own uids,
where all of its own have failed, or are banned.

Legend: B batch, D feature, C class, R rows of one call.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from experts.combine import ExpertResponse
from experts.router.gating import Gates
from meshnode.hosting import ExpertHost
from meshnode.inference.prediction import Call
from meshnode.inference.standings import LEAST_PATIENCE_S, Standings
from meshnode.inference.wanted import Question, Wanted
from meshnode.listings import ExpertListing
from meshnode.transport.interface import Transport
from protocol.errors import (
    Busy,
    CallTimeout,
    FrameTooLarge,
    ModuleMeshError,
    NotReady,
    UnknownExpert,
    error_from_wire,
)
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId
from protocol.limits import MAX_EXPERTS_PER_CALL, MAX_FRAME_BYTES
from protocol.messages import ErrorReply, ExpertAnswer, Forward, ForwardReply
from protocol.tensors import require_tensor

__all__ = ["Answers", "Asker", "forward_request"]

_ROUNDING = 1e-3
"""By how much an answer's probabilities may miss a sum of 1: 256 in float32 are far closer."""

ATTEMPT_SHARE: Final = 0.4
"""Share of the deadline that one silent replica may cost: two can be silent and a third still answers in time."""

Outcome = np.ndarray | ModuleMeshError
"""An expert's probabilities, or why there are none."""


@dataclass(slots=True)
class Answers:
    """What has come back of a batch."""

    responses: dict[str, ExpertResponse] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)


class Asker:
    """Asks the experts of a mesh.

    Args:
        transport: Reaches their peers.
        standings: Know whom to ask first, and are told how it went.
        host: The experts of this process, asked without the network; None for a client that hosts none.
    """

    def __init__(self, transport: Transport, standings: Standings, host: ExpertHost | None) -> None:
        self._transport = transport
        self._standings = standings
        self._host = host

    async def ask(
        self, listings: Mapping[ExpertUid, ExpertListing], gates: Gates, features_BD: np.ndarray, deadline_s: float
    ) -> Answers:
        """Ask every expert that any row wants.

        Args:
            listings: Who holds which expert, and which older ones it has superseded.
            gates: Which rows want it.
            features_BD: Trunk features of all rows, float32.
            deadline_s: By the monotonic clock.

        Raises:
            FrameTooLarge: More rows than one call can carry.
        """
        if features_BD.nbytes > MAX_FRAME_BYTES:
            raise FrameTooLarge(features_BD.nbytes, MAX_FRAME_BYTES)
        wanted = []
        for column, uid in enumerate(gates.uids):
            rows = gates.rows_of(uid)
            if len(rows):
                listing = listings[ExpertUid(uid)]
                left = tuple((one, held) for one in (listing, *listing.older) if (held := self._holders(one)))
                weights = tuple(gates.weights_BE[rows, column].tolist())
                wanted.append(Wanted(uid=listing.uid, rows=rows, gates=weights, left=left))
        answers = Answers()
        await self._ask(wanted, features_BD, deadline_s, answers)
        return answers

    def _holders(self, listing: ExpertListing) -> dict[PeerId, str]:
        names = {replica.peer_id: replica.peer_name for replica in listing.replicas}
        # A record of ours that is out of date may list an expert that was succeeded here a moment ago: it answers.
        if self._host is not None and self._host.find(listing.uid) is not None:
            names[self._transport.peer_id] = "self"
        else:
            names.pop(self._transport.peer_id, None)
        return names

    async def _ask(
        self, wanted: Sequence[Wanted], features_BD: np.ndarray, deadline_s: float, answers: Answers
    ) -> None:
        # Those that nobody else can answer have calls of their own: they are waited for to the end, the others are not.
        calls: dict[tuple[PeerId, bool], list[Question]] = {}
        for want in wanted:
            if want.left:
                question = self._next(want)
                calls.setdefault((question.peer_id, want.num_left == 1), []).append(question)
        shares = [
            (peer_id, questions[begin : begin + MAX_EXPERTS_PER_CALL])
            for (peer_id, _), questions in calls.items()
            for begin in range(0, len(questions), MAX_EXPERTS_PER_CALL)
        ]
        await asyncio.gather(
            *(self._ask_peer(peer_id, share, features_BD, deadline_s, answers) for peer_id, share in shares)
        )

    def _next(self, want: Wanted) -> Question:
        """The replica to ask: of the newest expert that has one which is not banned; if all are, of the newest."""
        best = [self._best(want, listing, holders) for listing, holders in want.left]
        return next((one for one in best if not self._standings.banned(one.peer_id)), best[0])

    def _best(self, want: Wanted, listing: ExpertListing, holders: Mapping[PeerId, str]) -> Question:
        """This process, if the expert is current here, or if there is nobody else; else the peer that stands best."""
        me, others = self._transport.peer_id, [peer_id for peer_id in holders if peer_id != self._transport.peer_id]
        is_mine = self._host is not None and listing.uid in self._host.experts
        peer_id = me if is_mine or not others else self._standings.order(others)[0]
        return Question(want=want, listing=listing, peer_id=peer_id, peer_name=holders[peer_id])

    async def _ask_peer(
        self,
        peer_id: PeerId,
        questions: Sequence[Question],
        features_BD: np.ndarray,
        deadline_s: float,
        answers: Answers,
    ) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return
        is_last = questions[0].want.num_left == 1
        attempt_s = left_s if is_last else min(ATTEMPT_SHARE * left_s, self._standings.patience_s(peer_id))
        began_s = time.perf_counter()
        if self._host is not None and peer_id == self._transport.peer_id:
            outcomes = await self._at_home(self._host, questions, features_BD, attempt_s)
        else:
            outcomes = await self._over_the_network(peer_id, questions, features_BD, attempt_s)
        elapsed_ms = 1e3 * (time.perf_counter() - began_s)
        again, pause_s = [], 0.0
        for question, outcome in zip(questions, outcomes, strict=True):
            want = question.want
            answers.calls.append(_call(question, elapsed_ms, outcome))
            if isinstance(outcome, Busy) and is_last:
                again.append(want)  # there is nobody else; it has said when to come back
                pause_s = max(pause_s, outcome.retry_after_s)
            elif isinstance(outcome, ModuleMeshError):
                again.append(want.without(question.listing, peer_id))
            else:
                # Under the uid that the gates know, whoever has answered in its place.
                response = ExpertResponse(question.listing.classes, want.rows, torch.from_numpy(outcome))
                answers.responses[want.uid] = response
        if again and pause_s < deadline_s - time.monotonic():
            await asyncio.sleep(pause_s)
            await self._ask(again, features_BD, deadline_s, answers)

    async def _at_home(
        self, host: ExpertHost, questions: Sequence[Question], features_BD: np.ndarray, timeout_s: float
    ) -> Sequence[Outcome]:
        async def ask(question: Question) -> Outcome:
            try:
                async with asyncio.timeout(timeout_s):
                    return (await host.answer(question.uid, features_BD[question.rows.numpy()])).probabilities
            except TimeoutError:
                return CallTimeout(self._transport.peer_id, "Forward", timeout_s)
            except ModuleMeshError as failure:
                return failure

        return await asyncio.gather(*(ask(question) for question in questions))

    async def _over_the_network(
        self, peer_id: PeerId, questions: Sequence[Question], features_BD: np.ndarray, timeout_s: float
    ) -> Sequence[Outcome]:
        request = forward_request({question.uid: question.rows.numpy() for question in questions}, features_BD)
        standings = self._standings
        standings.asking(peer_id)
        began_s = time.perf_counter()
        try:
            reply = await self._transport.call(peer_id, request, timeout_s=timeout_s)
            outcomes = _outcomes(reply, questions)
        except asyncio.CancelledError:
            standings.left(peer_id)
            raise
        except ModuleMeshError as failure:  # whatever a peer answers with is its failure, never the query's
            outcomes = [failure] * len(questions)
        failures = [outcome for outcome in outcomes if isinstance(outcome, ModuleMeshError)]
        busy_s = [failure.retry_after_s for failure in failures if isinstance(failure, Busy)]
        if any(_counts(failure, timeout_s) for failure in failures):
            standings.failed(peer_id)
        elif busy_s:
            standings.busy(peer_id, max(busy_s))
        elif len(failures) == len(outcomes):
            standings.left(peer_id)
        else:
            standings.answered(peer_id, time.perf_counter() - began_s)
        return outcomes


def _counts(failure: ModuleMeshError, timeout_s: float) -> bool:
    """Whether a failure tells something of its peer.

    To be busy, or not to hold an expert any more, does not; nor does silence of which there was only a moment.
    """
    if isinstance(failure, CallTimeout):
        return timeout_s >= LEAST_PATIENCE_S
    return not isinstance(failure, Busy | UnknownExpert)


def forward_request(rows: Mapping[ExpertUid, np.ndarray], features_BD: np.ndarray) -> Frame:
    """The question to one peer's experts, its features sent once however many experts read them.

    Args:
        rows: For each expert the rows of the batch that it is asked about, increasing.
        features_BD: Trunk features of the whole batch, float32.
    """
    experts = tuple(rows)
    asked = list(rows.values())
    if all(np.array_equal(mine, asked[0]) for mine in asked[1:]):
        return Frame(Forward(experts=experts), {"features": features_BD[asked[0]]})
    sent_R = np.unique(np.concatenate(asked))
    places_R = np.concatenate([np.searchsorted(sent_R, mine) for mine in asked]).astype(np.int32)
    message = Forward(experts=experts, num_rows=tuple(len(mine) for mine in asked))
    return Frame(message, {"features": features_BD[sent_R], "rows": places_R})


def _outcomes(reply: Frame, questions: Sequence[Question]) -> list[Outcome]:
    message = reply.message
    if not isinstance(message, ForwardReply) or len(message.answers) != len(questions):
        raise NotReady("the peer answered something else")
    return [
        _outcome(reply, number, answer, question)
        for number, (answer, question) in enumerate(zip(message.answers, questions, strict=True))
    ]


def _outcome(reply: Frame, number: int, answer: ExpertAnswer | ErrorReply, question: Question) -> Outcome:
    if isinstance(answer, ErrorReply):
        return error_from_wire(answer.code, answer.message, answer.data, peer_id=question.peer_id)
    if answer.classes != question.listing.classes:
        return NotReady("the peer answered for other classes than it advertises")
    name, shape = f"probabilities.{number}", (len(question.rows), len(answer.classes))
    try:
        probabilities_RC = require_tensor(reply.tensors, name, dtype="float32", shape=shape, finite=True)
    except ModuleMeshError as refusal:
        return refusal
    # Any other numbers would outvote every expert that keeps to them.
    if (probabilities_RC < 0).any() or (abs(probabilities_RC.sum(axis=1) - 1) > _ROUNDING).any():
        return NotReady("the peer's answer is no distribution over its classes")
    return probabilities_RC


def _call(question: Question, elapsed_ms: float, outcome: Outcome) -> Call:
    return Call(
        expert=question.uid,
        peer_id=question.peer_id,
        peer_name=question.peer_name,
        rows=tuple(question.rows.tolist()),
        gates=question.want.gates,
        elapsed_ms=elapsed_ms,
        error=str(outcome) if isinstance(outcome, ModuleMeshError) else None,
    )
