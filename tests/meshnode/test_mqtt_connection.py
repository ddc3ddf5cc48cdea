"""What a node bears from brokers and what is none, and how it shows who it is."""

import asyncio
import gc
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mosquitto import Mosquitto, retained
from mqtt_node import ACCEPTED, QUICK, ROOT, WITH_TESTS, hangs_up, listener, running

from meshnode.mqtt import reach
from meshnode.mqtt.client import SocketClient

PASSWORD = "correct-horse-battery-staple"  # of the test broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The log lines that contain a text."""
    caplog.set_level(logging.DEBUG)
    return lambda part: [record.getMessage() for record in caplog.records if part in record.getMessage()]


async def says_nothing(_writer: asyncio.StreamWriter) -> None:
    pass


async def accepts_and_hangs_up(writer: asyncio.StreamWriter) -> None:
    writer.write(ACCEPTED)
    await writer.drain()
    writer.close()


async def speaks_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + 100 * b"<p>what?</p>")
    await writer.drain()


# What is no broker, or does not want this node


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says_nothing, "no answer within 0.1 s"),
        (hangs_up, "connection lost"),
        (accepts_and_hangs_up, "connection lost"),
        (speaks_http, "Protocol error"),
    ],
)
@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_what_is_no_broker_is_an_error_and_one_warning_and_leaves_no_connection_open(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
    error: str,
    version: str,
    lines: Callable[[str], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listener(answer) as (url, calls):
        before = len(os.listdir("/proc/self/fd"))
        async with running(url, replace(QUICK, answer_timeout_s=0.1), version=version) as node:
            while len(calls) < 5:
                await asyncio.sleep(0.01)
            await node.failed(error)
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the last may still be closing on the other side
    assert len(lines("MQTT broker unavailable")) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING and record.name == "asyncio"] == []


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b"])
async def test_a_host_that_does_not_exist_is_an_error(host: str) -> None:
    async with running(f"mqtt://{host}") as node:
        await node.until(lambda publisher: publisher.error != "not connected yet")
        assert not node.publisher.connected


async def test_a_silent_name_server_blocks_neither_the_node_nor_its_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object) -> None:
        time.sleep(3)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(reach.socket, "create_connection", resolve)
    async with running("mqtt://broker.example") as node:
        longest_s = 0.0
        for _ in range(20):
            began_at = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - began_at)
        assert longest_s < 0.9  # not held up by the three seconds that a name takes
        assert node.publisher.error == "not connected yet"
        assert await node.stop() < 0.9


def test_a_silent_name_server_does_not_hold_up_the_end_of_the_process() -> None:
    program = (
        "import asyncio, time, mqtt_node as t\n"
        "from meshnode.mqtt import reach\n"
        "reach.socket.create_connection = lambda *_: time.sleep(30)\n"
        "async def main():\n"
        "    async with t.running('mqtt://broker.example'): await asyncio.sleep(0.2)\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | WITH_TESTS, check=True, timeout=15)


async def test_a_connection_whose_end_nobody_awaits_is_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = SocketClient(ours, hostname="broker")
    theirs.send(ACCEPTED)
    await client.open()
    theirs.close()
    await asyncio.sleep(0.05)
    client.cut()
    del client
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# Passwords and certificates


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "mqtt.password"
    path.touch(0o600)
    path.write_text(PASSWORD + "\nnot this line\n")
    return path


@pytest.fixture
def strict_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, users={"node": PASSWORD}) as broker:
        yield broker


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_a_wrong_password_is_an_error_until_the_file_has_the_right_one(
    strict_broker: Mosquitto, password_file: Path, version: str, lines: Callable[[str], list[str]]
) -> None:
    password_file.write_text("wrong-" + PASSWORD)
    login = {"user": "node", "password_file": str(password_file), "version": version}
    async with running(strict_broker.url, **login) as node:
        await node.failed("refused by the broker: Not authorized")
        password_file.write_text(PASSWORD + "\n")
        await node.connected()
    lasting = await retained(strict_broker, username="node", password=PASSWORD)
    assert lasting[ROOT + "status"] == b"offline"
    assert len(lines("MQTT broker unavailable")) == 1
    assert lines(PASSWORD) == []


async def test_a_password_file_that_appears_later_is_used(strict_broker: Mosquitto, password_file: Path) -> None:
    hidden = password_file.rename(password_file.with_suffix(".hidden"))
    async with running(strict_broker.url, user="node", password_file=str(password_file)) as node:
        await node.failed("No such file")
        hidden.rename(password_file)
        await node.connected()


async def test_a_password_file_that_others_can_read_is_refused_with_the_cure(
    strict_broker: Mosquitto, password_file: Path
) -> None:
    password_file.chmod(0o640)
    async with running(strict_broker.url, user="node", password_file=str(password_file)) as node:
        await node.failed("open to others (mode 0640); close it with chmod 600")
        assert PASSWORD not in (node.publisher.error or "")
        password_file.chmod(0o600)
        await node.connected()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.write_text("\n" + PASSWORD), "no password in its first line"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (a_pipe, "is not a file"),
    ],
)
async def test_a_password_file_without_a_password_is_an_error(
    strict_broker: Mosquitto, password_file: Path, spoil: Callable[[Path], object], error: str
) -> None:
    spoil(password_file)
    async with running(strict_broker.url, user="node", password_file=str(password_file)) as node:
        await node.failed(error)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; its key beside it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "broker.crt"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    return path


async def test_tls_is_spoken_with_brokers_whose_certificate_is_trusted(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = certificate.with_suffix(".key")
    with Mosquitto(tmp_path, f"certfile {certificate}", f"keyfile {key}") as broker:
        url = broker.url.replace("mqtt:", "mqtts:")
        async with running(url) as node:
            await node.failed("its certificate is not trusted: self")
            monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(certificate))
            await node.connected()
            assert await node.stop() < 0.4
        assert broker.has_logged(" disconnected.")


async def test_tls_with_what_does_not_speak_it_is_an_error(broker: Mosquitto) -> None:
    async with running(broker.url.replace("mqtt:", "mqtts:")) as node:
        await node.until(lambda publisher: publisher.error != "not connected yet")
        assert not node.publisher.connected
