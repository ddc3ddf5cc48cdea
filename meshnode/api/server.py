"""The API on a socket of its own: bound first, served in the daemon's loop, closed with its owner."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn

from meshnode.api.app import create_app
from meshnode.api.guard import host_names
from meshnode.api.service import NodeService
from meshnode.errors import ConfigInvalid, PortInUse

__all__ = ["ApiServer"]

_DRAIN_S = 3
"""Requests under way may finish within this; a client that hangs must not hold up the node's stop."""


class ApiServer:
    """``async with ApiServer(service, "127.0.0.1:0", key) as api:`` serves until the block ends.

    If serving ever fails, the block is cancelled and the failure raised out of it.
    """

    def __init__(self, service: NodeService, listen: str, key: str) -> None:
        """No I/O happens here.

        Args:
            service: The node.
            listen: ``IPv4:PORT`` or ``[IPv6]:PORT``, as checked by the configuration; port 0 is any free one.
            key: What callers must send as bearer token.
        """
        self._service = service
        self._listen = listen
        self._key = key
        self._url: str | None = None

    @property
    def url(self) -> str:
        """Where clients of this machine reach the API, such as ``http://127.0.0.1:40123``; once entered."""
        assert self._url is not None, "the server has not been entered"
        return self._url

    async def __aenter__(self) -> Self:
        """Bind and serve. Raises PortInUse, or ConfigInvalid if the address cannot be listened on."""
        host, port = _split_listen(self._listen)
        bound = _bind(host, port)
        port = bound.getsockname()[1]
        self._url = f"http://{host_names(host)[0]}:{port}"
        self._server = _QuietServer(create_app(self._service, self._key, port, listen_host=host))
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._server.serve(sockets=[bound]), name="api")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        # Orderly even when the block failed; uvicorn bounds this by its own drain limit.
        await asyncio.wait({self._task})
        if isinstance(exc, Exception):
            # The block's own failure goes on as it is; the group would wrap it and hide its name.
            await self._group.__aexit__(None, None, None)
        else:
            await self._group.__aexit__(kind, exc, trace)


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers (the node drains on SIGTERM) and without its log set-up."""

    def __init__(self, app: object) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_DRAIN_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave every signal to the node."""
        yield


def _split_listen(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # Listening from now on: a client that comes before the first turn of the loop waits in the backlog.
        bound.listen(128)
        bound.setblocking(False)
    except OSError as exc:
        bound.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(host, port) from exc
        raise ConfigInvalid(f"cannot listen on {host}:{port}: {exc.strerror}", hint="Change api.listen.") from exc
    return bound
