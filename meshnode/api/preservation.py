"""The API's routes for experts that change their form: carried over, rolled back, and where they come from."""

from fastapi import APIRouter, Request

from meshnode.api.payload import migration_request_from_json, whole_body
from meshnode.api.replies import JsonResponse, document
from meshnode.api.service import NodeService

__all__ = ["preservation_routes"]

_MAX_JSON_BYTES = 64 * 1024
"""A request names a form and a handful of settings."""


def preservation_routes(service: NodeService) -> APIRouter:
    """Those of one node, to stand under ``/api/v1``."""
    routes = APIRouter()

    @routes.post("/experts/{uid}/migrate")
    async def migrate(uid: str, request: Request) -> JsonResponse:
        """Begins it; how far it is, GET of the same path says."""
        wanted = migration_request_from_json(await whole_body(request, _MAX_JSON_BYTES))
        return document("expert-migration", service.migrate_expert(uid, wanted), status_code=202)

    @routes.get("/experts/{uid}/migrate")
    async def migrated(uid: str) -> JsonResponse:
        return document("expert-migration", service.expert_migration(uid))

    @routes.post("/experts/{uid}/rollback")
    async def roll_back(uid: str) -> JsonResponse:
        return document("expert-rollback", await service.roll_back_expert(uid))

    @routes.get("/experts/{uid}/lineage")
    async def lineage(uid: str) -> JsonResponse:
        return document("expert-lineage", await service.expert_lineage(uid))

    return routes
