"""Keeps this node's record in the DHT: a signed lease, renewed at a third of its life and when its content changes."""

import asyncio
from collections.abc import Callable

from meshnode.logs import get_logger
from meshnode.transport.interface import Transport
from protocol.errors import RecordRefused
from protocol.identifiers import PeerId
from protocol.records import PeerRecord, record_key, seal_record
from protocol.signing import SigningKey

__all__ = ["Advertiser"]

log = get_logger(__name__)

RETRY_S = 1.0
"""Pause after a lease that no node of the DHT took: much shorter than a lease, or it would run out meanwhile."""

RecordOf = Callable[[float, float, bool], PeerRecord]
"""Describes this node now: (issued_at, expires_at, leaving) -> record."""


class Advertiser:
    """Publishes what `describe` says.

    Args:
        transport: Where the record is published.
        key: Signs it; its peer id is the record's subkey.
        describe: Makes the record's content; called at every renewal, so it always tells the present state.
        ttl_s: Life of a lease, in seconds.
        published: Told each sealed record and its peer: this node's own directory need not wait for the DHT.
    """

    def __init__(
        self,
        transport: Transport,
        key: SigningKey,
        describe: RecordOf,
        *,
        ttl_s: float,
        published: Callable[[bytes, PeerId], object],
    ) -> None:
        self._transport = transport
        self._key = key
        self._describe = describe
        self._ttl_s = ttl_s
        self._published = published
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Renew soon: the content is not what was last published."""
        self._changed.set()

    async def run(self, *, leaving: bool = False) -> None:
        """Renew for ever, all of it `leaving` or none; a lease that no node took is offered again soon."""
        failures = 0
        while True:
            self._changed.clear()
            failures = 0 if await self.publish(leaving=leaving) else failures + 1
            if failures == 2:  # one alone is a busy moment
                log.warning("no node of the DHT takes this node's record; it is offered again and again")
            try:
                async with asyncio.timeout(RETRY_S if failures else self._ttl_s / 3):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def publish(self, *, leaving: bool = False) -> bool:
        """Publish one lease now. False when no node of the DHT took it."""
        now_s = self._transport.now_s()
        record = self._describe(now_s, now_s + self._ttl_s, leaving)
        sealed = await asyncio.to_thread(seal_record, record, self._key)  # a millisecond, several times a second
        try:
            self._published(sealed, record.peer_id)
        except RecordRefused as refusal:
            log.warning(
                "this node's record is refused; was the clock set back? Peers may refuse it too", reason=str(refusal)
            )
        key = record_key(record.mesh_id)
        return await self._transport.publish(key, record.peer_id, sealed, expires_at=record.expires_at)
