"""aiomqtt's client on a socket that is connected already, so that opening and ending it is in our hands.

As an ``async with`` of its own, aiomqtt 2.5 resolves and connects in a thread of the loop's pool, which the end of the
process has to wait for; leaves its socket open when the broker does not answer; does not notice a broker that hangs up
before it has answered; and always takes leave at the end, also where the last will has to be heard. Messages and what
keeps the connection alive are left to it. That the names with an underscore still mean the same is what
``tests/meshnode/test_mqtt_connection.py`` would show.
"""

import asyncio
import logging
import math
import socket
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["SocketClient"]

# What aiomqtt has to say at each failed attempt, the publisher says once an outage.
_unheard = logging.getLogger("aiomqtt")
_unheard.setLevel(logging.CRITICAL + 1)


class SocketClient(aiomqtt.Client):
    """A client that publishes, through one connection.

    Args:
        sock: Connected, after the TLS handshake if there is one. `cut` closes it.
        settings: What else `aiomqtt.Client` is to know.
    """

    def __init__(self, sock: socket.socket, **settings: Any) -> None:
        # Callers have the clock: aiomqtt's is asyncio.wait_for, and that of Python 3.11 loses cancellations. What the
        # broker sends unasked must not pile up.
        super().__init__(logger=_unheard, timeout=math.inf, max_queued_incoming_messages=1, **settings)
        self._socket = sock
        self._client._create_socket = lambda: sock  # type: ignore[method-assign]
        for ending in (self._connected, self._disconnected):
            ending.add_done_callback(_take_note)

    async def open(self) -> None:
        """Introduce itself to the broker, and wait until that has accepted.

        Raises:
            aiomqtt.MqttError: It has refused, or the connection was lost.
        """
        self._client.connect(self._hostname, self._port, self._keepalive)
        await asyncio.wait([self._connected, self._disconnected], return_when=asyncio.FIRST_COMPLETED)
        if self._disconnected.done():
            raise await self.lost()
        self._connected.result()

    async def lost(self) -> aiomqtt.MqttError:
        """Wait until the connection has ended, and return why."""
        await asyncio.wait([self._disconnected])
        cause = self._disconnected.exception()
        return cause if isinstance(cause, aiomqtt.MqttError) else aiomqtt.MqttError(f"malformed message ({cause!r})")

    async def take_leave(self) -> None:
        """Tell the broker to forget the last will, and wait until that is on its way."""
        self._client.disconnect()
        await asyncio.wait([self._disconnected])

    def cut(self) -> None:
        """End the connection without a word; nothing to do if it has ended."""
        self._client._sock_close()
        self._socket.close()

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # aiomqtt puts this off, for paho may call from another thread. Here it is the loop's own, and later the socket
        # may be closed and its number another one's.
        self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the connection has ended by it
            if not self._disconnected.done():
                self._disconnected.set_exception(exc)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if self._connected.done():
            super()._on_disconnect(client, userdata, flags, reason_code, properties)
        else:
            self._connected.set_exception(aiomqtt.MqttCodeError(reason_code))


def _take_note(ending: asyncio.Future[None]) -> None:
    """Keep asyncio from complaining of a failure that nobody waited for any more."""
    if not ending.cancelled():
        ending.exception()
