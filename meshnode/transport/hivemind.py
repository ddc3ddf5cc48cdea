"""The transport over hivemind: its p2pd for connections and its DHT for records.

Everything runs in the caller's asyncio loop and one child process, p2pd, which ends when its control socket closes: a
killed daemon therefore leaves none behind.
"""

import asyncio
import errno
import hashlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import get_dht_time

from meshnode.errors import ConfigInvalid, NodeError, PortInUse
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.guard import RecordsAndDeclarations, SeparateStorage, SignedRecordsOnly, reserve_for_records
from meshnode.transport.interface import Admission, FrameHandler, Traffic, admit_all
from meshnode.transport.links import CALLER_GONE_S, CalleeLink, CallerLink
from meshnode.transport.moe.network import HivemindMoe
from meshnode.transport.pool import LinkPool
from protocol.addresses import parse_address
from protocol.errors import CallTimeout, NotReady, PeerUnreachable, error_from_wire
from protocol.framing import Announced, Frame
from protocol.identifiers import PeerId
from protocol.messages import ErrorReply

__all__ = ["HivemindConfig", "HivemindTransport", "TransportFailed"]

STREAM_PROTOCOLS = ("/modulemesh/3",)
"""Versions of the stream protocol that this program speaks, the best first: libp2p takes the first that both do."""

FIRST_READ_BYTES = 2**20
"""More than hivemind's reader ever holds: the first read takes all that came before the stream was ours."""

TICK_S = 1.0
"""How often links are looked after."""

DHT_TIMEOUT_S = 1.0
"""A silent peer costs a look-up this long; hivemind's own 3 s make a look-up among the dead take minutes."""

BLACKLIST_S = 1.0
"""First pause before a silent DHT peer is asked again (it doubles): a node that restarts is back sooner than 5 s."""

DRAIN_S = 2.0
"""How long a stop waits for answers under way."""
# hivemind installs a handler of its own on import, and another name for a level; its lines go the way of ours.
use_hivemind_log_handler("nowhere")
logging.addLevelName(logging.WARNING, "WARNING")


class TransportFailed(NodeError):
    """p2pd could not be started or has ended; `reason` is its own last word."""

    code = "transport_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the connection to the network failed: {reason}", hint="Start the node again.")
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class HivemindConfig:
    identity_path: Path
    """libp2p private key; the peer id is its hash."""
    listen_host: str = "127.0.0.1"
    port: int = 0
    """TCP port; 0 takes any free one."""
    announce: tuple[str, ...] = ()
    """Addresses to tell others instead of those listened on."""
    client_only: bool = False
    """Use the DHT without storing for others, as a client that soon leaves should."""
    moe: bool = False
    """Take hivemind's own declarations of experts in the DHT, which are unsigned."""


