"""The seam between a node and its network.

Everything above speaks to a `Transport`: signed records go to the DHT under a key, and frames go to a peer and come
back. `HivemindTransport` does it over libp2p, `MemoryTransport` in one process.
Whatever the network raises is translated here into the errors of `protocol.errors`; no foreign exception crosses the
seam.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol.framing import Announced, Frame
from protocol.identifiers import PeerId
from protocol.messages import (
    BlobGet,
    BlobPart,
    Forward,
    ForwardReply,
    Infer,
    InferReply,
    Message,
    RoundParts,
    RoundTalk,
    RoundTalkReply,
)

__all__ = ["Admission", "FrameHandler", "Traffic", "Transport", "admit_all", "kind_of"]

FrameHandler = Callable[[PeerId, Frame], Awaitable[Frame]]
"""Answers one request. The peer id comes from the encrypted session, so it can be believed."""

Admission = Callable[[PeerId, Announced, float], None]
"""Refuses a request of which only the header is here, by raising a named error; the number is how many seconds its
caller waits. It must neither wait nor take long."""


@dataclass(slots=True)
class Traffic:
    """Payload bytes this node has sent and received itself, by the transport's own count.

    The DHT's traffic is hivemind's and is not counted; what is said here is a lower bound of what a router would see.
    """

    sent: Counter[str] = field(default_factory=Counter)
    """Bytes by kind: "averaging", "blobs", "control" and "inference"."""
    received: Counter[str] = field(default_factory=Counter)

    @property
    def sent_bytes(self) -> int:
        return self.sent.total()

    @property
    def received_bytes(self) -> int:
        return self.received.total()


def kind_of(message: Message) -> str:
    """The kind of traffic a message belongs to."""
    match message:
        case Forward() | ForwardReply() | Infer() | InferReply():
            return "inference"
        case BlobGet() | BlobPart():
            return "blobs"
        case RoundTalk() | RoundTalkReply() | RoundParts():
            return "averaging"
        case _:
            return "control"


def admit_all(sender: PeerId, announced: Announced, wait_s: float) -> None:
    """Refuse nothing."""


class Transport(Protocol):
    """A started connection to the network; ``aclose`` ends it and may be called twice."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddresses under which others can reach this node, each ending in /p2p/<peer id>."""
        ...

    @property
    def traffic(self) -> Traffic: ...

    def now_s(self) -> float:
        """Seconds since the epoch by the DHT's clock."""
        ...

    def serve(self, handler: FrameHandler, admit: Admission = admit_all) -> None:
        """Answer every request that `admit` lets in with `handler`; named errors of either go back as error replies."""
        ...

    async def connect(self, address: str) -> PeerId:
        """Join the network through the peer at `address`.

        Raises:
            MalformedAddress: The address cannot be read.
            PeerUnreachable: Nobody answers there.
        """
        ...

    async def connected_peers(self) -> Sequence[PeerId]: ...

    async def ping(self, peer_id: PeerId) -> bool:
        """Whether a peer answers as a node of the DHT; also keeps its place in the routing table fresh."""
        ...

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        """Send a request and wait for its answer.

        Raises:
            PeerUnreachable: No connection, or it broke before the answer.
            CallTimeout: No answer within `timeout_s`.
            ModuleMeshError: Whatever the peer answered with, under its own class where we know it.
        """
        ...

    async def publish(self, key: str, subkey: str, value: bytes, *, expires_at: float) -> bool:
        """Store `value` in the DHT until `expires_at`. True when at least one node took it."""
        ...

    async def lookup(self, key: str) -> Mapping[str, bytes]:
        """All unexpired ``{subkey: value}`` under `key`; empty when there are none."""
        ...

    async def wait_failed(self) -> str:
        """Return when the connection to the network is lost for good, with the reason."""
        ...

    async def aclose(self) -> None: ...
