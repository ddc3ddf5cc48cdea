"""Joining: a dead address is a warning and a retry, a late one is joined, and peers are kept awake."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from mesh_in_memory import key_of, memory_network

from meshnode import bootstrap as module
from meshnode.bootstrap import Bootstrap
from meshnode.transport.memory import MemoryTransport
from protocol.identifiers import PeerId

ME, A, B = (key_of(name).peer_id for name in ("me", "a", "b"))


def address(peer_id: PeerId) -> str:
    return f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id}"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.002)
    monkeypatch.setattr(module, "LAST_RETRY_S", 0.008)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.01)


class CountingTransport:
    """Counts what the bootstrap does with a transport."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self.attempts: list[tuple[str, float]] = []
        self.pinged: list[PeerId] = []
        self.did = asyncio.Event()

    async def connect(self, address: str) -> PeerId:
        self.attempts.append((address, asyncio.get_running_loop().time()))
        self.did.set()
        return await self._transport.connect(address)

    async def connected_peers(self) -> tuple[PeerId, ...]:
        return tuple(await self._transport.connected_peers())

    async def ping(self, peer_id: PeerId) -> bool:
        self.pinged.append(peer_id)
        self.did.set()
        return await self._transport.ping(peer_id)

    async def until(self, count: int, events: list[object]) -> None:
        async with asyncio.timeout(5):
            while len(events) < count:
                self.did.clear()
                await self.did.wait()


@asynccontextmanager
async def running(bootstrap: Bootstrap) -> AsyncIterator[None]:
    task = asyncio.create_task(bootstrap.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_dead_address_is_one_warning_then_retried_until_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    network = memory_network()
    transport = CountingTransport(network.join(ME))
    bootstrap = Bootstrap(transport, [address(A)])  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        async with running(bootstrap):
            await transport.until(5, transport.attempts)
            state = bootstrap.states[0]
            assert not state.connected
            assert A in (state.error or "")
            assert not bootstrap.joined.is_set()
            network.join(A)
            async with asyncio.timeout(5):
                await bootstrap.joined.wait()
            await transport.until(len(transport.attempts) + 2, transport.attempts)
    assert (state.connected, state.error, state.peer_id) == (True, None, A)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_it_is_known_when_every_address_has_been_tried_once_and_how_each_stands() -> None:
    network = memory_network()
    network.join(A)
    bootstrap = Bootstrap(network.join(ME), [address(A), address(B)])
    assert [state.state for state in bootstrap.states] == ["connecting", "connecting"]
    assert not bootstrap.tried.is_set()
    async with running(bootstrap), asyncio.timeout(5):
        await bootstrap.tried.wait()
        assert [state.state for state in bootstrap.states] == ["connected", "retrying"]
        while bootstrap.num_connected != 1:
            await asyncio.sleep(0.001)


async def test_without_any_address_there_is_nothing_to_wait_for() -> None:
    bootstrap = Bootstrap(memory_network().join(ME), [])
    async with running(bootstrap), asyncio.timeout(5):
        await bootstrap.tried.wait()


async def test_the_pauses_between_attempts_grow() -> None:
    transport = CountingTransport(memory_network().join(ME))
    async with running(Bootstrap(transport, [address(A)])):  # type: ignore[arg-type]
        await transport.until(4, transport.attempts)
    moments = [moment for _, moment in transport.attempts]
    pauses = [after - before for before, after in pairwise(moments)]
    assert all(pause >= least for pause, least in zip(pauses, (0.002, 0.004, 0.008), strict=False))


async def test_one_dead_or_unreadable_address_does_not_keep_from_the_others() -> None:
    network = memory_network()
    network.join(B)
    bootstrap = Bootstrap(network.join(ME), ["nonsense", address(A), address(B)])
    async with running(bootstrap):
        async with asyncio.timeout(5):
            await bootstrap.joined.wait()
        unreadable, dead, live = bootstrap.states
        assert live.connected
        assert not dead.connected
        assert unreadable.error is not None
        assert "nonsense" in unreadable.error


async def test_an_address_that_dies_later_is_seen_to_be_dead_and_joined_again() -> None:
    network = memory_network()
    a = network.join(A)
    transport = CountingTransport(network.join(ME))
    bootstrap = Bootstrap(transport, [address(A)])  # type: ignore[arg-type]
    (state,) = bootstrap.states
    async with running(bootstrap):
        async with asyncio.timeout(5):
            await bootstrap.joined.wait()
        await a.aclose()
        await transport.until(len(transport.attempts) + 2, transport.attempts)
        assert not state.connected
        assert state.error
        network.join(A)
        await transport.until(len(transport.attempts) + 3, transport.attempts)
        assert state.connected


async def test_without_addresses_a_peer_that_comes_by_itself_counts_as_joined_and_is_pinged() -> None:
    network = memory_network()
    transport = CountingTransport(network.join(ME))
    bootstrap = Bootstrap(transport, [])  # type: ignore[arg-type]
    async with running(bootstrap):
        await asyncio.sleep(0)
        assert not bootstrap.joined.is_set()
        network.join(B)
        async with asyncio.timeout(5):
            await bootstrap.joined.wait()
        await transport.until(3, transport.pinged)
    assert set(transport.pinged) == {B}
