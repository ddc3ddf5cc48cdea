"""The node's HTTP API: loopback by default, a bearer key on every route but two, JSON only, no CORS."""

from meshnode.api.app import create_app
from meshnode.api.server import ApiServer
from meshnode.api.service import Document, NodeService

__all__ = ["ApiServer", "Document", "NodeService", "create_app"]
