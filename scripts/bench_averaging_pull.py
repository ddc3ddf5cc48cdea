"""A newcomer that pulls a large blob from one peer, in turn with a raw libp2p stream between the same two p2pd."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_averaging_effort import Effort
from bench_stage import Stage
from hivemind.p2p import PeerID

from meshnode.blobs import BlobPuller
from meshnode.handlers import Handlers
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.state.state import State
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
from protocol.identifiers import Digest, PeerId

__all__ = ["BlobPeer", "measure_pulls"]

BLOB_BYTES = 64 * 10**6

RAW = "/modulemesh-bench/bulk"

PIECE_BYTES = 2**20
"""Of the raw stream."""

TIMEOUT_S = 30.0


class BlobPeer:
    """In a child: a peer that has blobs, or comes to get them; made by `open`."""

    def __init__(self, transport: HivemindTransport, state: State) -> None:
        self._transport = transport
        self._state = state

    @classmethod
    async def open(cls, folder: str, join: Sequence[str], resources: AsyncExitStack) -> "BlobPeer":
        """Live in this folder, until `resources` are closed."""
        home = Home(Path(folder))
        home.create()
        load_or_create_identity(home)
        transport = await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key))
        resources.push_async_callback(transport.aclose)
        state = resources.enter_context(ExitStack()).enter_context(State(home))
        handlers = Handlers(state.blobs, transport.peer_id, "bench", transport.now_s)
        transport.serve(handlers, handlers.admit)
        peer = cls(transport, state)
        await transport._p2p.add_binary_stream_handler(RAW, peer._pour)
        for address in join:
            await transport.connect(address)
        return peer

    @property
    def address(self) -> str:
        return self._transport.addresses[0]

    def keep(self, seed: int) -> str:
        """Have another blob; its digest."""
        return str(self._state.blobs.put(np.random.default_rng(seed).bytes(BLOB_BYTES)))

    async def pull(self, address: str, digest: str) -> float:
        """Get the blob from the peer at this address and keep it; the seconds that it took."""
        peer_id = PeerId(address.rpartition("/p2p/")[2])
        began_s = time.perf_counter()
        await BlobPuller(self._transport, self._state.blobs, timeout_s=TIMEOUT_S).pull(Digest(digest), [peer_id])
        return time.perf_counter() - began_s

    async def stream(self, address: str) -> float:
        """Read as many bytes from a raw stream of that peer's, and drop them; the seconds that it took."""
        peer_id = PeerID.from_base58(address.rpartition("/p2p/")[2])
        began_s, received = time.perf_counter(), 0
        _, reader, writer = await self._transport._p2p.call_binary_stream_handler(peer_id, RAW)
        reader._limit = 4 * PIECE_BYTES
        while received < BLOB_BYTES:
            piece = await reader.read(PIECE_BYTES)
            assert piece, "the stream ended early"
            received += len(piece)
        taken_s = time.perf_counter() - began_s
        writer.close()
        return taken_s

    @staticmethod
    async def _pour(_: Any, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        piece = bytes(PIECE_BYTES)
        for _ in range(-(-BLOB_BYTES // PIECE_BYTES)):
            writer.write(piece)
            await writer.drain()
        writer.close()


def measure_pulls(stage: Stage[Effort]) -> dict[str, Any]:
    """Megabytes a second of pulls and of raw streams, in turn; each pull is of another blob."""
    mb_per_s: dict[str, list[float]] = {"pull": [], "raw": []}
    with ExitStack() as resources:
        names = ("holder", "newcomer")
        holder, newcomer = stage.children.get(*names, role="averaging-peer")
        resources.callback(stage.children.end, *names)
        address = holder.call("open_blobs", folder=str(stage.folder / "holder"), join=[])
        newcomer.call("open_blobs", folder=str(stage.folder / "newcomer"), join=[address])
        for number in range(stage.effort.pulls + 1):
            stage.tell(f"pulls: {number} of {stage.effort.pulls}")
            digest = holder.call("keep_blob", seed=1000 * stage.seed + number)
            pulled_s = newcomer.call("pull_blob", address=address, digest=digest)
            streamed_s = newcomer.call("stream_bytes", address=address)
            if number:  # the first of each warms up
                mb_per_s["pull"].append(BLOB_BYTES / 1e6 / pulled_s)
                mb_per_s["raw"].append(BLOB_BYTES / 1e6 / streamed_s)
    return {"mb_per_s": mb_per_s, "mb": BLOB_BYTES / 1e6, "pulls": stage.effort.pulls}
