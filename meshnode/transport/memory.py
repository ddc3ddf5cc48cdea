"""A network inside one process: the same interface, with delays, losses and partitions that a test decides.

Shipped rather than hidden in the tests, because whoever builds on the mesh wants to test against it too. Frames and
records are encoded and decoded on the way, so what passes here would pass on the wire.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence

from meshnode.transport.interface import Admission, FrameHandler, Traffic, admit_all, kind_of
from protocol.addresses import parse_address
from protocol.errors import CallTimeout, ModuleMeshError, NotReady, PeerUnreachable, error_from_wire
from protocol.framing import EncodedFrame, Frame, decode_body, decode_header, encode_frame
from protocol.identifiers import PeerId
from protocol.messages import ErrorReply, error_reply

__all__ = ["MemoryNetwork", "MemoryTransport"]


class MemoryNetwork:
    """Everything the fake's nodes share: who is there, what the DHT holds, and how badly the wires behave.

    Args:
        rng: Decides which messages are lost; the only randomness here.
        delay_s: One-way delay of every message, in seconds.
        loss_ratio: Share of requests that vanish, in [0, 1]; the caller then waits out its deadline.
    """

    def __init__(self, rng: random.Random, *, delay_s: float = 0.0, loss_ratio: float = 0.0) -> None:
        self.delay_s = delay_s
        self.loss_ratio = loss_ratio
        self.now_s = 1_000_000.0
        """The DHT's clock. It stands still unless the test moves it."""
        self._rng = rng
        self._nodes: dict[PeerId, MemoryTransport] = {}
        self._records: dict[str, dict[str, tuple[bytes, float]]] = {}
        self._islands: list[frozenset[PeerId]] = []

    def partition(self, *islands: frozenset[PeerId]) -> None:
        """Only peers of one island reach each other and find each other's records; a peer in none is alone. No islands
        heal the network."""
        self._islands = list(islands)

    def join(self, peer_id: PeerId) -> "MemoryTransport":
        transport = MemoryTransport(self, peer_id)
        self._nodes[peer_id] = transport
        return transport

    def _leave(self, peer_id: PeerId) -> None:
        self._nodes.pop(peer_id, None)

    def _reachable(self, a: PeerId, b: PeerId) -> bool:
        return self._together(a, b) and a in self._nodes and b in self._nodes

    def _together(self, a: str, b: str) -> bool:
        return not self._islands or a == b or any(a in island and b in island for island in self._islands)

    async def _deliver(self, sender: PeerId, receiver: PeerId, frame: EncodedFrame, *, wait_s: float) -> EncodedFrame:
        if not self._reachable(sender, receiver):
            raise PeerUnreachable(receiver)
        await asyncio.sleep(self.delay_s)
        if self._rng.random() < self.loss_ratio:
            await asyncio.Event().wait()  # lost: nobody will ever answer
        if not self._reachable(sender, receiver):
            raise PeerUnreachable(receiver)
        reply = await self._nodes[receiver]._answer(sender, frame, wait_s=wait_s)
        await asyncio.sleep(self.delay_s)
        if not self._reachable(sender, receiver):
            raise PeerUnreachable(receiver)
        return reply

    def _store(self, key: str, subkey: str, value: bytes, expires_at: float) -> bool:
        held = self._records.setdefault(key, {})
        if expires_at <= self.now_s or (subkey in held and held[subkey][1] >= expires_at):
            return False
        held[subkey] = (value, expires_at)
        return True

    def _find(self, reader: PeerId, key: str) -> dict[str, bytes]:
        return {
            subkey: value
            for subkey, (value, expires_at) in self._records.get(key, {}).items()
            if expires_at > self.now_s and self._together(reader, subkey)
        }


class MemoryTransport:
    """One node's end of a `MemoryNetwork`; see `meshnode.transport.interface.Transport`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self._network = network
        self._peer_id = peer_id
        self._traffic = Traffic()
        self._handler: FrameHandler = _nobody_home
        self._admit: Admission = admit_all

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return (f"/ip4/127.0.0.1/tcp/1/p2p/{self._peer_id}",)

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def now_s(self) -> float:
        return self._network.now_s

    def serve(self, handler: FrameHandler, admit: Admission = admit_all) -> None:
        self._handler, self._admit = handler, admit

    async def connect(self, address: str) -> PeerId:
        peer_id = parse_address(address).peer_id
        if not self._network._reachable(self._peer_id, peer_id):
            raise PeerUnreachable(peer_id)
        return peer_id

    async def connected_peers(self) -> Sequence[PeerId]:
        others = (peer for peer in self._network._nodes if peer != self._peer_id)
        return tuple(peer for peer in others if self._network._reachable(self._peer_id, peer))

    async def ping(self, peer_id: PeerId) -> bool:
        return self._network._reachable(self._peer_id, peer_id)

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        encoded = encode_frame(request)
        kind = kind_of(request.message)
        self._traffic.sent[kind] += encoded.num_bytes
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._network._deliver(self._peer_id, peer_id, encoded, wait_s=timeout_s)
        except TimeoutError as exc:
            raise CallTimeout(peer_id, type(request.message).__name__, timeout_s) from exc
        frame = decode_body(decode_header(reply.header), bytearray().join(reply.body))
        self._traffic.received[kind] += reply.num_bytes
        if isinstance(frame.message, ErrorReply):
            error = frame.message
            raise error_from_wire(error.code, error.message, error.data, peer_id=peer_id)
        return frame

    async def _answer(self, sender: PeerId, data: EncodedFrame, *, wait_s: float) -> EncodedFrame:
        kind = "control"
        try:
            announced = decode_header(data.header)
            kind = kind_of(announced.message)
            self._admit(sender, announced, wait_s)
            request = decode_body(announced, bytearray().join(data.body))
            self._traffic.received[kind] += data.num_bytes
            reply = await self._handler(sender, request)
        except ModuleMeshError as error:
            reply = Frame(error_reply(error))
        encoded = encode_frame(reply)
        self._traffic.sent[kind] += encoded.num_bytes
        return encoded

    async def publish(self, key: str, subkey: str, value: bytes, *, expires_at: float) -> bool:
        return self._network._store(key, subkey, value, expires_at)

    async def lookup(self, key: str) -> Mapping[str, bytes]:
        return self._network._find(self._peer_id, key)

    async def wait_failed(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable: the fake never fails as a whole")

    async def aclose(self) -> None:
        self._network._leave(self._peer_id)


async def _nobody_home(sender: PeerId, request: Frame) -> Frame:
    raise NotReady("this node does not answer yet")
