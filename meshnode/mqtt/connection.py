"""One connection to the broker, from the password to the goodbye.

The boundary to aiomqtt: its failures leave here as `BrokerUnavailable`.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from meshnode.mqtt.client import SocketClient
from meshnode.mqtt.reach import BrokerUnavailable, open_socket, read_password
from meshnode.mqtt.timing import MqttTiming
from meshnode.mqtt.topics import OFFLINE
from meshnode.settings.sections import MqttSection

__all__ = ["Connection", "connect"]

_VERSIONS = {"3.1.1": aiomqtt.ProtocolVersion.V311, "5": aiomqtt.ProtocolVersion.V5}


class Connection:
    """A connection that the broker has accepted; made by `connect`."""

    def __init__(self, client: SocketClient, answer_timeout_s: float) -> None:
        self._client = client
        self._answer_timeout_s = answer_timeout_s

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Say something: with QoS 1 until the broker has confirmed it, with QoS 0 until it is on its way.

        Raises:
            BrokerUnavailable: It did not get there, as far as is known.
        """
        async with _answer_within(self._answer_timeout_s):
            await self._client.publish(topic, payload, qos=qos, retain=retain)

    async def lost(self) -> BrokerUnavailable:
        """Wait until the connection is no more, and return why."""
        return BrokerUnavailable(_why_lost(await self._client.lost()))

    async def take_leave(self) -> None:
        """Tell the broker to forget the last will. Raises BrokerUnavailable if that is not possible."""
        async with _answer_within(self._answer_timeout_s):
            await self._client.take_leave()


@asynccontextmanager
async def connect(
    settings: MqttSection, client_id: str, will_topic: str, timing: MqttTiming
) -> AsyncIterator[Connection]:
    """A connection to the broker. Leaving the context cuts it, so that the last will is heard, unless it took leave.

    Args:
        settings: Where the broker is, and who to be there.
        client_id: A new connection with it ends the one before.
        will_topic: Where the broker says ``offline``, retained, if the connection ends in any other way than by
            `Connection.take_leave`.
        timing: How long each step may take.

    Raises:
        BrokerUnavailable: It could not be made.
    """
    password = await asyncio.to_thread(read_password, settings)
    client = SocketClient(
        await open_socket(settings.url, timing.connect_timeout_s),
        hostname=settings.url,  # not looked up any more
        identifier=client_id,
        username=settings.user,
        password=password,
        protocol=_VERSIONS[settings.version],
        will=aiomqtt.Will(will_topic, OFFLINE, qos=1, retain=True),
        keepalive=timing.keepalive_s,
    )
    try:
        async with _answer_within(timing.answer_timeout_s):
            await client.open()
        yield Connection(client, timing.answer_timeout_s)
    finally:
        client.cut()


@asynccontextmanager
async def _answer_within(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as exc:
        raise BrokerUnavailable(f"no answer within {timeout_s:g} s") from exc
    except MqttConnectError as exc:
        raise BrokerUnavailable(f"refused by the broker: {exc.rc}") from exc
    except aiomqtt.MqttError as exc:
        raise BrokerUnavailable(_why_lost(exc)) from exc


def _why_lost(exc: aiomqtt.MqttError) -> str:
    why = re.sub(r"^\[code:\d+\] ", "", str(exc))
    # What paho says of a connection that just ends.
    return "connection lost" if why == "Unspecified error" else f"connection lost: {why}"
