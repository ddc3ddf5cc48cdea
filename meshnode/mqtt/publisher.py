"""Keeps an MQTT broker told of this node, and does not mind if there is none.

State and experts are compared with what the broker was last told, so that whatever was lost on the way is said again.
Events wait for the broker in a bounded queue; measurements do not, for an old one is worth nothing. All of it happens
in one task with one message under way: a slow broker is a full queue, never a full memory.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from meshnode.logs import get_logger
from meshnode.mqtt.connection import Connection, connect
from meshnode.mqtt.reach import BrokerUnavailable
from meshnode.mqtt.timing import MqttTiming
from meshnode.mqtt.topics import OFFLINE, ONLINE, Topics, encode
from meshnode.settings.sections import MqttSection
from meshnode.telemetry.events import Event, Events

__all__ = ["MAX_QUEUED_EVENTS", "MqttPublisher", "MqttSource"]

MAX_QUEUED_EVENTS = 256
"""At an event every ten seconds, which is a busy node, those of the last 40 minutes; some hundred kilobytes."""

_CLIENT_ID_CHARS = 23
"""The most that every broker must accept (MQTT 3.1.1, 3.1.3.1)."""

log = get_logger(__name__)


class MqttSource(Protocol):
    """Where the documents come from; asked on the loop, about once a second, so each answer must be quick."""

    def info(self) -> Mapping[str, Any]:
        """What the node is."""

    def state(self) -> Mapping[str, Any]:
        """What it does at the moment. Sent whenever it differs, so nothing in it should change all the time."""

    def telemetry(self) -> Mapping[str, Mapping[str, Any]]:
        """Measurements by part of the node: system, net, train, serve."""

    def experts(self) -> Mapping[str, Mapping[str, Any]]:
        """The experts hosted here, by uid."""


class MqttPublisher:
    """Tells a broker of one node.

    Events are listened to from the start on, though sent only while `run` runs; `Events.emit` is called on the loop.

    Args:
        settings: Where the broker is.
        mesh_name: The mesh the node belongs to.
        peer_id: Who the node is.
        source: The node's documents.
        events: What happens to it.
        timing: Spans; None are those that suit every node.
    """

    def __init__(
        self,
        settings: MqttSection,
        mesh_name: str,
        peer_id: str,
        source: MqttSource,
        events: Events,
        timing: MqttTiming | None = None,
    ) -> None:
        self._settings = settings
        self._topics = Topics.of_node(settings.prefix, mesh_name, peer_id)
        # The end of the peer id: its beginning is the same for all keys of one kind.
        self._client_id = "mm" + peer_id[2 - _CLIENT_ID_CHARS :]
        self._source = source
        self._timing = timing or MqttTiming()

        self._connected = False
        self._error: str | None = "not connected yet"
        self._outage_told = False
        self._dropped = 0
        self._queue: deque[Event] = deque()
        self._unconfirmed: Event | None = None
        self._happened = asyncio.Event()
        self._told: dict[str, bytes | None] = {}
        """What the broker was last told, by retained topic; None where it has to be told again."""
        self._stop_listening = events.listen(self._on_event)

    @property
    def connected(self) -> bool:
        """Whether the broker knows this node's state, and will be told of changes."""
        return self._connected

    @property
    def error(self) -> str | None:
        """Why it is not connected; None while it is."""
        return self._error

    @property
    def dropped(self) -> int:
        """Events that were given up since the start, because the queue was full."""
        return self._dropped

    async def run(self) -> None:
        """Tell the broker, for ever; take leave of it when cancelled. Nothing a broker does ends this."""
        timing = self._timing
        loop = asyncio.get_running_loop()
        pause_s = timing.first_retry_s
        try:
            while True:
                try:
                    async with connect(self._settings, self._client_id, self._topics.status, timing) as connection:
                        since = loop.time()
                        failure = await self._converse(connection)
                        if loop.time() - since > timing.last_retry_s:
                            pause_s = timing.first_retry_s
                except BrokerUnavailable as exc:
                    failure = exc
                self._note_failure(failure)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, timing.last_retry_s)
        finally:
            self._connected, self._error = False, "the node is stopping"
            self._stop_listening()

    async def _converse(self, connection: Connection) -> BrokerUnavailable:
        """Tell everything until the connection fails, and return how it did."""
        try:
            async with asyncio.TaskGroup() as group:
                # Failures are returned: one raised just as the group is cancelled would take the cancellation's place.
                parts = [
                    group.create_task(connection.lost(), name="mqtt watch"),
                    group.create_task(self._tell(connection), name="mqtt tell"),
                ]
                ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in parts:
                    part.cancel()
        except asyncio.CancelledError:
            await self._take_leave(connection)
            raise
        return ended.pop().result()

    async def _tell(self, connection: Connection) -> BrokerUnavailable:
        loop = asyncio.get_running_loop()
        measure_at = loop.time()
        try:
            await connection.publish(self._topics.status, ONLINE, retain=True)
            # The broker may have been started anew, with nothing left of what it was told.
            self._told = dict.fromkeys(self._told)
            await self._tell_changes(connection)
            self._note_connected()
            while True:
                await self._tell_events(connection)
                if loop.time() >= measure_at:
                    measure_at = loop.time() + self._settings.every_s
                    await self._tell_measurements(connection)
                # Not wait_for: that of Python 3.11 loses a cancellation that comes together with an event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._timing.look_s):
                        await self._happened.wait()
                await self._tell_changes(connection)
        except BrokerUnavailable as failure:
            return failure

    async def _tell_changes(self, connection: Connection) -> None:
        """All retained topics whose documents are not what the broker was last told; none at all where one is gone."""
        topics, source = self._topics, self._source
        now = {topics.info: encode(source.info(), "info"), topics.state: encode(source.state(), "state")}
        now |= {topics.expert(uid): encode(document, "expert") for uid, document in source.experts().items()}
        for topic, payload in now.items():
            if self._told.get(topic) != payload:
                self._told[topic] = None  # it may get there even if that is not confirmed
                await connection.publish(topic, payload, retain=True)
                self._told[topic] = payload
        for topic in self._told.keys() - now.keys():
            await connection.publish(topic, b"", retain=True)
            del self._told[topic]

    async def _tell_events(self, connection: Connection) -> None:
        self._happened.clear()
        while self._unconfirmed or self._queue:
            if self._unconfirmed is None:
                self._unconfirmed = self._queue.popleft()
            event = self._unconfirmed
            await connection.publish(self._topics.event(event.kind), encode(event.document()))
            self._unconfirmed = None

    async def _tell_measurements(self, connection: Connection) -> None:
        for part, document in self._source.telemetry().items():
            await connection.publish(self._topics.telemetry(part), encode(document, f"telemetry-{part}"), qos=0)

    async def _take_leave(self, connection: Connection) -> None:
        """Say what is left to be said; where that takes too long, the last will says the most important."""
        with suppress(BrokerUnavailable, TimeoutError):
            async with asyncio.timeout(self._timing.goodbye_s):
                await self._tell_events(connection)
                await self._tell_changes(connection)
                await connection.publish(self._topics.status, OFFLINE, retain=True)
                await connection.take_leave()

    def _on_event(self, event: Event) -> None:
        if len(self._queue) == MAX_QUEUED_EVENTS:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._happened.set()

    def _note_connected(self) -> None:
        self._connected, self._error, self._outage_told = True, None, False
        log.info("MQTT broker connected", broker=self._settings.url, dropped=self._dropped)

    def _note_failure(self, failure: BrokerUnavailable) -> None:
        self._connected, self._error = False, failure.reason
        if not self._outage_told:
            log.warning("MQTT broker unavailable; trying again", broker=self._settings.url, error=failure.reason)
            self._outage_told = True
