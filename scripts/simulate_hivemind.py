"""hivemind's own DHT nodes on a virtual clock and network: what a mesh's look-ups and renewals cost, counted message by
message.

The nodes are unmodified `hivemind.dht.node.DHTNode` in one event loop, whose time is virtual: it jumps to the next
timer whenever nobody is ready. In p2pd's place stands `_Wire`, which delays each message and counts its bytes. Records
are signed ones, but nobody verifies them, as millions take hours; what it costs is measured in `simulate_dht`.
"""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import hivemind.dht.node
import hivemind.dht.protocol
import hivemind.dht.routing
import hivemind.utils.timed_storage
import numpy as np
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from simulate_network import NetworkConfig, Stream
from simulate_sizes import peer_named

from meshnode.transport.hivemind import BLACKLIST_S, DHT_TIMEOUT_S

__all__ = ["DhtRun", "VirtualLoop", "run_dht"]

WARM_UP_REFRESHES = 2.5
"""Until everybody has published, and has read all records and cached them."""


class _Jumping(selectors.SelectSelector):
    """Never waits: moves the clock instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which sleeping takes no time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


@dataclass(slots=True)
class DhtRun:
    """What was seen within the measured time."""

    num_nodes: int
    measured_s: float
    lookup_s: list[float] = field(default_factory=list)
    """How long each look-up took."""
    store_s: list[float] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    """Records that each look-up brought."""
    requests: Counter[str] = field(default_factory=Counter)
    """By kind: "find", "store", "ping"."""
    bytes_sent: Counter[int] = field(default_factory=Counter)
    """By node: requests and answers."""
    finds_served: Counter[int] = field(default_factory=Counter)
    """By node."""
    known_s: list[float] = field(default_factory=list)
    """From the publication of a new record until each other node has read it."""


class _Wires:
    """Connects the nodes' ends."""

    def __init__(self, network: NetworkConfig, seed: int, run: DhtRun) -> None:
        self.ends: dict[PeerID, _Wire] = {}
        self.run = run
        self.is_counting = False
        sigma, median = network.latency_sigma, np.log(network.latency_s)
        self._latency = Stream(seed, "dht latency", lambda rng, num: rng.lognormal(median, sigma, num))

    async def carry(self, sender: "_Wire", receiver: "_Wire", name: str, request: Any, wanted: type[Any]) -> Any:
        kind = name.rpartition("rpc_")[2]
        data = request.SerializeToString()
        await asyncio.sleep(self._latency.next())
        answer = await receiver.handlers[name](type(request).FromString(data), _Context(sender.peer_id))
        reply = answer.SerializeToString()
        if self.is_counting:
            self.run.requests[kind] += 1
            self.run.bytes_sent[sender.number] += len(data)
            self.run.bytes_sent[receiver.number] += len(reply)
            self.run.finds_served[receiver.number] += kind == "find"
        await asyncio.sleep(self._latency.next())
        return wanted.FromString(reply)


@dataclass(frozen=True, slots=True)
class _Context:
    remote_id: PeerID


class _Wire:
    """What a DHT node needs of `hivemind.p2p.P2P`."""

    def __init__(self, wires: _Wires, number: int) -> None:
        self.number = number
        self.peer_id = PeerID.from_base58(peer_named(number))
        self.handlers: dict[str, Callable[..., Awaitable[Any]]] = {}
        self._wires = wires
        wires.ends[self.peer_id] = self

    async def add_protobuf_handler(self, name: str, handler: Callable[..., Awaitable[Any]], *_: Any, **__: Any) -> None:
        self.handlers[name] = handler

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, request: Any, wanted: type[Any]) -> Any:
        return await self._wires.carry(self, self._wires.ends[peer_id], name, request, wanted)


def run_dht(
    num_nodes: int, record: bytes, network: NetworkConfig, *, refresh_s: float, ttl_s: float, seed: int
) -> DhtRun:
    """Let a mesh of real DHT nodes read and renew its records.

    After a warm-up one refresh is measured; then a new record is published, and the run ends when all have read it.
    """
    run = DhtRun(num_nodes, refresh_s)
    loop = VirtualLoop()
    with _time_of(loop):
        mesh = _DhtMesh(_Wires(network, seed, run), record, refresh_s, ttl_s, seed)
        loop.run_until_complete(mesh.live(num_nodes))
        loop.run_until_complete(_end_all())
    loop.close()
    return run


