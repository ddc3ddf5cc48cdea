"""The butterfly exchange of one node: parts go to the members that reduce them, means come back as the answers.

A reducer answers only when every member's part is in. So whoever has all answers knows that every slice is the mean of
all members; nothing partial can look like success.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experts.averaging import Averaged, Codec, Share
from experts.errors import ExpertsError
from meshnode.averaging.gathering import Gatherer
from meshnode.beside import beside
from meshnode.transport.interface import Transport
from protocol.errors import MalformedMessage, MalformedTensor, ModuleMeshError, NotReady, PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import Ack, RoundId, RoundParts

__all__ = ["Exchanged", "Exchanges", "Member"]

MAX_ROUNDS_AWAITED = 512
"""Rounds that peers have sent parts of and this node has not begun: a bound on what strangers can make it remember."""

GATHER_S = 0.001
"""How long parts wait for those of other experts; the members' proposals come together, and so do their parts."""

ANSWERS_RATIO = 1.2
"""Answers are awaited for so many times as long as parts: a reducer that lacks a part can tell whose, and who only has
no answer cannot."""

Payload = npt.NDArray[Any]


class Member(NamedTuple):
    """Who takes part, and what its parameters count for."""

    peer_id: PeerId
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchanged:
    """How an exchange ended here."""

    averaged: Averaged | None
    """None if it was not full."""
    missing: frozenset[PeerId] = frozenset()
    """Who is to blame then, as far as this node can tell."""


@dataclass(slots=True, eq=False)
class _Reduction:
    """The slice that this node reduces in one exchange."""

    share: Share
    members: tuple[PeerId, ...]
    me: int
    parts: dict[int, Payload] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    mean: asyncio.Future[Payload] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def take(self, sender: PeerId, part: Payload) -> None:
        """A member's part; a second one of the same member counts for nothing."""
        if sender not in self.members:
            raise NotReady("the sender is not a member of this round here")
        dtype, length = self.share.part_header
        if part.dtype.newbyteorder("=") != dtype or part.shape != (length,):
            raise MalformedTensor("part", f"{dtype} ({length},) is expected of this round")
        self.parts.setdefault(self.members.index(sender), part)
        if len(self.parts) == len(self.members) - 1:
            self.complete.set()

    @property
    def awaited(self) -> frozenset[PeerId]:
        """The members whose part is not here."""
        if self.complete.is_set():  # and the parts may be gone by now
            return frozenset()
        here = {self.me, *self.parts}
        return frozenset(peer for index, peer in enumerate(self.members) if index not in here)


