"""A real MQTT broker, Debian's mosquitto, as a child process, and somebody who listens to it."""

import asyncio
import getpass
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

__all__ = ["Heard", "Mosquitto", "Observer", "retained"]

_SYSTEM_FOLDERS = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/sbin:/opt/homebrew/bin"


class Mosquitto:
    """A broker on a free loopback port that keeps nothing on disk; started anew it has forgotten everything.

    Args:
        folder: Its configuration and log lie there.
        lines: More of its configuration.
        users: Passwords by name; None lets everybody in.
        port: To listen on instead of any that is free.
    """

    def __init__(self, folder: Path, *lines: str, users: dict[str, str] | None = None, port: int = 0) -> None:
        self.port = port or _free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        # As root it would become the user mosquitto, who cannot read the folders of tests.
        config = [f"user {getpass.getuser()}", f"listener {self.port} 127.0.0.1", "max_queued_messages 0", *lines]
        if users is None:
            config.append("allow_anonymous true")
        else:
            passwords = folder / "passwords"
            passwords.touch(0o600)
            for name, password in users.items():
                subprocess.run([_program("mosquitto_passwd"), "-b", passwords, name, password], check=True, timeout=10)
            config.append(f"password_file {passwords}")
        self._config.write_text("\n".join(config) + "\n")

    def __enter__(self) -> "Mosquitto":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program("mosquitto"), "-c", str(self._config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        pytest.fail(f"mosquitto did not start:\n{self.log()}")

    def kill(self) -> None:
        """End it without its having a say, frozen or not."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._process = None

    def freeze(self) -> None:
        """Make it silent: the system goes on accepting connections for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def has_logged(self, words: str, within_s: float = 5.0) -> bool:
        """Whether it says this now or soon: it writes when it finds the time."""
        deadline_s = time.monotonic() + within_s
        while words not in self.log():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True


@dataclass(frozen=True)
class Heard:
    """A message as it arrived."""

    topic: str
    payload: bytes
    retain: bool
    qos: int


class Observer:
    """A subscriber to everything, in a thread of its own.

    Entering blocks until the broker has confirmed it: nothing that this thread's loop does can come before.
    """

    def __init__(self, broker: Mosquitto) -> None:
        self.heard: list[Heard] = []
        self._broker = broker
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _client, _data, message: self.heard.append(
            Heard(message.topic, message.payload, message.retain, message.qos)
        )

    def __enter__(self) -> "Observer":
        self._client.connect("127.0.0.1", self._broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(10), self._broker.log()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    async def until(self, wanted: Callable[[Heard], bool], count: int = 1) -> list[Heard]:
        """The first `count` messages of the wanted kind; waits for them, but not for long."""
        deadline = time.monotonic() + 8
        while len(found := [message for message in self.heard if wanted(message)]) < count:
            assert time.monotonic() < deadline, self.heard
            await asyncio.sleep(0.01)
        return found[:count]

    async def on(self, end_of_topic: str, payload: bytes | None = None, count: int = 1) -> list[Heard]:
        """As `until`, by how the topic ends and, unless it is None, by the payload."""
        return await self.until(
            lambda message: message.topic.endswith(end_of_topic) and payload in (None, message.payload), count
        )


async def retained(broker: Mosquitto, **login: str) -> dict[str, bytes]:
    """All retained messages, by topic."""
    async with aiomqtt.Client("127.0.0.1", broker.port, **login) as client:
        await client.subscribe("#", qos=1)
        await client.publish("the end", qos=1)  # what is retained comes first
        found = {}
        async for message in client.messages:
            if str(message.topic) == "the end":
                break
            assert isinstance(message.payload, bytes)
            found[str(message.topic)] = message.payload
        return found


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM_FOLDERS)
    if found is None:
        pytest.skip(f"{name} is not here, and these tests need a real broker: apt install mosquitto")
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
