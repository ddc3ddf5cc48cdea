"""The API's routes under ``/api/v1``, and beside them ``/metrics`` and the two open ones.

Every handler is a coroutine although most wait for nothing: FastAPI would run a plain function in a thread,
and the node may only be read from its own event loop.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.responses import Response

from meshnode.api.guard import Guard, allowed_hosts
from meshnode.api.payload import image_array, images_from_npy, infer_request_from_json, whole_body
from meshnode.api.preservation import preservation_routes
from meshnode.api.privacy import privacy_routes
from meshnode.api.replicas import replica_routes
from meshnode.api.replies import JsonResponse, document, error_response, failure_response
from meshnode.api.service import NodeService
from meshnode.errors import NodeError
from protocol.errors import ModuleMeshError
from protocol.limits import MAX_FRAME_BYTES

__all__ = ["create_app"]

_MAX_JSON_BYTES = 8 * 1024 * 1024
"""Nested lists are decoded on the node's loop; a longer one would hold it up. Use ``.npy``."""


def create_app(service: NodeService, key: str, port: int, *, listen_host: str = "127.0.0.1") -> FastAPI:
    """The ASGI application of one node.

    Args:
        service: The node.
        key: The bearer key that every path but ``/healthz`` and ``/readyz`` asks for.
        port: The bound TCP port, part of the exact Host check.
        listen_host: The address bound, which a client may name as Host unless it is a wildcard.
    """
    # No interactive documentation: its pages load scripts from a CDN.
    app = FastAPI(title="meshnode", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")
    app.include_router(_root_routes(service))
    app.include_router(_read_routes(service), prefix="/api/v1")
    app.include_router(_act_routes(service), prefix="/api/v1")
    app.include_router(replica_routes(service), prefix="/api/v1")
    app.include_router(preservation_routes(service), prefix="/api/v1")
    app.include_router(privacy_routes(service), prefix="/api/v1")
    app.add_middleware(Guard, key=key, hosts=allowed_hosts(listen_host, port))
    app.add_exception_handler(ModuleMeshError, _named_failure)
    app.add_exception_handler(NodeError, _named_failure)
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    app.add_exception_handler(HTTPException, _http_failure)
    app.add_exception_handler(Exception, _our_bug)
    return app


def _root_routes(service: NodeService) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> JsonResponse:
        return document("health", {"ok": True})

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @routes.get("/readyz")
    async def readyz() -> JsonResponse:
        ready = service.ready()
        return document("ready", {"ready": ready}, status_code=200 if ready else 503)

    return routes


def _read_routes(service: NodeService) -> APIRouter:
    routes = APIRouter()

    @routes.get("/status")
    async def status() -> JsonResponse:
        return document("status", service.status())

    @routes.get("/id")
    async def identity() -> JsonResponse:
        return document("id", service.identity())

    @routes.get("/peers")
    async def peers() -> JsonResponse:
        return document("peers", {"peers": service.peers()})

    @routes.get("/experts")
    async def experts(scope: Literal["local", "mesh"] = "mesh") -> JsonResponse:
        return document("experts", {"scope": scope, "experts": service.experts(local=scope == "local")})

    @routes.get("/specialization")
    async def specialization() -> JsonResponse:
        return document("specialization", service.specialization())

    @routes.get("/averaging")
    async def averaging() -> JsonResponse:
        return document("averaging", service.averaging())

    @routes.get("/handover")
    async def handover(wait_s: Annotated[float, Query(ge=0, le=60)] = 0.0) -> JsonResponse:
        return document("handover", await service.handover(wait_s=wait_s))

    @routes.get("/config")
    async def config() -> JsonResponse:
        return document("config", service.settings())

    @routes.get("/train")
    async def train() -> JsonResponse:
        return document("train", service.training())

    return routes


def _act_routes(service: NodeService) -> APIRouter:
    routes = APIRouter()

    @routes.post("/train/now")
    async def train_now() -> JsonResponse:
        return document("train-now", await service.train_now(), status_code=202)

    @routes.post("/infer")
    async def infer(
        request: Request,
        top_k: Annotated[int | None, Query(ge=1)] = None,
        task: str | None = None,
        timeout_s: Annotated[float | None, Query(gt=0, le=3600)] = None,
    ) -> JsonResponse:
        """A JSON body carries its own options; a ``.npy`` body takes them from the query string."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "application/x-npy":
            images = images_from_npy(await whole_body(request, MAX_FRAME_BYTES))
        elif media_type == "application/json":
            asked = infer_request_from_json(await whole_body(request, _MAX_JSON_BYTES))
            images, top_k, task, timeout_s = image_array(asked.images), asked.top_k, asked.task, asked.timeout_s
        else:
            raise HTTPException(415, "send images as application/json or application/x-npy")
        return document("infer", await service.infer(images, top_k=top_k, task=task, timeout_s=timeout_s))

    @routes.post("/shutdown")
    async def shutdown() -> JsonResponse:
        service.request_shutdown()
        return document("shutdown", {"draining": True}, status_code=202)

    return routes


async def _named_failure(_request: Request, exc: Exception) -> JsonResponse:
    assert isinstance(exc, (ModuleMeshError, NodeError))
    return failure_response(exc)


async def _bad_parameters(_request: Request, exc: Exception) -> JsonResponse:
    assert isinstance(exc, RequestValidationError)
    complaints = [f"{error['loc'][-1]}: {error['msg']}" for error in exc.errors()]
    return error_response(400, "malformed_message", "; ".join(complaints), None)


async def _http_failure(_request: Request, exc: Exception) -> JsonResponse:
    assert isinstance(exc, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}.get(exc.status_code, "refused")
    response = error_response(exc.status_code, code, exc.detail, "GET /api/v1/openapi.json lists the calls there are.")
    response.headers.update(exc.headers or {})
    return response


async def _our_bug(_request: Request, exc: Exception) -> JsonResponse:
    """Answers the caller; the server raises the exception on, so that the log has its trace."""
    message, hint = f"{type(exc).__name__} in the node", "Its log has the trace: please report it."
    response = error_response(500, "internal", message, hint)
    # The server hangs up after an exception; a client that keeps connections must not try this one again.
    response.headers["connection"] = "close"
    return response
