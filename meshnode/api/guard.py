"""Who may speak to the API, decided from the request's head before a byte of its body is read.

Three checks, in this order, on every route:

1. **Host** must be exactly a name this server goes by. A page whose domain was rebound to 127.0.0.1 still
   sends its own name here (DNS rebinding).
2. **Origin**, where a browser sent one, must be that same host: pages of other sites are refused,
   whatever the verb.
3. **Key**: ``Authorization: Bearer KEY`` on every path but the two open ones, reading included.
"""

import ipaddress
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from meshnode.api.replies import error_response

__all__ = ["OPEN_PATHS", "Guard", "allowed_hosts", "host_names"]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a key, so that a service manager can probe the node; they say one bit each."""


def host_names(listen_host: str) -> tuple[str, ...]:
    """The names under which a client dials a server on this IP address, the most direct one first.

    A wildcard address is itself none: it can be dialled, but says nothing of which interface was meant.
    """
    address = ipaddress.ip_address(listen_host)
    own = f"[{address}]" if address.version == 6 else str(address)
    loopback = ("127.0.0.1", "localhost", "[::1]")
    return loopback if address.is_unspecified else (own, *loopback)


def allowed_hosts(listen_host: str, port: int) -> frozenset[str]:
    """The exact Host headers that a server bound to this IP address and port answers to."""
    return frozenset(f"{name}:{port}" for name in host_names(listen_host))


class Guard:
    """ASGI middleware that applies the three checks and answers refusals itself."""

    def __init__(self, app: ASGIApp, key: str, hosts: Collection[str]) -> None:
        self._app = app
        self._key = key.encode()
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # The server runs with WebSockets and lifespan off, so this is never somebody's request.
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._foreign(headers)
        if refusal is not None:
            response = error_response(403, "refused", refusal, "Use the URL that `meshnode status` shows.")
        elif scope["path"] in OPEN_PATHS or self._has_key(headers):
            await self._app(scope, receive, send)
            return
        elif "authorization" in headers:
            response = error_response(403, "refused", "the API key is not this node's", _KEY_HINT)
        else:
            response = error_response(401, "refused", "the API needs a key", _KEY_HINT)
            response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _foreign(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return "the request's Host is not this server"
        own_origin = f"http://{hosts[0].lower()}"
        if any(origin.lower() != own_origin for origin in headers.getlist("origin")):
            return "the request comes from another site"
        return None

    def _has_key(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(key.encode("latin-1"), self._key)


_KEY_HINT = "Send `Authorization: Bearer KEY` with the content of api.key in the node's home folder."
