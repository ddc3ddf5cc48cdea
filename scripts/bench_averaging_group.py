"""Four members of which a fault strikes one in the middle of a round: what came of it, and whether they go on.

A trial is two rounds. In the first the fault strikes before a message of the member that it hits, drawn among as many
as its last round consisted of; a trainer reports to one of the others meanwhile. Then the member comes back, and in the
second round all four have to come to one mean again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from bench_averaging_judge import faults_found
from bench_averaging_witnessed import Witnessed
from bench_node import BenchFailed

from meshnode.averaging.settings import AveragerConfig

__all__ = ["Afflictions", "Fault", "Group", "Trial"]

Fault = Literal["killed", "hung", "slowed"]

LAG_RATIO = 1.5
"""A slowed member's messages wait for so many times the round's timeout."""

PATIENCE_RATIO = 10.0
"""A round that takes so many times its timeout hangs, which nothing may make it do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Afflictions:
    """How a member's connection to the network fails.

    Attributes:
        kill: Ends it.
        hang: Stops it.
        resume: Lets it go on.
    """

    kill: Callable[[Witnessed], Awaitable[None]]
    hang: Callable[[Witnessed], None]
    resume: Callable[[Witnessed], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What came of one trial.

    Attributes:
        fault: Which.
        event: Before which event of the hit member it struck; None if its round was over by then.
        found: What is wrong, a line each.
        survivors_committed: In the round that was struck, of three.
        attempts: That the survivors made at most.
        recovery_s: From the fault until every survivor had committed, in that round or in the next one.
        is_healed: Whether all four came to one mean in the second round.
    """

    fault: Fault
    event: int | None
    found: Sequence[str]
    survivors_committed: int
    attempts: int
    recovery_s: float
    is_healed: bool


class Group:
    """Members of one group, that rounds and faults come to one after another.

    Args:
        members: Started, and connected to one another.
        config: How they average.
        afflictions: How a member fails.
        random: Of all that is drawn.
        next_number: Of a round after the one of this number; sees to it that its members are known by then.
    """

    def __init__(
        self,
        members: Sequence[Witnessed],
        config: AveragerConfig,
        afflictions: Afflictions,
        random: Random,
        next_number: Callable[[int], int],
    ) -> None:
        self._members = members
        self._config = config
        self._afflictions = afflictions
        self._random = random
        self._next_number = next_number
        self._number = 0
        self._events: dict[str, int] = {}
        """Of each member's last round without a fault."""

    async def begin(self) -> None:
        """A first round without a fault.

        Raises:
            BenchFailed: They do not come to one mean.
        """
        _, found = await self._round_of_all()
        if found:
            raise BenchFailed(f"a round without a fault went wrong: {found}")

    async def trial(self, fault: Fault) -> Trial:
        """Hit one of the members."""
        hit = self._random.choice(self._members)
        survivors = [member for member in self._members if member is not hit]
        await self._prepare()
        struck: list[tuple[float, int]] = []

        async def strike() -> None:
            struck.append((time.perf_counter(), hit.transport.events))
            await self._strike(hit, fault)

        hit.transport.arm(strike, at=self._random.randrange(self._events[hit.name]))
        learner = self._random.choice(survivors)
        report = await learner.begin_training()
        learner.transport.arm(report, at=self._random.randrange(self._events[learner.name]))
        began_s = time.perf_counter()
        rounds = {member: member.begin_round(self._number) for member in self._members}
        await self._finished(rounds[member] for member in survivors)
        await learner.end_training()
        await self._recover(hit, fault)
        await self._finished([rounds[hit]])
        witnesses = {member.name: member.witness() for member in self._members}
        commits_s = [member.committed_at_s for member in survivors]
        healing_s, found = await self._round_of_all()
        # As if it had struck at the end, if the round had fewer messages than the last one.
        struck_s, event = struck[0] if struck else (time.perf_counter(), None)
        if None in commits_s:  # the round that brings them together would begin one period after this one
            recovery_s = self._config.period_s - (struck_s - began_s) + healing_s
        else:
            recovery_s = max(0.0, max(commits_s) - struck_s)
        return Trial(
            fault=fault,
            event=event,
            found=[*faults_found(witnesses), *(f"in the next round: {line}" for line in found)],
            survivors_committed=sum(moment is not None for moment in commits_s),
            attempts=max(len(witnesses[member.name].brought) for member in survivors),
            recovery_s=recovery_s,
            is_healed=all(member.committed_at_s is not None for member in self._members),
        )

    async def _prepare(self) -> None:
        """Everybody has learned something and sees everybody."""
        self._number = self._next_number(self._number)
        for member in self._members:
            await member.learn()
            await member.announce()
        for member in self._members:
            if await member.look() != len(self._members):
                raise BenchFailed("members do not see one another")

    async def _round_of_all(self) -> tuple[float, list[str]]:
        """A round without a fault: how long it took, and what is wrong with it."""
        await self._prepare()
        for member in self._members:
            member.transport.arm(None)
        began_s = time.perf_counter()
        await self._finished([member.begin_round(self._number) for member in self._members])
        self._events = {member.name: member.transport.events for member in self._members}
        found = faults_found({member.name: member.witness() for member in self._members})
        return time.perf_counter() - began_s, found

    async def _strike(self, hit: Witnessed, fault: Fault) -> None:
        match fault:
            case "killed":
                hit.transport.die()
                hit.kill_round()
                await self._afflictions.kill(hit)
            case "hung":
                hit.transport.hang()
                self._afflictions.hang(hit)
            case "slowed":
                hit.transport.slow(LAG_RATIO * self._config.timeout_s)

    async def _recover(self, hit: Witnessed, fault: Fault) -> None:
        match fault:
            case "killed":
                await hit.die()
                await hit.start()
            case "hung":
                self._afflictions.resume(hit)
                hit.transport.recover()
            case "slowed":
                hit.transport.recover()

    async def _finished(self, rounds: Iterable["asyncio.Task[None]"]) -> None:
        tasks = list(rounds)
        done, pending = await asyncio.wait(tasks, timeout=PATIENCE_RATIO * self._config.timeout_s)
        if pending:
            raise BenchFailed(f"{len(pending)} members hang in a round")
        for task in done:
            if not task.cancelled():
                task.result()
