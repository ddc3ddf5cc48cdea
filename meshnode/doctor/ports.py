"""Whether the ports that the next start will listen on are free."""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress

import psutil

from meshnode.doctor.finding import Finding
from meshnode.doctor.subject import Subject

__all__ = ["check_ports"]


def check_ports(subject: Subject) -> Sequence[Finding]:
    """Only while no daemon runs, and only of ports that are set: 0 takes any that is free."""
    if subject.holder is not None or subject.config is None:
        return []
    net = subject.config.net
    api_host, _, api_port = subject.config.api.listen.rpartition(":")
    wanted = {"net.port": (net.listen, net.port), "api.listen": (api_host.strip("[]"), int(api_port))}
    return list(_each(wanted))


def _each(wanted: dict[str, tuple[str, int]]) -> Iterator[Finding]:
    for setting, (host, port) in wanted.items():
        failure = _cannot_listen(host, port)
        if failure is None:
            if port:
                yield Finding("port", "ok", f"port {port} on {host} is free ({setting})")
        elif failure.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use{_by_whom(port)} ({setting})"
            yield Finding("port", "problem", message, "End what listens there, or choose another port.")
        else:
            message = f"nothing can listen on {host}, port {port}: {failure.strerror} ({setting})"
            yield Finding("port", "problem", message, f"Choose another address or port in {setting}.")


def _cannot_listen(host: str, port: int) -> OSError | None:
    """Why a start could not bind the port; None if it could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listeners
        try:
            probe.bind((host, port))
        except OSError as exc:
            return exc
    return None


def _by_whom(port: int) -> str:
    """The listening process, as far as this user may see it."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()}, process {connection.pid}"
    return ""