async def _end_all() -> None:
    """Cancel whatever the nodes still have under way, and what that begins."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _DhtMesh:
    """The nodes, and what each of them does all the time.

    Args:
        wires: Between them.
        record: What each of them publishes.
        refresh_s: From one look-up to the next.
        ttl_s: Life of a lease.
        seed: Of the moments at which they begin.
    """

    def __init__(self, wires: _Wires, record: bytes, refresh_s: float, ttl_s: float, seed: int) -> None:
        self._wires = wires
        self._record = record
        self._refresh_s = refresh_s
        self._ttl_s = ttl_s
        self._random = random.Random(seed)
        self._news_s: float | None = None
        self._knowing: set[int] = set()
        self._all_know = asyncio.Event()

    async def live(self, num_nodes: int) -> None:
        nodes: list[DHTNode] = []
        for number in range(num_nodes):
            end = _Wire(self._wires, number)
            node_id = DHTID.generate(source=end.peer_id.to_bytes())
            node = await DHTNode.create(
                p2p=end, node_id=node_id, wait_timeout=DHT_TIMEOUT_S, blacklist_time=BLACKLIST_S
            )
            if nodes:
                await node.protocol.call_ping(self._random.choice(nodes).peer_id)
                await node.find_nearest_nodes([node.node_id])
            nodes.append(node)
        services = [service(node, number) for number, node in enumerate(nodes) for service in (self._renew, self._read)]
        living = asyncio.gather(*services)
        await asyncio.sleep(WARM_UP_REFRESHES * self._refresh_s)
        self._wires.is_counting = True
        await asyncio.sleep(self._wires.run.measured_s)
        self._wires.is_counting = False
        self._news_s = asyncio.get_running_loop().time()
        await self._publish(nodes[0], "news")
        await self._all_know.wait()
        living.cancel()
        with suppress(asyncio.CancelledError):
            await living

    async def _publish(self, node: DHTNode, subkey: str) -> None:
        expires_at = asyncio.get_running_loop().time() + self._ttl_s
        await node.store("peers", self._record, expiration_time=expires_at, subkey=subkey)

    async def _renew(self, node: DHTNode, number: int) -> None:
        loop = asyncio.get_running_loop()
        # All of them soon, and then at moments of their own.
        await asyncio.sleep(self._random.random() * self._refresh_s)
        pause_s = self._random.random() * self._ttl_s / 3
        while True:
            began_s = loop.time()
            await self._publish(node, peer_named(number))
            if self._wires.is_counting:
                self._wires.run.store_s.append(loop.time() - began_s)
            await asyncio.sleep(pause_s)
            pause_s = self._ttl_s / 3

    async def _read(self, node: DHTNode, number: int) -> None:
        loop, run = asyncio.get_running_loop(), self._wires.run
        await asyncio.sleep(self._random.random() * self._refresh_s)
        while True:
            began_s = loop.time()
            found = await node.get("peers", latest=True)
            records = {} if found is None else found.value
            if self._wires.is_counting:
                run.lookup_s.append(loop.time() - began_s)
                run.found.append(len(records))
            if self._news_s is not None and "news" in records and number not in self._knowing and number:
                self._knowing.add(number)
                run.known_s.append(loop.time() - self._news_s)
                if len(self._knowing) == run.num_nodes - 1:
                    self._all_know.set()
            await asyncio.sleep(self._refresh_s)


@contextmanager
def _time_of(loop: VirtualLoop) -> Iterator[None]:
    """hivemind reads the clock by a name that each of its modules has of its own."""
    modules = (hivemind.dht.node, hivemind.dht.protocol, hivemind.dht.routing, hivemind.utils.timed_storage)
    with ExitStack() as patches:
        for module in modules:
            patches.enter_context(mock.patch.object(module, "get_dht_time", loop.time))
        yield
