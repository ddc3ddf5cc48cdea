"""A large blob over real streams: from two peers at once, on after an interruption, and at the senders' pace."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from integration_pulled import transport_in

from meshnode.blobs import BlobPuller
from meshnode.handlers import Handlers
from meshnode.pacing import Pacer
from meshnode.state.blobs import BlobStore
from protocol.identifiers import PeerId, digest_of

pytestmark = pytest.mark.integration

DATA = np.random.default_rng(5).bytes(24_000_000)
DIGEST = digest_of(DATA)
PACE = 12_000_000


@asynccontextmanager
async def holders(folder: Path, pacers: list[Pacer]) -> AsyncIterator[dict[PeerId, str]]:
    """Peers that hold the blob, with their addresses."""
    async with AsyncExitStack() as stack:
        addresses = {}
        for number, pacer in enumerate(pacers):
            transport = await stack.enter_async_context(transport_in(folder / f"holder {number}"))
            (folder / f"blobs {number}").mkdir()
            store = BlobStore(folder / f"blobs {number}")
            store.put(DATA)
            transport.serve(Handlers(store, transport.peer_id, "holder", transport.now_s, pacer))
            addresses[transport.peer_id] = transport.addresses[0]
        yield addresses


async def test_a_pull_is_resumed_shared_and_paced_over_real_streams(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    begun = asyncio.Event()

    def look(done: int, total: int) -> None:
        if done > total // 4:
            begun.set()

    async with (
        holders(tmp_path, [Pacer(PACE), Pacer(PACE)]) as addresses,
        transport_in(tmp_path / "newcomer", client_only=True) as transport,
    ):
        for address in addresses.values():
            await transport.connect(address)
        began_s = time.monotonic()
        pull = asyncio.create_task(
            BlobPuller(transport, BlobStore(tmp_path / "mine"), timeout_s=5.0).pull(DIGEST, addresses, progress=look)
        )
        await begun.wait()
        pull.cancel()
        await asyncio.wait([pull])
        there = BlobStore(tmp_path / "mine").partials.num_bytes(DIGEST)
        assert len(DATA) // 4 < there < len(DATA)
        received = transport.traffic.received["blobs"]
        store = BlobStore(tmp_path / "mine")
        assert await BlobPuller(transport, store, timeout_s=5.0).pull(DIGEST, addresses) == DATA
        took_s = time.monotonic() - began_s
        assert store.get(DIGEST) == DATA
        # Two senders at this pace, each a quarter of a second ahead of it at the start of either pull.
        assert took_s > len(DATA) / (2 * PACE) - 0.5
        assert transport.traffic.received["blobs"] - received < len(DATA) - there + 100_000
