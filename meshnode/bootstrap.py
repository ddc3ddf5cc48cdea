"""Joining the network and staying joined: bootstrap addresses are retried with back-off, connected peers are pinged.

A dead bootstrap address is a warning with its cause, never a failed start. The pings are what makes two routing tables
one again after a partition: libp2p reconnects by itself, the DHT does not.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meshnode.telemetry import Telemetry
from meshnode.transport.interface import Transport
from protocol.errors import MalformedAddress, ModuleMeshError, PeerUnreachable
from protocol.identifiers import PeerId

__all__ = ["Bootstrap", "BootstrapState"]

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
KEEP_ALIVE_S = 5.0
"""Seconds between pings of the connected peers; a healed partition is whole after about this long."""


@dataclass(slots=True)
class BootstrapState:
    """How it stands with one bootstrap address."""

    address: str
    connected: bool = False
    error: str | None = None
    """Cause of the last failure, None after a success."""
    peer_id: PeerId | None = None

    @property
    def state(self) -> Literal["connecting", "connected", "retrying"]:
        """In one word."""
        if self.connected:
            return "connected"
        return "connecting" if self.error is None else "retrying"


class Bootstrap:
    """Connects to the given addresses and keeps at it."""

    def __init__(self, transport: Transport, addresses: Sequence[str], telemetry: Telemetry | None = None) -> None:
        self._transport = transport
        self._events = (telemetry or Telemetry()).events
        self.states = [BootstrapState(address) for address in addresses]
        self.joined = asyncio.Event()
        """Set once any peer at all is connected."""
        self.tried = asyncio.Event()
        """Set once every address has answered or failed."""
        self.num_connected = 0
        """Peers connected at the last look, of whatever mesh."""

    async def run(self) -> None:
        """Keep every address connected, for ever."""
        self._note_tried()  # without any there is nothing to try
        async with asyncio.TaskGroup() as group:
            for state in self.states:
                group.create_task(self._keep_connected(state), name=f"bootstrap {state.address}")
            group.create_task(self._keep_alive(), name="keep alive")

    def _note_tried(self) -> None:
        if all(state.state != "connecting" for state in self.states):
            self.tried.set()

    async def _keep_connected(self, state: BootstrapState) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                state.peer_id = await self._transport.connect(state.address)
            except PeerUnreachable as failure:
                if state.error is None:
                    self._failed(state, failure)
                state.connected, state.error = False, str(failure)
                self._note_tried()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            except MalformedAddress as failure:
                self._failed(state, failure)
                state.error = str(failure)
                self._note_tried()
                return
            else:
                if not state.connected:
                    self._events.emit("bootstrap_connected", address=state.address)
                state.connected, state.error, retry_s = True, None, FIRST_RETRY_S
                self.joined.set()
                self._note_tried()
                await asyncio.sleep(KEEP_ALIVE_S)

    def _failed(self, state: BootstrapState, failure: ModuleMeshError) -> None:
        retrying = isinstance(failure, PeerUnreachable)
        self._events.emit(
            "bootstrap_failed", level="warning", address=state.address, reason=str(failure), retrying=retrying
        )

    async def _keep_alive(self) -> None:
        while True:
            connected = await self._transport.connected_peers()
            self.num_connected = len(connected)
            for peer_id in connected:
                self.joined.set()
                await self._transport.ping(peer_id)
            await asyncio.sleep(KEEP_ALIVE_S)
