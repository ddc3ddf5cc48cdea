"""Joining the network and staying joined: bootstrap addresses are retried with back-off, connected peers are pinged.

A dead bootstrap address is a warning with its cause, never a failed start. The pings are what makes two routing tables
one again after a partition: libp2p reconnects by itself, the DHT does not.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from meshnode.transport.interface import Transport
from protocol.errors import MalformedAddress, PeerUnreachable
from protocol.identifiers import PeerId

__all__ = ["Bootstrap", "BootstrapState"]

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
KEEP_ALIVE_S = 5.0
"""Seconds between pings of the connected peers; a healed partition is whole after about this long."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class BootstrapState:
    """How it stands with one bootstrap address."""

    address: str
    connected: bool = False
    error: str | None = None
    """Cause of the last failure, None after a success."""
    peer_id: PeerId | None = None


class Bootstrap:
    """Connects to the given addresses and keeps at it."""

    def __init__(self, transport: Transport, addresses: Sequence[str]) -> None:
        self._transport = transport
        self.states = [BootstrapState(address) for address in addresses]
        self.joined = asyncio.Event()
        """Set once any peer at all is connected."""

    async def run(self) -> None:
        """Keep every address connected, for ever."""
        async with asyncio.TaskGroup() as group:
            for state in self.states:
                group.create_task(self._keep_connected(state), name=f"bootstrap {state.address}")
            group.create_task(self._keep_alive(), name="keep alive")

    async def _keep_connected(self, state: BootstrapState) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                state.peer_id = await self._transport.connect(state.address)
            except PeerUnreachable as failure:
                if state.error is None:
                    log.warning("bootstrap %s: %s; retrying until it answers", state.address, failure)
                state.connected, state.error = False, str(failure)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            except MalformedAddress as failure:
                log.warning("bootstrap %s: %s", state.address, failure)
                state.error = str(failure)
                return
            else:
                if not state.connected:
                    log.info("bootstrap %s: connected", state.address)
                state.connected, state.error, retry_s = True, None, FIRST_RETRY_S
                self.joined.set()
                await asyncio.sleep(KEEP_ALIVE_S)

    async def _keep_alive(self) -> None:
        while True:
            for peer_id in await self._transport.connected_peers():
                self.joined.set()
                await self._transport.ping(peer_id)
            await asyncio.sleep(KEEP_ALIVE_S)
