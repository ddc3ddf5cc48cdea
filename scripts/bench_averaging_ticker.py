"""A ticker on an event loop: how late things are that are due every millisecond."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["ticking"]

TICK_S = 0.001


@asynccontextmanager
async def ticking() -> AsyncIterator[list[float]]:
    """Tick while the block runs; at its end the list has the milliseconds by which each tick was late.

    Ticks are due at fixed moments: a loop that is held up for long is late with all that were due meanwhile, as it
    would be with requests.
    """
    late_ms: list[float] = []
    due_s = time.perf_counter() + TICK_S

    def count() -> None:
        nonlocal due_s
        now_s = time.perf_counter()
        while due_s <= now_s:
            late_ms.append(round(1e3 * (now_s - due_s), 3))
            due_s += TICK_S

    async def tick() -> None:
        while True:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            count()

    ticker = asyncio.create_task(tick(), name="ticker")
    try:
        yield late_ms
    finally:
        ticker.cancel()
        count()
