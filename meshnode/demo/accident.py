"""Queries that keep coming while a node is killed, and what became of them."""

import asyncio

from experts.data.dataset import ImageDataset
from meshnode.client import MeshClient
from meshnode.demo.result import Accident
from protocol.errors import ModuleMeshError

__all__ = ["Accident", "query_until"]

ROWS = 6
"""Images a query: enough to need several experts."""

PAUSE_S = 0.02


async def query_until(enough: asyncio.Event, client: MeshClient, test: ImageDataset, accident: Accident) -> None:
    """Ask about a few images again and again until `enough` is set; every outcome is counted."""
    row = 0
    while not enough.is_set():
        images = test.images[[(row + step * 37) % len(test) for step in range(ROWS)]]
        row += 1
        accident.asked += 1
        try:
            prediction = await client.predict(images)
        except ModuleMeshError as failure:
            accident.failures.append(str(failure))
        else:
            accident.answered += 1
            accident.failed_over += any(call.error is not None for call in prediction.calls)
            accident.slowest_ms = max(accident.slowest_ms, prediction.elapsed_ms)
        await asyncio.sleep(PAUSE_S)
