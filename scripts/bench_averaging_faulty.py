"""A member's transport that can be made to fail at the very message of a round that a trial wants it to."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from meshnode.transport.interface import Admission, FrameHandler, Transport, admit_all
from protocol.errors import PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import PeerId

__all__ = ["FaultyTransport"]

Strike = Callable[[], Awaitable[None]]


class FaultyTransport:
    """Passes everything on, a little later; counts what it passes, and has a fault strike at one of these events.

    An event is a message that leaves or arrives: a call, its answer, a request, the answer to it.

    Args:
        transport: Where everything goes.
        random: Of the delays.
        jitter_s: Every message waits for up to so long: members come in other orders each time.
    """

    def __init__(self, transport: Transport, random: Random, *, jitter_s: float) -> None:
        self._transport = transport
        self._random = random
        self._jitter_s = jitter_s
        self._strike: Strike | None = None
        self._strike_at = 0
        self._lag_s = 0.0
        self._is_dead = False
        self._released = asyncio.Event()
        self._released.set()
        self.events = 0
        """Since `arm` or the beginning."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def arm(self, strike: Strike | None, *, at: int = 0) -> None:
        """Count from now on, and have `strike` done before the event of this number."""
        self.events, self._strike, self._strike_at = 0, strike, at

    def slow(self, lag_s: float) -> None:
        """Let everything that leaves from now on wait for so long."""
        self._lag_s = lag_s

    def hang(self) -> None:
        """Let nothing leave and nothing arrive, until `recover`."""
        self._released.clear()

    def die(self) -> None:
        """Let nothing leave and nothing arrive ever again: the process is gone."""
        self._is_dead = True

    def recover(self) -> None:
        """Let everything pass again, that which waits included."""
        self._lag_s = 0.0
        self._released.set()

    def serve(self, handler: FrameHandler, admit: Admission = admit_all) -> None:
        async def answer(sender: PeerId, request: Frame) -> Frame:
            await self._pass()
            try:
                return await handler(sender, request)
            finally:
                await self._pass(is_leaving=True)

        self._transport.serve(answer, admit)

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        await self._pass(is_leaving=True)
        try:
            return await self._transport.call(peer_id, request, timeout_s=timeout_s)
        finally:
            await self._pass()

    async def _pass(self, *, is_leaving: bool = False) -> None:
        await asyncio.sleep(self._random.uniform(0.0, self._jitter_s))
        if self._strike is not None and self.events == self._strike_at:
            strike, self._strike = self._strike, None
            await strike()
        self.events += 1
        if is_leaving:
            await asyncio.sleep(self._lag_s)
        await self._released.wait()
        if self._is_dead:
            raise PeerUnreachable(self._transport.peer_id)