class Exchanges:
    """All exchanges that a node takes part in.

    Args:
        transport: Reaches the members.
        codec: The members' compression.
        timeout_s: How long an answer is awaited at most, in seconds.
    """

    def __init__(self, transport: Transport, codec: Codec, *, timeout_s: float) -> None:
        self._transport = transport
        self._codec = codec
        self._timeout_s = timeout_s
        self._parts: Gatherer[tuple[PeerId, tuple[PeerId, ...]], tuple[RoundId, Payload], Payload]
        self._parts = Gatherer(self._call, wait_s=GATHER_S)
        self._begun: dict[RoundId, asyncio.Future[_Reduction]] = {}

    async def run(
        self,
        round_id: RoundId,
        members: Sequence[Member],
        vector: np.ndarray,
        reference: np.ndarray | None,
        *,
        timeout_s: float,
    ) -> Exchanged:
        """Exchange parts with all members and wait for the means.

        Args:
            round_id: Used once.
            members: In the order that all of them agree on, this node among them.
            vector: The replica's parameters, float32 ``(P,)``.
            reference: Parameters that all members hold alike, float32 ``(P,)``; None without compression.
            timeout_s: After this many seconds it is given up if parts are missing here, and a little later if answers
                are.
        """
        peers = tuple(member.peer_id for member in members)
        me = peers.index(self._transport.peer_id)
        weights = [member.weight for member in members]
        # Without compression, parts are slices.
        coded = 0 if self._codec.name == "none" else len(vector)
        share: Share = await beside(coded, Share, vector, reference, self._codec, weights, me)
        reduction = _Reduction(share, peers, me)
        calls: dict[PeerId, asyncio.Future[Payload]] = {}
        own: asyncio.Future[Payload]
        own = asyncio.create_task(_reduce(reduction, len(vector), timeout_s=timeout_s), name="round reduction")
        self._awaited(round_id).set_result(reduction)
        try:
            async with asyncio.timeout(ANSWERS_RATIO * timeout_s):
                for peer, part in (await beside(len(vector), _parts_of, share, peers, me)).items():
                    calls[peer] = self._parts.put((peer, peers), (round_id, part))
                await _all_or_first_failure([own, *calls.values()])
            means = [own.result() if peer not in calls else calls[peer].result() for peer in peers]
            return Exchanged(averaged=await beside(len(vector), share.conclude, means))
        except (ModuleMeshError, ExpertsError):
            return Exchanged(averaged=None, missing=_unreachable(calls))
        except TimeoutError:
            late = frozenset(peer for peer, call in calls.items() if not call.done())
            # A member whose part is not here keeps everybody waiting; who only did not answer may be waiting for it.
            return Exchanged(averaged=None, missing=reduction.awaited or late)
        finally:
            for waiting in (own, *calls.values()):
                if not waiting.cancel() and not waiting.cancelled():
                    waiting.exception()  # one failure is told of; the others are of the same cause
            self._give_up(round_id, reduction)

    async def _call(
        self, key: tuple[PeerId, tuple[PeerId, ...]], parts: Sequence[tuple[RoundId, Payload]]
    ) -> Sequence[Payload]:
        """Parts of rounds with the same members, as their answers come together."""
        peer_id, _ = key
        message = RoundParts(tuple(round_id for round_id, _ in parts))
        tensors = {f"part.{number}": part for number, (_, part) in enumerate(parts)}
        reply = await self._transport.call(peer_id, Frame(message, tensors), timeout_s=self._timeout_s)
        names = [f"mean.{number}" for number in range(len(parts))]
        if not isinstance(reply.message, Ack) or set(reply.tensors) != set(names):
            raise MalformedMessage("Ack", reason="a mean for each part is expected")
        return [reply.tensors[name] for name in names]

    async def answer(self, sender: PeerId, message: RoundParts, tensors: Mapping[str, Payload]) -> Frame:
        """Take a member's parts in and give it their means, once every member's are here.

        Raises:
            MalformedMessage: Parts are missing.
            MalformedTensor: A part is not what its round expects.
            NotReady: The sender is no member, or a round was given up here.
        """
        names = [f"part.{number}" for number in range(len(message.rounds))]
        if set(tensors) != set(names):
            raise MalformedMessage("RoundParts", reason="a part for each round is expected")
        reductions = await asyncio.gather(*(asyncio.shield(self._awaited(round_id)) for round_id in message.rounds))
        for reduction, name in zip(reductions, names, strict=True):
            reduction.take(sender, tensors[name])
        means = await asyncio.gather(*(asyncio.shield(reduction.mean) for reduction in reductions))
        return Frame(Ack(), {f"mean.{number}": mean for number, mean in enumerate(means)})

    def _awaited(self, round_id: RoundId) -> asyncio.Future[_Reduction]:
        """The round's reduction, which a member's part may be here before."""
        if round_id not in self._begun:
            self._begun[round_id] = asyncio.get_running_loop().create_future()
            if len(self._begun) > MAX_ROUNDS_AWAITED:
                _fail(self._begun.pop(next(iter(self._begun))), "too many rounds are under way here")
        return self._begun[round_id]

    def _give_up(self, round_id: RoundId, reduction: _Reduction) -> None:
        """Nobody needs this round any more but those that wait for a mean that is there."""
        self._begun.pop(round_id, None)
        _fail(reduction.mean, "the round was given up here")


def _parts_of(share: Share, peers: Sequence[PeerId], me: int) -> dict[PeerId, Payload]:
    return {peer: share.part_for(index) for index, peer in enumerate(peers) if index != me}


async def _reduce(reduction: _Reduction, num_parameters: int, *, timeout_s: float) -> Payload:
    async with asyncio.timeout(timeout_s):
        await reduction.complete.wait()
    mean: Payload = await beside(num_parameters, reduction.share.reduce, reduction.parts)
    reduction.parts.clear()
    reduction.mean.set_result(mean)
    return mean


async def _all_or_first_failure(awaited: Collection[asyncio.Future[Payload]]) -> None:
    done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_EXCEPTION)
    for one in done:
        one.result()


def _unreachable(calls: Mapping[PeerId, asyncio.Future[Payload]]) -> frozenset[PeerId]:
    return frozenset(
        peer
        for peer, call in calls.items()
        if call.done() and not call.cancelled() and isinstance(call.exception(), PeerUnreachable)
    )


def _fail(future: asyncio.Future[Any], reason: str) -> None:
    if not future.done():
        future.set_exception(NotReady(reason))
        future.exception()  # nobody may be waiting, and that is no mistake
