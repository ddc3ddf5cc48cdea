"""Rounds between three members, each with a p2pd of its own: the mean of all three, or nothing.

The members live in one process, so that a test can choose the moment at which one of them becomes slow or dies.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from integration_nodes import is_running
from integration_pulled import transport_in

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import Averaged, mean_of
from experts.checkpoint import load_flat, weights_to_bytes
from meshnode.advertiser import Advertiser
from meshnode.averaging.averager import Averager, Hooks
from meshnode.averaging.settings import AveragerConfig
from meshnode.compute import Compute
from meshnode.directory import Directory
from meshnode.home import Home
from meshnode.hosted import Descent
from meshnode.hosting import ExpertHost
from meshnode.identity import load_or_create_identity
from meshnode.pacing import Pacer
from meshnode.state.state import State
from meshnode.transport.hivemind import HivemindTransport
from protocol.framing import Frame
from protocol.identifiers import Digest, ExpertUid, MeshId, PeerId, digest_of, expert_uid
from protocol.membership import round_number
from protocol.messages import RoundAttestation, RoundParts, RoundTalk
from protocol.records import PeerRecord

pytestmark = pytest.mark.integration

MESH = MeshId(digest_of(b"a mesh of three"))
CLASSES = ("cat", "dog")
PERIOD_S, TIMEOUT_S = 20.0, 4.0

Moment = Callable[[], Awaitable[None]]


class Interruptible:
    """A member's transport with moments at which something can be made to happen."""

    def __init__(self, transport: HivemindTransport) -> None:
        self._transport = transport
        self.before_exchange: Moment | None = None
        self.exchanged = asyncio.Event()
        self.before_attestation: Moment | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        message = request.message
        if isinstance(message, RoundTalk) and isinstance(message.words[0], RoundAttestation):
            self.exchanged.set()
            if self.before_attestation is not None:
                await self.before_attestation()
        if isinstance(message, RoundParts) and self.before_exchange is not None:
            await self.before_exchange()
        return await self._transport.call(peer_id, request, timeout_s=timeout_s)


@dataclass(frozen=True)
class Member:
    transport: Interruptible
    p2pd: psutil.Process
    host: ExpertHost
    directory: Directory
    advertiser: Advertiser
    averager: Averager
    uid: ExpertUid

    @property
    def vector(self) -> np.ndarray:
        return self.host.snapshot(self.uid)


@asynccontextmanager
async def _member(folder: Path, architecture: MlpArchitecture, start: np.ndarray) -> AsyncIterator[Member]:
    async with AsyncExitStack() as stack:
        transport = Interruptible(await stack.enter_async_context(transport_in(folder)))
        home = Home(folder)
        state = stack.enter_context(State(home))
        compute = Compute()
        stack.callback(compute.close)
        host = ExpertHost(state, compute)
        uid = expert_uid(MESH, Digest(architecture.digest()), CLASSES)
        module = architecture.build(uid)
        load_flat(module, torch.from_numpy(start))
        averaged_before = round_number(transport.now_s(), PERIOD_S)
        expert = await host.adopt(uid, CLASSES, architecture, weights_to_bytes(module), Descent(round=averaged_before))
        expert.drift = math.inf
        directory = Directory(transport, MESH, refresh_s=60.0, objection=lambda advert: None)
        config = AveragerConfig(period_s=PERIOD_S, timeout_s=TIMEOUT_S)

        async def apply(uid: ExpertUid, averaged: Averaged, number: int) -> None:
            await host.apply_round(uid, averaged, number=number)

        async def not_behind(uid: ExpertUid) -> None:
            raise AssertionError("nobody has missed a round")

        hooks = Hooks(apply=apply, catch_up=not_behind, weight=lambda uid: 1.0, pacer=Pacer(None))
        averager = Averager(transport, directory, host, config, hooks)

        def describe(issued_at: float, expires_at: float, leaving: bool) -> PeerRecord:
            return PeerRecord(
                mesh_id=MESH,
                peer_id=transport.peer_id,
                peer_name=folder.name,
                issued_at=issued_at,
                expires_at=expires_at,
                leaving=leaving,
                experts=(expert.advert(),),
                contributions=None,
            )

        transport.serve(averager.answer)
        key = load_or_create_identity(home)
        advertiser = Advertiser(transport, key, describe, ttl_s=120.0, published=directory.take)
        p2pd = psutil.Process(transport._p2p._child.pid)
        yield Member(transport, p2pd, host, directory, advertiser, averager, uid)


@asynccontextmanager
async def _three(folder: Path, *, hidden: int = 8) -> AsyncIterator[list[Member]]:
    """Members that have found one another in the DHT and hold different parameters."""
    architecture = MlpArchitecture(feature_dim=512, hidden=hidden, num_classes=len(CLASSES))
    random = np.random.default_rng(1)
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(
                _member(folder / name, architecture, random.normal(size=architecture.num_parameters).astype(np.float32))
            )
            for name in ("ann", "ben", "cho")
        ]
        for member in members[1:]:
            await member.transport.connect(members[0].transport.addresses[0])
        for member in members:
            assert await member.advertiser.publish()
        for member in members:
            await member.directory.refresh()
            assert len(member.directory.records()) == 3
        yield members


def _next_round(members: list[Member]) -> int:
    return round_number(members[0].transport.now_s(), PERIOD_S) + 2


async def _run_round(members: list[Member], number: int) -> None:
    async with asyncio.timeout(30):
        await asyncio.gather(*(member.averager.run_round(number) for member in members))


