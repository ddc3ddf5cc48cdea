"""A process of the benchmark of averaging: groups of four that faults strike, in memory or over real p2pd.

Started by `bench_children`. Averager, driver, exchange, host and state are the node's own.
"""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import psutil
from bench_averaging_group import Afflictions, Fault, Group
from bench_averaging_witnessed import OpenTransport, Witnessed
from bench_orders import obey_on_a_loop

from meshnode.averaging.settings import AveragerConfig
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.node import SWITCH_S
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
from meshnode.transport.interface import Transport
from meshnode.transport.memory import MemoryNetwork
from protocol.signing import SigningKey

MEMBERS = 4

JITTER_S = 0.002

CONFIG = AveragerConfig(period_s=4.0, timeout_s=2.0)
"""The default's proportions in two fifths of its time."""

OVER_P2PD = AveragerConfig()


class Faults:
    """The commands of this child."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_S)  # as the daemon does
        self._keys = [SigningKey.generate() for _ in range(MEMBERS)]

    async def in_memory(self, folder: str, trials: Mapping[Fault, int], groups: int, seed: int) -> list[dict[str, Any]]:
        """So many trials of each fault, in so many groups at the same time.

        Args:
            folder: Exists; homes go there.
            trials: Number by fault.
            groups: Of four members, each on a network of its own.
            seed: Of all that is drawn.
        """
        return await self._try_all(trials, groups, seed, lambda number: self._group_in_memory(folder, number, seed))

    async def over_p2pd(self, folder: str, trials: Mapping[Fault, int], groups: int, seed: int) -> list[dict[str, Any]]:
        """The same with a p2pd for each member."""
        return await self._try_all(trials, groups, seed, lambda number: _group_over_p2pd(folder, number, seed))

    async def close(self) -> None:
        """Nothing is open between orders."""

    async def _try_all(
        self, trials: Mapping[Fault, int], groups: int, seed: int, open_group: Callable[[int], Any]
    ) -> list[dict[str, Any]]:
        waiting = list(itertools.chain.from_iterable([fault] * number for fault, number in trials.items()))
        Random(seed).shuffle(waiting)
        outcomes: list[dict[str, Any]] = []

        async def try_in(number: int) -> None:
            async with open_group(number) as group:
                await group.begin()
                while waiting:
                    outcomes.append(asdict(await group.trial(waiting.pop())))

        async with asyncio.TaskGroup() as tasks:
            for number in range(groups):
                tasks.create_task(try_in(number), name=f"group {number}")
        return outcomes

    @asynccontextmanager
    async def _group_in_memory(self, folder: str, number: int, seed: int) -> AsyncIterator[Group]:
        random = Random(f"{seed}/{number}")
        network = MemoryNetwork(random)

        def opening(key: SigningKey) -> OpenTransport:
            async def open_transport(resources: AsyncExitStack) -> Transport:
                transport = network.join(key.peer_id)
                resources.push_async_callback(transport.aclose)
                return transport

            return open_transport

        def next_number(last: int) -> int:
            chosen = last + 1 if last else int(network.now_s // CONFIG.period_s) + 2
            network.now_s = (chosen - 2) * CONFIG.period_s + 1.0
            return chosen

        async def leave(member: Witnessed) -> None:
            await member.transport.aclose()

        homes = [Home(Path(folder) / f"{number}-{member}") for member in range(MEMBERS)]
        members = [
            Witnessed(key, home, opening(key), CONFIG, random, JITTER_S)
            for key, home in zip(self._keys, homes, strict=True)
        ]
        nothing = Afflictions(kill=leave, hang=lambda member: None, resume=lambda member: None)
        async with _started(members):
            yield Group(members, CONFIG, nothing, random, next_number)


@asynccontextmanager
async def _group_over_p2pd(folder: str, number: int, seed: int) -> AsyncIterator[Group]:
    random = Random(f"{seed}/{number}")
    members: list[Witnessed] = []

    def opening(home: Home) -> OpenTransport:
        async def open_transport(resources: AsyncExitStack) -> Transport:
            others = [member.transport.addresses[0] for member in members if member.is_started]
            transport = await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key))
            resources.push_async_callback(transport.aclose)
            for address in others:
                await transport.connect(address)
            return transport

        return open_transport

    def next_number(last: int) -> int:
        return max(last + 1, int(members[0].transport.now_s() // OVER_P2PD.period_s) + 2)

    async def kill(member: Witnessed) -> None:
        _p2pd(member).kill()

    for member in range(MEMBERS):
        home = Home(Path(folder) / f"{number}-{member}")
        home.create()
        members.append(Witnessed(load_or_create_identity(home), home, opening(home), OVER_P2PD, random, JITTER_S))
    signals = Afflictions(
        kill=kill, hang=lambda member: _p2pd(member).suspend(), resume=lambda member: _p2pd(member).resume()
    )
    async with _started(members):
        yield Group(members, OVER_P2PD, signals, random, next_number)


@asynccontextmanager
async def _started(members: Sequence[Witnessed]) -> AsyncIterator[None]:
    try:
        for member in members:
            await member.start()
        yield
    finally:
        for member in members:
            await member.die()


def _p2pd(member: Witnessed) -> psutil.Process:
    return psutil.Process(member.transport._p2p._child.pid)


if __name__ == "__main__":
    obey_on_a_loop(Faults)
