"""One pace for all that a node sends in bulk: blobs and averaging share what its owner gives of the line."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["AHEAD_S", "Pacer"]

AHEAD_S: Final = 0.25
"""How far a sender that was idle may run ahead of the pace: small things then go out at once."""


class Pacer:
    """A token bucket: whoever sends takes its bytes out first, and waits until they are there, in the order of asking.

    In any span of t seconds at most ``(t + AHEAD_S) * bytes_per_second`` bytes are let go, beside what one `take` that
    is larger than the bucket has waited for.

    Args:
        bytes_per_second: The pace, more than 0; None lets everything go at once.
        now_s: Seconds of a clock that never goes back.
        sleep: Waits so many seconds of that clock.
    """

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._now_s = now_s
        self._sleep = sleep
        self._taken_until_s = now_s()
        """When all that has been taken would be out, if it went at exactly this pace."""

    @property
    def backlog_s(self) -> float:
        """How long bytes that are taken now wait for those that were taken before them."""
        return max(0.0, self._taken_until_s - self._now_s() - AHEAD_S)

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are sent at once, whatever the pace; whoever takes some afterwards waits for them."""
        if self.bytes_per_second is not None:
            span_s = num_bytes / self.bytes_per_second
            self._taken_until_s = max(self._taken_until_s, self._now_s()) + span_s

    async def take(self, num_bytes: int) -> None:
        """Return once so many bytes may be sent. Whoever is cancelled meanwhile has taken none."""
        if self.bytes_per_second is None:
            return
        span_s = num_bytes / self.bytes_per_second
        self.spend(num_bytes)
        wait_s = self.backlog_s
        if wait_s <= 0:
            return
        let_go = False
        try:
            await self._sleep(wait_s)
            let_go = True
        finally:
            if not let_go:
                self._taken_until_s -= span_s
