"""Asking experts: those of one peer in one call, and those that fail at their next replicas, until the deadline.

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
from meshnode.directory import ExpertListing
from meshnode.hosting import ExpertHost
from meshnode.inference.prediction import Call
from meshnode.inference.standings import LEAST_PATIENCE_S, Standings
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


@dataclass(frozen=True, eq=False, slots=True)
class _Wanted:
    """An expert that is to answer rows, and the replicas that are left to ask."""

    listing: ExpertListing
    rows: torch.Tensor
    gates: tuple[float, ...]
    names: Mapping[PeerId, str]
    """Of the replicas that have not been asked."""

    def without(self, peer_id: PeerId) -> "_Wanted":
        names = {other: name for other, name in self.names.items() if other != peer_id}
        return _Wanted(self.listing, self.rows, self.gates, names)


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
            listings: Who holds which expert.
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
                wanted.append(
                    _Wanted(listing, rows, tuple(gates.weights_BE[rows, column].tolist()), self._names(listing))
                )
        answers = Answers()
        await self._ask(wanted, features_BD, deadline_s, answers)
        return answers

    def _names(self, listing: ExpertListing) -> dict[PeerId, str]:
        names = {replica.peer_id: replica.peer_name for replica in listing.replicas}
        if self._host is not None and listing.uid in self._host.experts:
            names[self._transport.peer_id] = "self"
        else:
            names.pop(self._transport.peer_id, None)  # a record of ours that is out of date
        return names

    async def _ask(
        self, wanted: Sequence[_Wanted], features_BD: np.ndarray, deadline_s: float, answers: Answers
    ) -> None:
        # Those that nobody else holds have calls of their own: they are waited for to the end, the others are not.
        calls: dict[tuple[PeerId, bool], list[_Wanted]] = {}
        for want in wanted:
            if want.names:
                calls.setdefault((self._next(want), len(want.names) == 1), []).append(want)
        shares = [
            (peer_id, wants[begin : begin + MAX_EXPERTS_PER_CALL])
            for (peer_id, _), wants in calls.items()
            for begin in range(0, len(wants), MAX_EXPERTS_PER_CALL)
        ]
        await asyncio.gather(
            *(self._ask_peer(peer_id, share, features_BD, deadline_s, answers) for peer_id, share in shares)
        )

    def _next(self, want: _Wanted) -> PeerId:
        """This process, if it holds the expert; else the peer that stands best."""
        mine = self._transport.peer_id
        return mine if mine in want.names else self._standings.order(list(want.names))[0]

    async def _ask_peer(
        self,
        peer_id: PeerId,
        wants: Sequence[_Wanted],
        features_BD: np.ndarray,
        deadline_s: float,
        answers: Answers,
    ) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return
        is_last = len(wants[0].names) == 1
        attempt_s = left_s if is_last else min(ATTEMPT_SHARE * left_s, self._standings.patience_s(peer_id))
        began_s = time.perf_counter()
        if self._host is not None and peer_id == self._transport.peer_id:
            outcomes = await self._at_home(self._host, wants, features_BD, attempt_s)
        else:
            outcomes = await self._over_the_network(peer_id, wants, features_BD, attempt_s)
        elapsed_ms = 1e3 * (time.perf_counter() - began_s)
        again, pause_s = [], 0.0
        for want, outcome in zip(wants, outcomes, strict=True):
            answers.calls.append(_call(want, peer_id, elapsed_ms, outcome))
            if isinstance(outcome, Busy) and is_last:
                again.append(want)  # there is nobody else; it has said when to come back
                pause_s = max(pause_s, outcome.retry_after_s)
            elif isinstance(outcome, ModuleMeshError):
                again.append(want.without(peer_id))
            else:
                response = ExpertResponse(want.listing.classes, want.rows, torch.from_numpy(outcome))
                answers.responses[want.listing.uid] = response
        if again and pause_s < deadline_s - time.monotonic():
            await asyncio.sleep(pause_s)
            await self._ask(again, features_BD, deadline_s, answers)

    async def _at_home(
        self, host: ExpertHost, wants: Sequence[_Wanted], features_BD: np.ndarray, timeout_s: float
    ) -> Sequence[Outcome]:
        async def ask(want: _Wanted) -> Outcome:
            try:
                async with asyncio.timeout(timeout_s):
                    return (await host.answer(want.listing.uid, features_BD[want.rows.numpy()])).probabilities
            except TimeoutError:
                return CallTimeout(self._transport.peer_id, "Forward", timeout_s)
            except ModuleMeshError as failure:
                return failure

        return await asyncio.gather(*(ask(want) for want in wants))

    async def _over_the_network(
        self, peer_id: PeerId, wants: Sequence[_Wanted], features_BD: np.ndarray, timeout_s: float
    ) -> Sequence[Outcome]:
        request = forward_request({want.listing.uid: want.rows.numpy() for want in wants}, features_BD)
        standings = self._standings
        standings.asking(peer_id)
        began_s = time.perf_counter()
        try:
            reply = await self._transport.call(peer_id, request, timeout_s=timeout_s)
            outcomes = _outcomes(reply, wants, peer_id)
        except asyncio.CancelledError:
            standings.left(peer_id)
            raise
        except ModuleMeshError as failure:  # whatever a peer answers with is its failure, never the query's
            outcomes = [failure] * len(wants)
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


def _outcomes(reply: Frame, wants: Sequence[_Wanted], peer_id: PeerId) -> list[Outcome]:
    message = reply.message
    if not isinstance(message, ForwardReply) or len(message.answers) != len(wants):
        raise NotReady("the peer answered something else")
    return [
        _outcome(reply, number, answer, want, peer_id)
        for number, (answer, want) in enumerate(zip(message.answers, wants, strict=True))
    ]


def _outcome(reply: Frame, number: int, answer: ExpertAnswer | ErrorReply, want: _Wanted, peer_id: PeerId) -> Outcome:
    if isinstance(answer, ErrorReply):
        return error_from_wire(answer.code, answer.message, answer.data, peer_id=peer_id)
    if answer.classes != want.listing.classes:
        return NotReady("the peer answered for other classes than it advertises")
    name, shape = f"probabilities.{number}", (len(want.rows), len(answer.classes))
    try:
        probabilities_RC = require_tensor(reply.tensors, name, dtype="float32", shape=shape, finite=True)
    except ModuleMeshError as refusal:
        return refusal
    # Any other numbers would outvote every expert that keeps to them.
    if (probabilities_RC < 0).any() or (abs(probabilities_RC.sum(axis=1) - 1) > _ROUNDING).any():
        return NotReady("the peer's answer is no distribution over its classes")
    return probabilities_RC


def _call(want: _Wanted, peer_id: PeerId, elapsed_ms: float, outcome: Outcome) -> Call:
    return Call(
        expert=want.listing.uid,
        peer_id=peer_id,
        peer_name=want.names[peer_id],
        rows=tuple(want.rows.tolist()),
        gates=want.gates,
        elapsed_ms=elapsed_ms,
        error=str(outcome) if isinstance(outcome, ModuleMeshError) else None,
    )