async def _run_until_all_commit(members: list[Member], numbers: range) -> None:
    """A member that comes back finds its streams broken, which on a busy machine can cost it a round."""
    for number in numbers:
        before, committed = _vectors(members), [member.averager.results["committed"] for member in members]
        await _run_round(members, number)
        if all(m.averager.results["committed"] > had for m, had in zip(members, committed, strict=True)):
            _assert_hold_mean(members, of=before)
            return
    raise AssertionError([dict(member.averager.results) for member in members])


def _vectors(members: list[Member]) -> list[np.ndarray]:
    return [member.vector for member in members]


def _assert_hold_mean(members: list[Member], *, of: list[np.ndarray]) -> None:
    mean = mean_of([torch.from_numpy(vector) for vector in of]).numpy()
    for member in members:
        np.testing.assert_allclose(member.vector, mean, rtol=0, atol=1e-6)


def _unchanged(members: list[Member], before: list[np.ndarray]) -> bool:
    return all(np.array_equal(member.vector, vector) for member, vector in zip(members, before, strict=True))


def _assert_all_or_nothing(members: list[Member], before: list[np.ndarray]) -> None:
    """Nobody has changed; or the last member was found silent in time, and the others did without it."""
    if not _unchanged(members, before):
        _assert_hold_mean(members[:2], of=before[:2])
        assert _unchanged(members[2:], before[2:])


@pytest.mark.parametrize("hidden", [8, 1600])
async def test_every_member_ends_with_the_mean_of_all(tmp_path: Path, hidden: int) -> None:
    # 8 hidden units are one part a reducer, 1600 are 3.3 MB in several.
    async with _three(tmp_path, hidden=hidden) as members:
        number, before = _next_round(members), _vectors(members)
        await _run_round(members, number)
        _assert_hold_mean(members, of=before)
        ids = tuple(sorted(member.transport.peer_id for member in members))
        for member in members:
            assert member.averager.results == {"committed": 1}
            assert member.averager.last_committed[member.uid] == (number, ids)
            assert member.averager.waiting() == ()

        await _run_round(members, number + 1)
        assert all(member.averager.results == {"committed": 1} for member in members), "there was nothing to do"


async def test_a_round_that_begins_before_the_last_has_ended_does_not_count_a_difference_twice(tmp_path: Path) -> None:
    async with _three(tmp_path) as members:
        number, before = _next_round(members), _vectors(members)
        await asyncio.gather(_run_round(members, number), _run_round(members, number + 1))
        _assert_hold_mean(members, of=before)


async def test_a_member_too_slow_for_the_exchange_is_left_out_and_joins_in_again(tmp_path: Path) -> None:
    async with _three(tmp_path) as members:
        *others, slow = members

        async def dawdle() -> None:
            await asyncio.sleep(0.5 * TIMEOUT_S)  # longer than the others wait for its part

        slow.transport.before_exchange = dawdle
        number, before = _next_round(members), _vectors(members)
        await _run_round(members, number)
        _assert_hold_mean(others, of=before[:2])
        assert _unchanged([slow], before[2:])
        assert [member.averager.results["committed"] for member in members] == [1, 1, 0]

        slow.transport.before_exchange = None
        before = _vectors(members)
        await _run_round(members, number + 1)
        _assert_hold_mean(members, of=before)


async def test_a_member_that_hangs_in_the_exchange_does_not_part_the_others(tmp_path: Path) -> None:
    async with _three(tmp_path) as members:
        hung = members[2]

        async def hang() -> None:
            await asyncio.sleep(0.1)  # its proposal has reached the others by then
            hung.p2pd.suspend()
            # It runs on, and sends parts, until one of its threads has had its turn on a busy machine.
            while hung.p2pd.status() != psutil.STATUS_STOPPED:
                await asyncio.sleep(0.002)

        hung.transport.before_exchange = hang
        number, before = _next_round(members), _vectors(members)
        try:
            await _run_round(members, number)
        finally:
            hung.p2pd.resume()
        _assert_all_or_nothing(members, before)

        hung.transport.before_exchange = None
        await _run_until_all_commit(members, range(number + 1, number + 4))


async def test_a_member_that_dies_in_the_exchange_is_left_out_of_the_next_round(tmp_path: Path) -> None:
    async with _three(tmp_path) as members:
        dead, survivors = members[2], members[:2]

        async def die() -> None:
            dead.p2pd.kill()

        dead.transport.before_exchange = die
        number, before = _next_round(members), _vectors(members)
        await _run_round(members, number)
        _assert_all_or_nothing(members, before)

        await _run_round(survivors, number + 1)
        _assert_hold_mean(survivors, of=before[:2])
        assert _unchanged([dead], before[2:])


async def test_a_member_that_dies_before_it_has_attested_is_left_out_of_the_second_attempt(tmp_path: Path) -> None:
    async with _three(tmp_path) as members:
        dead, survivors = members[2], members[:2]

        async def die() -> None:
            for survivor in survivors:  # who still waits for a part of the dead one's has no full mean to attest
                await survivor.transport.exchanged.wait()
            if is_running(dead.p2pd):
                dead.p2pd.kill()
                await asyncio.sleep(0.1)

        dead.transport.before_attestation = die
        before = _vectors(members)
        await _run_round(members, _next_round(members))
        _assert_hold_mean(survivors, of=before[:2])
        assert _unchanged([dead], before[2:])
        for survivor in survivors:
            assert survivor.averager.results == {"partner_silent": 1, "committed": 1}
