"""A network of hivemind's in one process: handlers by name, messages as bytes, streams over real sockets.

Beside it, an expert to be asked there: a linear map in one cell.

Legend: B batch, D feature, W width of the outputs.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID

from meshnode.transport.interface import Traffic
from meshnode.transport.moe.client import ForeignExpert, ForeignServers
from meshnode.transport.moe.interface import ExpertInfo
from meshnode.transport.moe.server import ConnectionHandler
from protocol.errors import Busy, UnknownExpert
from protocol.identifiers import ExpertUid

__all__ = [
    "Answers",
    "BACKWARD",
    "CELL",
    "D",
    "FORWARD",
    "FakeP2P",
    "INFO",
    "LARGE",
    "REMOTE",
    "W",
    "WEIGHT",
    "answered_by",
    "batch",
    "described",
]

REMOTE = "12D3KooWLhHHPJbXxE2XSTMMhCYMfU1VnPb914j2vRuSj1hZFhga"
"""Who is at the other end."""

CELL = "mm_0123456789ab.3.20.200"
D, W = 6, 3
WEIGHT = np.arange(D * W, dtype=np.float32).reshape(D, W) / 10
INFO, FORWARD, BACKWARD = (f"ConnectionHandler.rpc_{call}" for call in ("info", "forward", "backward"))

LARGE = 2 * 2**20 // (4 * D) + 1
"""The fewest rows that do not go in one message."""


def batch(rows: int, columns: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


class Answers:
    """The expert, which may be busy or slow."""

    def __init__(self) -> None:
        self.busy = False
        self.go = asyncio.Event()
        self.go.set()
        self.rows: list[int] = []
        """Of each forward call."""

    def describe(self, cell: str) -> ExpertInfo:
        if cell != CELL:
            raise UnknownExpert(ExpertUid(cell))
        return ExpertInfo(inputs=(D,), outputs=(W,), classes=("cat", "dog"))

    async def forward(self, cell: str, features_BD: np.ndarray) -> np.ndarray:
        self.rows.append(len(features_BD))
        await self.go.wait()
        if self.busy:
            raise Busy(0.25)
        return features_BD @ WEIGHT

    async def backward(self, cell: str, features_BD: np.ndarray, grad_outputs_BW: np.ndarray) -> np.ndarray:
        return grad_outputs_BW @ WEIGHT.T


class FakeP2P:
    """What of hivemind's `P2P` a servicer and its callers use; all that is called is here."""

    def __init__(self) -> None:
        self.unary: dict[str, tuple[Callable[[Any, Any], Awaitable[Any]], Any]] = {}
        self.streams: dict[str, Callable[[Any, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]] = {}
        self.opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.serving: list[asyncio.Task[None]] = []
        self.called: list[str] = []

    # --- what a servicer does ---

    async def add_protobuf_handler(self, name: str, handler: Any, kind: Any, **settings: bool) -> None:
        assert not any(settings.values())
        self.unary[name] = (handler, kind)

    async def remove_protobuf_handler(self, name: str, **settings: bool) -> None:
        self.unary.pop(name, None)

    async def add_binary_stream_handler(self, name: str, handler: Any) -> None:
        self.streams[name] = handler

    async def remove_binary_stream_handler(self, name: str) -> None:
        self.streams.pop(name, None)

    # --- what a caller does ---

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, request: Any, kind: Any) -> Any:
        assert peer_id.to_base58() == REMOTE
        self.called.append(name)
        if name not in self.unary:
            raise P2PDaemonError("protocol not supported")
        handler, request_kind = self.unary[name]
        try:
            response = await handler(request_kind.FromString(request.SerializeToString()), None)
        except Exception as failure:
            raise P2PHandlerError(repr(failure)) from failure
        return kind.FromString(response.SerializeToString())

    async def call_binary_stream_handler(
        self, peer_id: PeerID, name: str
    ) -> tuple[None, asyncio.StreamReader, asyncio.StreamWriter]:
        assert peer_id.to_base58() == REMOTE
        self.called.append(name)
        if name not in self.streams:
            raise P2PDaemonError("protocol not supported")
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=there)
        self.serving.append(asyncio.ensure_future(self.streams[name](None, reader, writer)))
        ours = await asyncio.open_connection(sock=here)
        self.opened.append(ours)
        return None, *ours


@asynccontextmanager
async def answered_by(answers: Answers, traffic: Traffic | None = None) -> AsyncIterator[FakeP2P]:
    """A network in which the expert answers; nothing of it is left behind."""
    network, handler = FakeP2P(), ConnectionHandler(answers, traffic or Traffic())
    await handler.start(network)
    try:
        yield network
    finally:
        await handler.stop(network)
        for _, writer in network.opened:
            writer.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*network.serving, return_exceptions=True)
    assert (network.unary, network.streams) == ({}, {})


async def described(p2p: FakeP2P, traffic: Traffic | None = None) -> ForeignExpert:
    """The expert as our own client knows it."""
    return await ForeignServers(p2p, traffic or Traffic()).describe(REMOTE, CELL, timeout_s=5.0)
