"""The command line's side of the HTTP API: finds the home's daemon, sends its key, raises its failures."""

import os
from collections.abc import Mapping
from typing import Any, Self

import httpx

from meshnode.errors import DaemonNotRunning, NodeError, Refused, Timeout
from meshnode.home import Home

__all__ = ["ApiClient", "ApiFailure"]

_ANSWER_S = 5.0
"""The daemon answers reads from memory; silence for longer means that its loop stands still."""


class ApiFailure(NodeError):
    """A failure known by its code alone: what the daemon answered, or that nothing of the kind answered."""

    code: str  # type: ignore[misc]  # of the instance here: the daemon chooses it

    def __init__(self, code: str, message: str, *, hint: str | None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


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
        return self._call(self._request("GET", path, query), _ANSWER_S)

    def post_npy(self, path: str, body: bytes, query: Mapping[str, str], *, wait_s: float) -> dict[str, Any]:
        """POST a ``.npy`` array and wait up to ``wait_s`` for its answer. Raises as `get` does."""
        request = self._request("POST", path, query, content=body)
        request.headers["content-type"] = "application/x-npy"
        return self._call(request, wait_s)

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, *, content: bytes | None = None
    ) -> httpx.Request:
        try:
            request = httpx.Request(method, f"{self._url}/api/v1/{path}", params=query, content=content)
        except httpx.InvalidURL as exc:
            raise self._nobody() from exc
        request.headers["authorization"] = f"Bearer {self._key}"
        return request

    def _call(self, request: httpx.Request, wait_s: float) -> dict[str, Any]:
        # The environment's proxies are for other hosts; through one, a daemon on loopback cannot be reached.
        with httpx.Client(timeout=wait_s, trust_env=False) as client:
            try:
                response = client.send(request)
            except httpx.ConnectError as exc:
                raise self._nobody() from exc
            except httpx.TimeoutException as exc:
                raise Timeout(f"the daemon's answer to {request.method} {request.url.path}", wait_s) from exc
            except (httpx.TransportError, httpx.UnsupportedProtocol) as exc:
                raise self._nobody() from exc
        return self._document(response)

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        try:
            document = response.json()
        except ValueError as exc:
            raise self._nobody() from exc
        if not isinstance(document, dict):
            raise self._nobody()
        if response.is_success:
            return document
        match document.get("error"):
            case {"code": str(code), "message": str(message), "hint": str() | None as hint}:
                raise ApiFailure(code, message, hint=hint)
            case _:
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
        raise DaemonNotRunning(home.path)
    return note.url


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it lives and belongs to somebody else
    return True
