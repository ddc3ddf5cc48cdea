"""The command line's side of the HTTP API: finds the home's daemon, sends its key, raises its failures.

The standard library's client does: one request to one address of this machine, past any proxy that the environment
names for others. httpx imports a fifth of a second's worth of trio and rich, half of what a command may take.
"""

import http.client
import json
import os
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from meshnode.doctor.holder import find_holder
from meshnode.errors import DaemonNotRunning, ExitCode, NodeError, Refused, Timeout, exit_code_for
from meshnode.home import Home

__all__ = ["ApiClient", "ApiFailure"]

_ANSWER_S = 5.0
"""The daemon answers reads from memory; silence for longer means that its loop stands still."""


class ApiFailure(NodeError):
    """A failure known by its code alone: what the daemon answered, or that nothing of the kind answered."""

    # Of the instance here: the daemon chooses them.
    code: str  # type: ignore[misc]
    exit_code: ExitCode  # type: ignore[misc]

    def __init__(self, code: str, message: str, *, hint: str | None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.exit_code = exit_code_for(code)


class ApiClient:
    """Calls one daemon; every document comes back as a dictionary."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    @classmethod
    def of_home(cls, home: Home, url: str | None = None) -> Self:
        """A client of the daemon that runs on this home, or of ``url`` with this home's key.

        Raises:
            DaemonNotRunning: If no daemon wrote its URL down, or the one that did has ended.
            Refused: If the key cannot be read.
        """
        url = url or _running_url(home)
        try:
            key = home.api_key.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise Refused(
                f"cannot read the API key {home.api_key}", hint="Give the daemon's folder with --home."
            ) from exc
        return cls(url, key)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """GET ``/api/v1/PATH``.

        Raises:
            Timeout: If the daemon is silent for 5 s.
            ApiFailure: With code ``daemon_not_running`` if nothing of the kind answers at the URL, else with
                what the daemon answered.
        """
        return self._document(*self._call("GET", path, query or {}, wait_s=_ANSWER_S))

    def get_bytes(self, path: str, *, wait_s: float) -> bytes:
        """GET what is no document, and wait up to ``wait_s`` for it. Raises as `get` does."""
        status, body = self._call("GET", path, {}, wait_s=wait_s)
        if not 200 <= status < 300:
            self._document(status, body)
        return body

    def post(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """POST to ``/api/v1/PATH`` without a body. Raises as `get` does."""
        return self._document(*self._call("POST", path, query or {}, wait_s=_ANSWER_S))

    def post_bytes(
        self, path: str, body: bytes, query: Mapping[str, str], *, media_type: str, wait_s: float
    ) -> dict[str, Any]:
        """POST a body of this type and wait up to ``wait_s`` for the answer. Raises as `get` does."""
        return self._document(*self._call("POST", path, query, (media_type, body), wait_s=wait_s))

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        content: tuple[str, bytes] | None = None,
        *,
        wait_s: float,
    ) -> tuple[int, bytes]:
        """The answer's status and body; ``content`` is the request's, behind its media type."""
        target = f"/api/v1/{path}?{urlencode(query)}" if query else f"/api/v1/{path}"
        headers = {"authorization": f"Bearer {self._key}"}
        media_type, sent = content or (None, None)
        if media_type is not None:
            headers["content-type"] = media_type
        try:
            connection = self._connection(wait_s)
            try:
                connection.request(method, target, sent, headers)
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()
        except TimeoutError as exc:
            raise Timeout(f"the daemon's answer to {method} {target}", wait_s) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._nobody() from exc

    def _connection(self, wait_s: float) -> http.client.HTTPConnection:
        """Not yet connected. ValueError if the URL is none that a daemon could have."""
        url = urlsplit(self._url)
        if url.scheme != "http" or url.hostname is None:
            raise ValueError("no http URL")
        return http.client.HTTPConnection(url.hostname, url.port, timeout=wait_s)

    def _document(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            document = json.loads(body)
        except ValueError as exc:
            raise self._nobody() from exc
        if isinstance(document, dict):
            if 200 <= status < 300:
                return document
            match document.get("error"):
                case {"code": str(code), "message": str(message), "hint": str() | None as hint}:
                    raise ApiFailure(code, message, hint=hint)
        raise self._nobody()

    def _nobody(self) -> ApiFailure:
        return ApiFailure(
            str(DaemonNotRunning.code),
            f"no meshnode daemon answers at {self._url}",
            hint="`meshnode run` starts one; without --api the URL it wrote down is used.",
        )


def _running_url(home: Home) -> str:
    note = home.read_daemon_note()
    if note is None or not _is_alive(note.pid):
        raise DaemonNotRunning(home.path, holder=_holder(home))
    return note.url


def _holder(home: Home) -> str | None:
    """Who holds the home although nobody has said where to ask, as far as this user may know."""
    try:
        holder = find_holder(home)
    except OSError:
        return None
    return None if holder is None else str(holder)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it lives and belongs to somebody else
    return True
