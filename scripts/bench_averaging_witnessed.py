"""A member of a group that faults strike: it keeps what a judge needs, learns during rounds, dies and comes back.

Legend: P parameters.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from random import Random

import numpy as np
from bench_averaging_faulty import FaultyTransport
from bench_averaging_judge import Commit, Witness
from bench_averaging_member import Member

from experts.averaging import Averaged
from meshnode.averaging.settings import AveragerConfig
from meshnode.compute import Compute
from meshnode.home import Home
from meshnode.hosting import ExpertHost
from meshnode.state.rows import Reached
from meshnode.state.state import State
from meshnode.transport.interface import Transport
from protocol.identifiers import ExpertUid
from protocol.messages import RoundId
from protocol.signing import SigningKey

__all__ = ["OpenTransport", "Witnessed"]

OpenTransport = Callable[[AsyncExitStack], Awaitable[Transport]]
"""Opens a member's transport anew, to be closed with the stack."""

PARAMETERS = 86
STEPS_SCALE = 0.1


class _WitnessedHost(ExpertHost):
    """Remembers what an expert was at each snapshot, and what was learned since."""

    def __init__(self, state: State, compute: Compute, *, now_s: Callable[[], float]) -> None:
        super().__init__(state, compute, now_s=now_s)
        self._one_at_a_time = asyncio.Lock()
        self.forget()

    def forget(self) -> None:
        """A round begins."""
        self.brought: list[np.ndarray] = []
        self.learned: np.ndarray | None = None

    async def snapshot_beside(self, uid: ExpertUid) -> np.ndarray:
        async with self._one_at_a_time:
            vector = await super().snapshot_beside(uid)
            self.brought.append(vector)
            self.learned = None
        return vector

    async def learn_more(self, uid: ExpertUid, start: np.ndarray, steps: np.ndarray) -> None:
        """What a trainer reports that began at `start` and has not taken in a round since."""
        async with self._one_at_a_time:
            await self.checkpoint(uid, start + steps, deltas_applied=0, reached=Reached(run="run", steps=2))
            self.learned = steps


class _WitnessedMember(Member):
    """Remembers what it has committed."""

    host: _WitnessedHost
    number = -1
    """Of the round that is looked at."""
    commit: Commit | None = None
    committed_at_s: float | None = None
    applying: asyncio.Future[None] | None = None

    def _hosting(self, state: State, compute: Compute) -> ExpertHost:
        return _WitnessedHost(state, compute, now_s=self.transport.now_s)

    async def _apply(self, uid: ExpertUid, averaged: Averaged, number: int) -> None:
        # A killed process has a commit that was under way on its disk or not; here it always has.
        self.applying = asyncio.ensure_future(self._apply_and_remember(uid, averaged, number))
        await asyncio.shield(self.applying)

    async def _apply_and_remember(self, uid: ExpertUid, averaged: Averaged, number: int) -> None:
        await super()._apply(uid, averaged, number)
        if number == self.number:  # and not the late end of an earlier one
            attempt = len(self.host.brought) - 1
            members = self.averager._drivers[RoundId(uid, number, attempt)].round.proposal.members
            self.commit = Commit(attempt=attempt, members=frozenset(members), mean=averaged.mean)
            self.committed_at_s = time.perf_counter()


class Witnessed:
    """A member with its transport, over its deaths.

    Args:
        key: Of the node.
        home: Where its state lives.
        open_transport: Opens its transport.
        config: How it averages.
        random: Of all that happens by chance.
        jitter_s: As for `FaultyTransport`.
    """

    def __init__(
        self,
        key: SigningKey,
        home: Home,
        open_transport: OpenTransport,
        config: AveragerConfig,
        random: Random,
        jitter_s: float,
    ) -> None:
        self.name = str(key.peer_id)
        self._key = key
        self._home = home
        self._open_transport = open_transport
        self._config = config
        self._random = random
        self._jitter_s = jitter_s
        self._resources = AsyncExitStack()
        self._member: _WitnessedMember
        self._seen: _WitnessedMember
        """Whose round is looked at: a member that has died since, or the present one."""
        self._round: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self.transport: FaultyTransport
        self.is_started = False
        """Whether it is there, alive or not."""

    async def start(self) -> None:
        """Begin, or come back after a death."""
        self.is_started = False
        self._resources = AsyncExitStack()
        transport = await self._open_transport(self._resources)
        self.transport = FaultyTransport(transport, self._random, jitter_s=self._jitter_s)
        parts = self._resources.enter_context(ExitStack())
        self._member = _WitnessedMember(self.transport, self._key, self._home, self._config, parts)
        await self._member.host.load()
        if not self._member.uids:
            await self._member.adopt(1, PARAMETERS)
        self.is_started = True

    async def die(self) -> None:
        """End all of it; `start` begins anew from what its disk holds."""
        if self._round is not None:
            await asyncio.wait({self._round})
        if self._member.applying is not None:
            await self._member.applying
        await self._resources.aclose()

    async def announce(self) -> None:
        """Publish its record."""
        await self._member.announce()

    async def look(self) -> int:
        """How many peers it sees."""
        return await self._member.look()

    @property
    def uid(self) -> ExpertUid:
        """Of the one expert."""
        return self._member.uids[0]

    async def learn(self) -> None:
        """Come to other parameters, between rounds."""
        await self._member.learn(self.uid, self._drawn(1.0))

    async def begin_training(self) -> Callable[[], Awaitable[None]]:
        """Have a trainer begin; what is returned has it report, beside everything else, that it has taken steps."""
        host, uid = self._member.host, self.uid
        await host.begin_training(uid)
        start, steps = host.snapshot(uid), self._drawn(STEPS_SCALE)
        self._reporting = None

        async def report() -> None:
            self._reporting = asyncio.create_task(host.learn_more(uid, start, steps), name="trainer's report")

        self._report = report
        return report

    async def end_training(self) -> None:
        """Its report is in."""
        if self._reporting is None:
            await self._report()
        assert self._reporting is not None
        await self._reporting
        self._member.host.end_training(self.uid)

    def begin_round(self, number: int) -> "asyncio.Task[None]":
        """Begin to average; what happens from now on is what `witness` tells."""
        member = self._seen = self._member
        member.host.forget()
        member.number, member.commit, member.committed_at_s, member.applying = number, None, None, None
        self._round = asyncio.create_task(member.averager.run_round(number), name=f"round of {self.name}")
        return self._round

    def kill_round(self) -> None:
        """End its round wherever it is, as a kill does."""
        assert self._round is not None
        self._round.cancel()

    @property
    def committed_at_s(self) -> float | None:
        """When it had committed, by `time.perf_counter`; None if it has not."""
        return self._seen.committed_at_s

    def witness(self) -> Witness:
        """What it did in the round."""
        host = self._seen.host
        return Witness(
            brought=tuple(host.brought),
            learned=host.learned,
            commit=self._seen.commit,
            held=self._member.host.snapshot(self.uid),
        )

    def _drawn(self, scale: float) -> np.ndarray:
        draw = np.random.default_rng(self._random.getrandbits(64))
        return np.float32(scale) * draw.standard_normal(PARAMETERS, np.float32)
