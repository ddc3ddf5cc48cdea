"""What this node answers its peers: a greeting, blobs, its part in averaging rounds, and its experts (`serving`)."""

import asyncio
from collections.abc import Callable
from typing import Final

import numpy as np

from meshnode import __version__
from meshnode.averaging.averager import Averager
from meshnode.mesh import Mesh
from meshnode.pacing import Pacer
from meshnode.serving import Serving
from meshnode.state.blobs import BlobStore
from protocol.errors import Busy, MalformedTensor, MeshMismatch, NotReady, UnknownBlob, UnknownMethod
from protocol.framing import Announced, Frame
from protocol.identifiers import PeerId
from protocol.limits import MIN_BLOB_PART_BYTES
from protocol.messages import (
    BlobGet,
    BlobPart,
    Forward,
    Hello,
    HelloReply,
    Infer,
    RoundParts,
    RoundTalk,
)

__all__ = ["Handlers"]

LONGEST_PART_S: Final = 1.0
"""A part is cut to what the pace lets go in so long: its caller's deadline is a few seconds."""

LONGEST_BACKLOG_S: Final = 1.0
"""Whoever asks for a part while more than this is to be sent before it is told to come back."""


class Handlers:
    """Dispatches one request to the part of the node that answers it.

    The parts of a mesh are absent until the node belongs to one; what needs them answers `NotReady` until then.
    """

    def __init__(
        self, blobs: BlobStore, me: PeerId, peer_name: str, now_s: Callable[[], float], pacer: Pacer | None = None
    ) -> None:
        """Answer for a node without a mesh; `pacer` holds back the blobs that it sends, None sends them at once."""
        self._blobs = blobs
        self._me = me
        self._peer_name = peer_name
        self._now_s = now_s
        self._pacer = pacer or Pacer(None)
        self._mesh: Mesh | None = None
        self._serving: Serving | None = None
        self._averager: Averager | None = None

    def attach(self, mesh: Mesh, serving: Serving | None, averager: Averager | None) -> None:
        """Answer for a mesh from now on; None for what this node's settings switch off."""
        self._mesh, self._serving, self._averager = mesh, serving, averager

    def leave_rounds(self) -> None:
        """Take part in no round any more; everything else is answered as before."""
        self._averager = None

    def drain(self) -> None:
        """Take no new work; blobs and greetings are still answered."""
        if self._serving is not None:
            self._serving.drain()

    def admit(self, sender: PeerId, announced: Announced, wait_s: float) -> None:
        """Refuse a request by its header. Raises ModuleMeshError, which the transport sends back."""
        message = announced.message
        if isinstance(message, Forward | Infer):
            self._require_serving().admit(announced, wait_s)
        elif isinstance(message, RoundParts):
            self._require_averager().admit(announced)
        elif announced.tensors:
            raise MalformedTensor(announced.tensors[0].name, "nothing is asked of it")

    async def __call__(self, sender: PeerId, request: Frame) -> Frame:
        """Answer one request that was let in. Raises ModuleMeshError, which the transport sends back."""
        message = request.message
        match message:
            case Hello():
                return self._greet(message)
            case BlobGet():
                return await self._send_part(message)
            case Forward():
                return await self._require_serving().forward(message, request)
            case Infer():
                serving = self._require_serving()
                return await serving.infer(message, request, me=self._me, my_name=self._peer_name)
            case RoundTalk() | RoundParts():
                return await self._require_averager().answer(sender, request)
            case _:
                raise UnknownMethod(type(message).__name__)

    def _require_serving(self) -> Serving:
        if self._serving is None:
            raise NotReady("this node serves no experts")
        return self._serving

    def _require_averager(self) -> Averager:
        if self._averager is None:
            raise NotReady("this node does not average")
        return self._averager

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
        """What is there of a part, once it is its turn; less of it where its caller would wait too long for all."""
        if not self._blobs.has(request.digest):
            raise UnknownBlob(request.digest)
        total_bytes = self._blobs.size(request.digest)
        length = max(0, min(request.length, total_bytes - request.offset))
        if (pace := self._pacer.bytes_per_second) is not None:
            if (backlog_s := self._pacer.backlog_s) > LONGEST_BACKLOG_S:
                raise Busy(retry_after_s=backlog_s)
            length = min(length, max(MIN_BLOB_PART_BYTES, int(pace * LONGEST_PART_S)))
        await self._pacer.take(length)
        data = await asyncio.to_thread(self._blobs.read_range, request.digest, request.offset, length)
        part = BlobPart(digest=request.digest, offset=request.offset, total_bytes=total_bytes)
        return Frame(part, {"data": np.frombuffer(data, dtype=np.uint8)})
