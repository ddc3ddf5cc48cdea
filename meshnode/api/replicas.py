"""The API's routes for replicas that come, go and travel: pulled, dropped, exported, imported."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from meshnode.api.payload import whole_body
from meshnode.api.replies import JsonResponse, document
from meshnode.api.service import NodeService
from protocol.limits import MAX_FRAME_BYTES

__all__ = ["replica_routes"]


def replica_routes(service: NodeService) -> APIRouter:
    """Those of one node, to stand under ``/api/v1``."""
    routes = APIRouter()

    @routes.post("/experts/{uid}/pull")
    async def pull(uid: str, peer: str | None = None) -> JsonResponse:
        """Begins it; how far it is, GET of the same path says."""
        return document("expert-pull", service.pull_expert(uid, peer), status_code=202)

    @routes.get("/experts/{uid}/pull")
    async def pulled(uid: str) -> JsonResponse:
        return document("expert-pull", service.expert_pull(uid))

    @routes.post("/experts/{uid}/drop")
    async def drop(uid: str, *, force: bool = False) -> JsonResponse:
        return document("expert-drop", await service.drop_expert(uid, force=force))

    @routes.get("/experts/{uid}/file")
    async def export(uid: str) -> Response:
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(await service.expert_file(uid), headers=headers, media_type="application/octet-stream")

    @routes.post("/experts/import")
    async def take(request: Request, *, replace: bool = False) -> JsonResponse:
        data = await whole_body(request, MAX_FRAME_BYTES)
        return document("expert-import", await service.import_expert(data, replace=replace))

    return routes
