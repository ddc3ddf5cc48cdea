"""What this node answers its peers: a greeting, blobs, experts, and its part in averaging rounds."""

import asyncio
from collections.abc import Callable

import numpy as np

from meshnode import __version__
from meshnode.averaging.averager import Averager
from meshnode.hosting import ExpertHost
from meshnode.mesh import Mesh
from meshnode.state.blobs import BlobStore
from meshnode.telemetry.instruments import Instruments
from protocol.errors import Draining, MeshMismatch, NotReady, UnknownBlob, UnknownMethod
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.messages import (
    BlobGet,
    BlobPart,
    Forward,
    ForwardReply,
    Hello,
    HelloReply,
    RoundAttestation,
    RoundOutcomeQuery,
    RoundProposal,
)
from protocol.tensors import require_tensor

__all__ = ["Handlers"]


class Handlers:
    """Dispatches one request to the part of the node that answers it.

    The parts of a mesh are absent until the node belongs to one; what needs them answers `NotReady` until then.
    """

    def __init__(
        self,
        blobs: BlobStore,
        peer_name: str,
        now_s: Callable[[], float],
        instruments: Instruments | None = None,
    ) -> None:
        self._blobs = blobs
        self._peer_name = peer_name
        self._now_s = now_s
        self._instruments = instruments or Instruments()
        self._mesh: Mesh | None = None
        self._host: ExpertHost | None = None
        self._averager: Averager | None = None
        self._draining = False

    def attach(self, mesh: Mesh, host: ExpertHost | None, averager: Averager | None) -> None:
        """Answer for a mesh from now on; None for what this node's settings switch off."""
        self._mesh, self._host, self._averager = mesh, host, averager

    def drain(self) -> None:
        """Take no new work; blobs and greetings are still answered."""
        self._draining = True

    async def __call__(self, sender: PeerId, request: Frame) -> Frame:
        """Answer one request. Raises ModuleMeshError, which the transport sends back."""
        message = request.message
        match message:
            case Hello():
                return self._greet(message)
            case BlobGet():
                return await self._send_part(message)
            case Forward():
                with self._instruments.inference("server"):
                    return await self._forward(message, request)
            case RoundProposal() | RoundAttestation() | RoundOutcomeQuery():
                if self._averager is None:
                    raise NotReady("this node does not average")
                return Frame(await self._averager.handle(sender, message))
            case _:
                raise UnknownMethod(type(message).__name__)

    def _greet(self, hello: Hello) -> Frame:
        mesh_id = self._mesh.mesh_id if self._mesh else None
        if hello.mesh_id is not None and mesh_id is not None and hello.mesh_id != mesh_id:
            raise MeshMismatch(expected=mesh_id, got=hello.mesh_id)
        return Frame(
            HelloReply(
                mesh_id=mesh_id,
                mesh_name=self._mesh.spec.name if self._mesh else None,
                peer_name=self._peer_name,
                version=__version__,
                now_s=self._now_s(),
            )
        )

    async def _send_part(self, request: BlobGet) -> Frame:
        if not self._blobs.has(request.digest):
            raise UnknownBlob(request.digest)
        data = await asyncio.to_thread(self._blobs.read_range, request.digest, request.offset, request.length)
        part = BlobPart(digest=request.digest, offset=request.offset, total_bytes=self._blobs.size(request.digest))
        return Frame(part, {"data": np.frombuffer(data, dtype=np.uint8)})

    async def _forward(self, message: Forward, request: Frame) -> Frame:
        if self._draining:
            raise Draining
        if self._host is None or self._mesh is None:
            raise NotReady("this node serves no experts")
        shape = (None, self._mesh.spec.feature_dim)
        features_BD = require_tensor(request.tensors, "features", dtype="float32", shape=shape, finite=True)
        answer = await self._host.answer(message.expert, features_BD)
        reply = ForwardReply(
            expert=message.expert,
            generation=answer.generation,
            weights=answer.weights,
            classes=answer.classes,
        )
        return Frame(reply, {"probabilities": answer.probabilities})
