"""A process of the benchmark of averaging: a peer on one event loop, as its orders want it.

Started by `bench_children`. Moments are of `time.perf_counter`, which all processes of a machine share.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_averaging_member import Member
from bench_averaging_pull import BlobPeer
from bench_averaging_runner import Runner
from bench_averaging_ticker import ticking
from bench_orders import obey_on_a_loop

from experts.averaging import Averaged
from meshnode.averaging.settings import AveragerConfig
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.node import SWITCH_S
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport

CONFIG = AveragerConfig(period_s=1.0, timeout_s=60.0)
"""A period so short that every second has a number; nothing is late by this deadline."""

TOLERANCE = 1e-6


class AveragingPeer:
    """The commands of a child, each a coroutine method named as the command."""

    def __init__(self) -> None:
        self._resources = AsyncExitStack()
        self._member: Member
        self._runner: Runner
        self._blobs: BlobPeer
        self._expected: list[np.ndarray] = []
        """The mean that the next round has to come to, of each expert."""

    async def open(self, folder: str, join: Sequence[str]) -> str:
        """Be a peer whose home is in this folder, and join the others; its address."""
        sys.setswitchinterval(SWITCH_S)  # as the daemon does
        home = Home(Path(folder))
        home.create()
        key = load_or_create_identity(home)
        transport = await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key))
        self._resources.push_async_callback(transport.aclose)
        resources = self._resources.enter_context(ExitStack())
        self._member = Member(transport, key, home, CONFIG, resources)
        self._runner = Runner(transport._p2p)
        await self._runner.start()
        for address in join:
            await transport.connect(address)
        return transport.addresses[0]

    async def adopt(self, experts: int, parameters: int) -> str:
        """Host so many experts of this size; returns the peer's id."""
        await self._member.adopt(experts, parameters)
        await self._member.announce()
        return self._member.transport.peer_id

    async def look(self) -> int:
        """Read the others' records; how many peers there are."""
        seen = await self._member.look()
        gc.collect()
        gc.freeze()  # as the daemon does once it is ready
        return seen

    async def learn(self, seed: int, peers: int, me: int) -> None:
        """Come to other parameters than the others, which all of them can foresee."""
        self._expected = []
        for expert, uid in enumerate(self._member.uids):
            drawn = [np.random.default_rng([seed, expert, peer]) for peer in range(peers)]
            size = self._member.host.get(uid).num_parameters
            learned = [rng.standard_normal(size, np.float32) for rng in drawn]
            await self._member.learn(uid, learned[me])
            self._expected.append(np.mean(learned, axis=0, dtype=np.float64))

    async def watched_round(self, number: int, begin_at_s: float) -> dict[str, Any]:
        """As `round`, with ``late_ms``: by how much ticks on this loop were late meanwhile."""
        await asyncio.sleep(begin_at_s - time.perf_counter())
        async with ticking() as late_ms:
            outcome = await self.round(number, begin_at_s)
        return outcome | {"late_ms": late_ms}

    async def round(self, number: int, begin_at_s: float) -> dict[str, Any]:
        """Average everything once.

        Args:
            number: The round's.
            begin_at_s: When to begin.

        Returns: When the last commit began and when the round ended, in seconds after its begin; and the payload bytes
            sent.
        """
        traffic, member = self._member.transport.traffic, self._member
        sent_bytes = traffic.sent["averaging"]
        member.began_to_commit_s.clear()
        await asyncio.sleep(begin_at_s - time.perf_counter())
        await member.averager.run_round(number)
        ended_s = time.perf_counter()
        return {
            "commits_s": max(member.began_to_commit_s, default=ended_s) - begin_at_s,
            "ended_s": ended_s - begin_at_s,
            "sent_bytes": traffic.sent["averaging"] - sent_bytes,
        }

    async def reduce(self, number: int, begin_at_s: float, members: Sequence[str]) -> dict[str, Any]:
        """The same by hivemind's AllReduceRunner, and the same commits."""
        member = self._member
        await asyncio.sleep(begin_at_s - time.perf_counter())
        began_to_commit_s = []

        async def average(expert: int) -> None:
            uid, group_id = member.uids[expert], b"%d.%d" % (number, expert)
            vector = member.host.snapshot(uid)
            delta = await self._runner.delta(group_id, list(members), vector)
            began_to_commit_s.append(time.perf_counter())
            await member.host.apply_round(uid, Averaged(mean=vector + delta, delta=delta), number=number)

        await asyncio.gather(*map(average, range(len(member.uids))))
        ended_s = time.perf_counter()
        return {"commits_s": max(began_to_commit_s) - begin_at_s, "ended_s": ended_s - begin_at_s}

    async def tick(self, span_s: float) -> list[float]:
        """How late ticks are on this loop while nothing else is asked of it, in ms."""
        async with ticking() as late_ms:
            await asyncio.sleep(span_s)
        return late_ms

    async def wrong(self) -> int:
        """How many replicas do not hold the mean of what all have learned last."""
        held = map(self._member.host.snapshot, self._member.uids)
        return sum(np.abs(one - mean).max() > TOLERANCE for one, mean in zip(held, self._expected, strict=True)).item()

    async def open_blobs(self, folder: str, join: Sequence[str]) -> str:
        """Be a peer that has or gets blobs; its address."""
        self._blobs = await BlobPeer.open(folder, join, self._resources)
        return self._blobs.address

    async def keep_blob(self, seed: int) -> str:
        """As `BlobPeer.keep`."""
        return self._blobs.keep(seed)

    async def pull_blob(self, address: str, digest: str) -> float:
        """As `BlobPeer.pull`."""
        return await self._blobs.pull(address, digest)

    async def stream_bytes(self, address: str) -> float:
        """As `BlobPeer.stream`."""
        return await self._blobs.stream(address)

    async def close(self) -> None:
        """Close all that was opened."""
        await self._resources.aclose()


if __name__ == "__main__":
    obey_on_a_loop(AveragingPeer)
