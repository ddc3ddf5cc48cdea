"""Peers that serve one blob each in their own way, and a node that pulls from them, on a network in memory."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mesh_in_memory import key_of, memory_network

from meshnode.blobs import BlobPuller
from meshnode.handlers import Handlers
from meshnode.state.blobs import BlobStore
from meshnode.transport.interface import FrameHandler
from meshnode.transport.memory import MemoryNetwork
from protocol.framing import Frame
from protocol.identifiers import Digest, PeerId, digest_of
from protocol.limits import BLOB_CHUNK_BYTES
from protocol.messages import BlobGet, BlobPart

__all__ = ["LONG", "LONG_DIGEST", "ME", "BlobPeers", "Falsify", "random_bytes"]

ME = key_of("me").peer_id

Falsify = Callable[[int, bytes], bytes]
"""Another part for the right one at an offset."""


def random_bytes(length: int) -> bytes:
    return np.random.default_rng(2).bytes(length)


LONG = random_bytes(12 * BLOB_CHUNK_BYTES + 17)
LONG_DIGEST = digest_of(LONG)


@dataclass
class BlobPeers:
    """The network, and what was asked of whom."""

    folder: Path
    network: MemoryNetwork = field(default_factory=memory_network)
    asked: dict[PeerId, list[tuple[int, int]]] = field(default_factory=dict)
    """Offset and length of each part, by peer."""

    def puller(self, *, timeout_s: float = 5.0) -> BlobPuller:
        """One of a process that has just started: it knows what is on the disk."""
        return BlobPuller(self.network.join(ME), self.store(), timeout_s=timeout_s)

    def store(self) -> BlobStore:
        self.folder.mkdir(exist_ok=True)
        return BlobStore(self.folder)

    @property
    def partial(self) -> Path:
        """What has come of `LONG` so far."""
        return self.folder / "partial" / LONG_DIGEST

    def join(self, name: str, handler: FrameHandler) -> PeerId:
        """A peer that answers whatever `handler` says; what is asked of it is noted."""
        peer_id = key_of(name).peer_id
        noted = self.asked.setdefault(peer_id, [])

        async def answer(sender: PeerId, request: Frame) -> Frame:
            assert isinstance(request.message, BlobGet)
            noted.append((request.message.offset, request.message.length))
            return await handler(sender, request)

        self.network.join(peer_id).serve(answer)
        return peer_id

    def honest(self, name: str, *blobs: bytes, delay_s: float = 0.0) -> PeerId:
        """A peer as the daemon is one, that takes its time."""
        folder = self.folder.parent / name
        folder.mkdir()
        store = BlobStore(folder)
        for blob in blobs or (LONG,):
            store.put(blob)
        handlers = Handlers(store, key_of(name).peer_id, name, lambda: 0.0)

        async def answer(sender: PeerId, request: Frame) -> Frame:
            await asyncio.sleep(delay_s)
            return await handlers(sender, request)

        return self.join(name, answer)

    def liar(self, name: str, falsify: Falsify, *, blob: bytes = LONG, digest: Digest | None = None) -> PeerId:
        """A peer that answers in good form with other bytes, or fewer."""

        async def answer(sender: PeerId, request: Frame) -> Frame:
            ask = request.message
            assert isinstance(ask, BlobGet)
            right = blob[ask.offset : ask.offset + ask.length]
            data = np.frombuffer(falsify(ask.offset, right), np.uint8)
            return Frame(BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=len(blob)), {"data": data})

        return self.join(name, answer)
