"""The links to peers: one each, opened when it is first needed and again when it has been lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from meshnode.transport.interface import kind_of
from meshnode.transport.links import CallerLink, LinkLost
from protocol.errors import Busy, error_from_wire
from protocol.framing import Frame, encode_frame
from protocol.identifiers import PeerId
from protocol.messages import ErrorReply

__all__ = ["LinkPool"]

LONGEST_BUSY_S: Final = 1.0
"""A peer that says it is busy is left alone for no longer than this, whatever it says: what it told an impatient
caller keeps patient ones away too."""


class LinkPool:
    """Kept-open links by peer.

    Args:
        open_link: Opens a link to a peer, raising OSError where nobody answers.
    """

    def __init__(self, open_link: Callable[[PeerId], Awaitable[CallerLink]]) -> None:
        self._open_link = open_link
        self._links: dict[PeerId, CallerLink] = {}
        self._busy_until: dict[PeerId, float] = {}
        """When peers that had too many questions will take them again, by the monotonic clock."""
        self._opening: dict[PeerId, asyncio.Task[CallerLink]] = {}
        self._closed = False

    async def call(self, peer_id: PeerId, request: Frame, *, timeout_s: float) -> Frame:
        """Send `request`, return the answer. Requests must be safe to repeat.

        Raises:
            Busy: The peer was busy with questions lately and has asked to be left alone until later.
            TimeoutError: There was none in time; the peer is told to stop.
            OSError: The peer cannot be reached, or left before it answered.
            ModuleMeshError: The request cannot be sent, or the answer not be read.
        """
        deadline_s = time.monotonic() + timeout_s
        kind = kind_of(request.message)
        if kind == "inference":
            self._require_not_busy(peer_id)
        encoded = encode_frame(request)
        async with asyncio.timeout(timeout_s):
            link = self._links.get(peer_id)
            reply = None
            if link is not None and not link.closed.done():
                # That a link is lost is no verdict on the peer, which may have restarted, before a new one has failed.
                with suppress(LinkLost):
                    reply = await link.call(encoded, kind, wait_s=timeout_s)
            if reply is None:
                link = await self._opened(peer_id)
                reply = await link.call(encoded, kind, wait_s=deadline_s - time.monotonic())
        if kind == "inference" and isinstance(reply.message, ErrorReply):
            self._note_busy(peer_id, reply.message)
        return reply

    def _require_not_busy(self, peer_id: PeerId) -> None:
        """Refuse here what the peer would refuse: in an overload, refusing is most of its work."""
        left_s = self._busy_until.get(peer_id, 0.0) - time.monotonic()
        if left_s > 0:
            raise Busy(retry_after_s=left_s)

    def _note_busy(self, peer_id: PeerId, reply: ErrorReply) -> None:
        error = error_from_wire(reply.code, reply.message, reply.data, peer_id=peer_id)
        if isinstance(error, Busy):
            self._busy_until[peer_id] = time.monotonic() + min(error.retry_after_s, LONGEST_BUSY_S)

    async def _opened(self, peer_id: PeerId) -> CallerLink:
        """A link that is open now; calls that need one at the same time share it."""
        link = self._links.get(peer_id)
        if link is not None and not link.closed.done():
            return link
        if self._closed:
            raise LinkLost("no links are opened any more")
        opening = self._opening.get(peer_id)
        if opening is None:
            opening = asyncio.get_running_loop().create_task(self._open(peer_id), name="open a link")
            self._opening[peer_id] = opening
        # Whoever stops waiting must not take the link from the others.
        return await asyncio.shield(opening)

    async def _open(self, peer_id: PeerId) -> CallerLink:
        try:
            link = await self._open_link(peer_id)
            self._links[peer_id] = link
            return link
        finally:
            del self._opening[peer_id]

    def tick(self, now_s: float) -> None:
        """Look after the links, and forget those that have ended."""
        self._busy_until = {peer_id: until_s for peer_id, until_s in self._busy_until.items() if until_s > now_s}
        for peer_id, link in tuple(self._links.items()):
            link.tick(now_s)
            if link.closed.done():
                del self._links[peer_id]

    def close(self) -> None:
        """End all links for good; what is under way fails."""
        self._closed = True
        for opening in self._opening.values():
            opening.cancel()
        for link in self._links.values():
            link.close()
        self._links.clear()