class HivemindTransport:
    """A started node of the libp2p network; see `meshnode.transport.interface.Transport`."""

    def __init__(self, p2p: P2P, dht: DHTNode, addresses: Sequence[str], instruments: Instruments) -> None:
        self._p2p = p2p
        self._dht = dht
        self._addresses = tuple(addresses)
        self._peer_id = PeerId(p2p.peer_id.to_base58())
        self._traffic = Traffic()
        self._instruments = instruments
        self._links = LinkPool(self._open_link)
        self.moe = HivemindMoe(p2p, dht, self._traffic, instruments)
        """hivemind's own expert protocol; see `HivemindConfig.moe`."""
        self._handler: FrameHandler = _not_ready
        self._admission: Admission = admit_all
        self._dial_failures: dict[PeerId, str] = {}
        """Why the last attempt to dial failed, for each peer that `connect` was asked for."""
        self._serving: set[CalleeLink] = set()
        self._ticking: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, config: HivemindConfig, instruments: Instruments | None = None) -> "HivemindTransport":
        """Start p2pd and an empty DHT node.

        Args:
            config: How.
            instruments: Take the time of its look-ups and stores.

        Raises:
            PortInUse: Something listens there already.
            ConfigInvalid: This machine has no such address, or may not listen there.
            TransportFailed: p2pd did not start: the identity is unreadable, for instance.
        """
        host_kind = "ip6" if ":" in config.listen_host else "ip4"
        _require_free(config.listen_host, config.port)
        try:
            with _in_a_session_of_its_own():
                p2p = await P2P.create(
                    identity_path=str(config.identity_path),
                    host_maddrs=[f"/{host_kind}/{config.listen_host}/tcp/{config.port}"],
                    announce_maddrs=list(config.announce) or None,
                    dht_mode="client" if config.client_only else "server",
                    no_listen=config.client_only,
                    check_if_identity_free=False,
                    auto_nat=False,
                    nat_port_map=False,
                    use_relay=False,
                )
        except P2PDaemonError as exc:
            raise TransportFailed(str(exc)) from exc
        try:
            dht = await DHTNode.create(
                p2p=p2p,
                node_id=_node_id(p2p.peer_id),
                wait_timeout=DHT_TIMEOUT_S,
                blacklist_time=BLACKLIST_S,
                client_mode=config.client_only,
                record_validator=RecordsAndDeclarations() if config.moe else SignedRecordsOnly(),
            )
            if config.moe:
                dht.protocol.storage, dht.protocol.cache = SeparateStorage(), SeparateStorage()
            addresses = [] if config.client_only else [str(address) for address in await p2p.get_visible_maddrs()]
            transport = cls(p2p, dht, addresses, instruments or Instruments())
            await transport._start()
        except BaseException:
            await p2p.shutdown()
            raise
        return transport

    async def _start(self) -> None:
        for protocol in STREAM_PROTOCOLS:
            await self._p2p.add_binary_stream_handler(protocol, self._serve_stream)
        self._ticking = asyncio.create_task(self._tick(), name="links")

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def now_s(self) -> float:
        return float(get_dht_time())

    def serve(self, handler: FrameHandler, admit: Admission = admit_all) -> None:
        self._handler, self._admission = handler, admit

    async def connect(self, address: str) -> PeerId:
        peer = parse_address(address)
        peer_id = PeerID.from_base58(peer.peer_id)
        try:
            async with asyncio.timeout(2 * DHT_TIMEOUT_S):
                await self._p2p._client.connect(peer_id, [Multiaddr(peer.multiaddr.rpartition("/p2p/")[0])])
        except TimeoutError as exc:  # an OSError, so before those
            raise PeerUnreachable(peer.peer_id, reason="no answer to the connection attempt") from exc
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError) as exc:
            reason = _short(exc)
            # libp2p does not dial again at once, and then says only that; the cause is that of the last real attempt.
            if not reason.endswith("dial backoff"):
                self._dial_failures[peer.peer_id] = reason
            raise PeerUnreachable(peer.peer_id, reason=self._dial_failures.get(peer.peer_id, reason)) from exc
        self._dial_failures.pop(peer.peer_id, None)
        if await self._dht.protocol.call_ping(peer_id) is None:
            raise PeerUnreachable(peer.peer_id, reason="it answers, but not as a node of this DHT")
        # Learn of the nodes nearest to us, and let them learn of us.
        await self._dht.find_nearest_nodes([self._dht.node_id])
        return peer.peer_id

    async def connected_peers(self) -> Sequence[PeerId]:
        try:
            return tuple(PeerId(peer.peer_id.to_base58()) for peer in await self._p2p.list_peers())
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError):
            return ()

    async def ping(self, peer_id: PeerId) -> bool:
        """Ask a peer for its place in the DHT; keeps the routing tables of both whole after a partition."""
        return await self._dht.protocol.call_ping(PeerID.from_base58(peer_id)) is not None

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        try:
            reply = await self._links.call(peer_id, request, timeout_s=timeout_s)
        except TimeoutError as exc:
            raise CallTimeout(peer_id, type(request.message).__name__, timeout_s) from exc
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise PeerUnreachable(peer_id, reason=_short(exc)) from exc
        if isinstance(reply.message, ErrorReply):
            error = reply.message
            raise error_from_wire(error.code, error.message, error.data, peer_id=peer_id)
        return reply

    async def _open_link(self, peer_id: PeerId) -> CallerLink:
        try:
            # The call of P2P itself offers one protocol only.
            _, *stream = await self._p2p._client.stream_open(PeerID.from_base58(peer_id), STREAM_PROTOCOLS)
        except P2PDaemonError as exc:
            raise ConnectionError(_short(exc)) from exc
        link = CallerLink(peer_id, self._traffic)
        link.attach(tuple(stream))  # the callee speaks only when it is spoken to, so nothing has come yet
        return link

    async def _serve_stream(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one peer's requests until it closes the stream."""
        try:
            async with asyncio.timeout(CALLER_GONE_S):
                received = await reader.read(FIRST_READ_BYTES)
        except (TimeoutError, OSError):
            writer.close()
            return
        link = CalleeLink(PeerId(info.peer_id.to_base58()), self._answer, self._admit, self._traffic)
        self._serving.add(link)
        link.attach((reader, writer), received)
        try:
            await link.closed
        finally:
            self._serving.discard(link)
            link.close()

    async def _answer(self, sender: PeerId, request: Frame) -> Frame:
        return await self._handler(sender, request)

    def _admit(self, sender: PeerId, announced: Announced, wait_s: float) -> None:
        self._admission(sender, announced, wait_s)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self._links.tick(now_s)
            for link in tuple(self._serving):
                link.tick(now_s)

    async def publish(self, key: str, subkey: str, value: bytes, *, expires_at: float) -> bool:
        reserve_for_records(self._dht, key)
        with self._instruments.dht_requests.labels("store").time():
            return bool(await self._dht.store(key, value, expiration_time=expires_at, subkey=subkey))

    async def lookup(self, key: str) -> Mapping[str, bytes]:
        reserve_for_records(self._dht, key)
        with self._instruments.dht_requests.labels("get").time():
            found = await self._dht.get(key, latest=True)
        if found is None or not isinstance(found.value, Mapping):
            return {}
        return {
            subkey: entry.value
            for subkey, entry in found.value.items()
            if isinstance(subkey, str) and isinstance(entry.value, bytes)
        }

    async def wait_failed(self) -> str:
        status = await self._p2p._child.wait()
        return f"p2pd ended by itself (exit status {status})"

    async def aclose(self) -> None:
        if under_way := {task for link in self._serving for task in link.answering}:
            await asyncio.wait(under_way, timeout=DRAIN_S)
            await asyncio.sleep(0)  # the last answers are handed to the socket before it is closed
        if self._ticking is not None:
            self._ticking.cancel()
        self._links.close()
        for link in tuple(self._serving):
            link.close()
        # Without p2pd the DHT's goodbye would wait for ever.
        if self._p2p._child.returncode is None:
            with suppress(P2PDaemonError, OSError, TimeoutError):
                async with asyncio.timeout(DHT_TIMEOUT_S):
                    await self._dht.shutdown()
        await self._p2p.shutdown()


def _require_free(host: str, port: int) -> None:
    """p2pd would share the port with another p2pd (SO_REUSEPORT), and each of them get half of both's connections."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listeners
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise PortInUse(host, port) from exc
            raise ConfigInvalid(f"cannot listen on {host}:{port}: {exc.strerror}", hint="Change net.listen.") from exc


@contextmanager
def _in_a_session_of_its_own() -> Iterator[None]:
    """Start p2pd out of the terminal's reach: Ctrl+C is for the daemon, which needs p2pd to say goodbye.

    hivemind has no option for it, so the function it starts p2pd with is replaced meanwhile. p2pd ends with its
    control socket all the same.
    """
    start = asyncio.subprocess.create_subprocess_exec
    asyncio.subprocess.create_subprocess_exec = partial(start, start_new_session=True)
    try:
        yield
    finally:
        asyncio.subprocess.create_subprocess_exec = start


def _node_id(peer_id: PeerID) -> DHTID:
    """SHA-1 of the peer id: a node cannot choose its place in the DHT."""
    return DHTID(int.from_bytes(hashlib.sha1(peer_id.to_bytes(), usedforsecurity=False).digest(), "big"))


def _short(exc: BaseException) -> str:
    """The part of libp2p's words that a person can use: one line, without the list of dials."""
    lines = [line.strip(" *") for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__


async def _not_ready(sender: PeerId, request: Frame) -> Frame:
    raise NotReady("this node does not answer yet")
