"""The API's two kinds of answer: a JSON document with its schema, or ``{"error": {code, message, hint}}``."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from meshnode.errors import ExpertFileRefused, NoAncestorHere, NodeError, NoSuchPeerOrExpert, Refused, Timeout
from protocol import errors

__all__ = ["JsonResponse", "document", "error_response", "failure_response"]


class JsonResponse(Response):
    """JSON by msgspec: a NaN, say of a diverged loss, becomes null where ``json`` would fail the answer."""

    media_type = "application/json"

    def __init__(self, content: object, status_code: int = 200) -> None:
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        super().__init__(content, status_code, headers)

    def render(self, content: object) -> bytes:
        """The body."""
        return msgspec.json.encode(content)


def document(name: str, fields: Mapping[str, object], status_code: int = 200) -> JsonResponse:
    """The document ``meshnode.NAME/1``; a schema among the fields wins, being the node's own word."""
    return JsonResponse({"schema": f"meshnode.{name}/1", **fields}, status_code)


def error_response(status_code: int, code: str, message: str, hint: str | None) -> JsonResponse:
    """The error document."""
    return JsonResponse({"error": {"code": code, "message": message, "hint": hint}}, status_code)


def failure_response(failure: errors.ModuleMeshError | NodeError) -> JsonResponse:
    """The error document of a named error, under the status that its class has in HTTP."""
    status_code = next((status for kinds, status in _STATUSES if isinstance(failure, kinds)), 500)
    response = error_response(status_code, str(failure.code), failure.message, failure.hint)
    if isinstance(failure, errors.Busy):
        # Whole seconds, rounded up: earlier than asked for is the one wrong answer.
        response.headers["retry-after"] = str(int(-(-failure.retry_after_s // 1)))
    if isinstance(failure, errors.FrameTooLarge):
        # Else the server would read the rest of the body, however long, and throw it away.
        response.headers["connection"] = "close"
    return response


# The first that fits counts, so a class stands before its family.
_STATUSES: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
    ((errors.FrameTooLarge,), 413),
    ((errors.RefusedInput, ExpertFileRefused), 400),
    ((errors.NoRoute, errors.UnknownExpert, errors.UnknownBlob, NoSuchPeerOrExpert), 404),
    ((errors.ClockSkewed, errors.MeshMismatch, NoAncestorHere, Refused), 409),
    ((errors.Busy, errors.NotReady, errors.Draining), 503),
    ((errors.CallTimeout, Timeout), 504),
    ((errors.CallFailed, errors.RowsUnanswered), 502),
)
