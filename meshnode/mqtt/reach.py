"""What a connection to the broker begins with, a password and a socket, got without blocking the loop."""

import asyncio
import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG
from urllib.parse import urlsplit

from meshnode.logs import keep_secret
from meshnode.settings.sections import MqttSection

__all__ = ["BrokerUnavailable", "open_socket", "read_password"]

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerUnavailable(Exception):
    """There is no working connection to the broker.

    Attributes:
        reason: Why, in words for people, without a final stop.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_password(settings: MqttSection) -> str | None:
    """The first line of the password file, from now on kept out of the logs; None if no file is set.

    Raises:
        BrokerUnavailable: The file cannot be read, is empty, or is open to others.
    """
    path = settings.password_file
    if path is None:
        return None
    try:
        password = _first_line(path)
    except OSError as exc:
        raise BrokerUnavailable(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise BrokerUnavailable(f"{path} cannot be read: it is not UTF-8") from exc
    if not password:
        raise BrokerUnavailable(f"{path} has no password in its first line")
    keep_secret(password)
    return password


async def open_socket(url: str, timeout_s: float) -> socket.socket:
    """A socket connected to the broker, after the TLS handshake where the URL asks for one.

    The thread is one that nobody waits for: a name server that is silent must hold up neither the loop nor, as a
    thread of the loop's pool would, the end of the process.

    Args:
        url: As `MqttSection` has it.
        timeout_s: For each address of the host, and each step of the handshake. Name servers have their own.

    Raises:
        BrokerUnavailable: There is no such host, nobody listens there, or its certificate is not trusted.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[socket.socket] = loop.create_future()

    def deliver(outcome: socket.socket | Exception) -> None:
        if isinstance(outcome, Exception):
            if not opened.done():
                opened.set_exception(outcome)
        elif opened.done():
            outcome.close()
        else:
            opened.set_result(outcome)

    def work() -> None:
        outcome: socket.socket | Exception
        try:
            outcome = _open(url, timeout_s)
        except (OSError, ValueError) as exc:  # the latter by names that no host can have
            outcome = exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, outcome)

    threading.Thread(target=work, name="mqtt connect", daemon=True).start()
    try:
        return await opened
    except (OSError, ValueError) as exc:
        raise BrokerUnavailable(_reason(exc, timeout_s)) from exc


def _first_line(path: Path) -> str:
    # Not blocking: opening a pipe would wait for its writer, for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise BrokerUnavailable(f"{path} is not a file")
        if status.st_mode & 0o077:
            mode = S_IMODE(status.st_mode)
            raise BrokerUnavailable(f"{path} is open to others (mode {mode:04o}); close it with chmod 600")
        return file.readline().rstrip("\r\n")


def _open(url: str, timeout_s: float) -> socket.socket:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    context = ssl.create_default_context() if parts.scheme == "mqtts" else None
    sock = socket.create_connection((host, port), timeout_s)
    return context.wrap_socket(sock, server_hostname=host) if context else sock


def _reason(exc: OSError | ValueError, timeout_s: float) -> str:
    match exc:
        case TimeoutError():
            return f"no connection within {timeout_s:g} s"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {exc.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {exc.reason}"
        case OSError():
            return exc.strerror or str(exc)
        case _:
            return f"not a host: {exc}"
