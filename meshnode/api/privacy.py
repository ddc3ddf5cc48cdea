"""The API's routes for what a node has told, and for what it is to forget."""

from fastapi import APIRouter, Request

from meshnode.api.payload import forget_request_from_json, whole_body
from meshnode.api.replies import JsonResponse, document
from meshnode.api.service import NodeService

__all__ = ["privacy_routes"]

_MAX_JSON_BYTES = 4 * 1024
"""A request names a task or a peer."""


def privacy_routes(service: NodeService) -> APIRouter:
    """Those of one node, to stand under ``/api/v1``."""
    routes = APIRouter()

    @routes.get("/privacy")
    async def privacy() -> JsonResponse:
        return document("privacy", service.privacy())

    @routes.post("/forget")
    async def forget(request: Request) -> JsonResponse:
        """Answers once all is done."""
        wanted = forget_request_from_json(await whole_body(request, _MAX_JSON_BYTES))
        return document("forget", await service.forget(wanted))

    return routes
