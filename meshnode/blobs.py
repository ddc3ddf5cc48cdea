"""Pulling immutable blobs by digest: mesh specs, trunks, expert weights, router statistics.

Whoever sends a blob need not be trusted: what arrives is what the digest names, or it is refused.
"""

from collections.abc import Iterable

from meshnode.transport.interface import Transport
from protocol.errors import BlobCorrupt, MalformedMessage, ModuleMeshError, UnknownBlob
from protocol.framing import Frame
from protocol.identifiers import Digest, PeerId, digest_of
from protocol.limits import BLOB_CHUNK_BYTES, MAX_BLOB_BYTES
from protocol.messages import BlobGet, BlobPart
from protocol.tensors import require_tensor

__all__ = ["fetch_blob", "fetch_from_any"]


async def fetch_blob(transport: Transport, peer_id: PeerId, digest: Digest, *, timeout_s: float) -> bytes:
    """Pull one blob from one peer, chunk by chunk.

    Args:
        timeout_s: Deadline of each chunk, in seconds.

    Raises:
        UnknownBlob: The peer has no such blob.
        BlobCorrupt: What it sent is something else.
        ModuleMeshError: It did not answer, or not properly.
    """
    received = bytearray()
    total_bytes = None
    while total_bytes is None or len(received) < total_bytes:
        request = Frame(message=BlobGet(digest=digest, offset=len(received), length=BLOB_CHUNK_BYTES))
        reply = await transport.call(peer_id, request, timeout_s=timeout_s)
        part = reply.message
        if not isinstance(part, BlobPart) or part.digest != digest or part.offset != len(received):
            raise MalformedMessage("BlobPart", reason="not the part that was asked for")
        data = require_tensor(reply.tensors, "data", dtype="uint8", shape=(None,))
        total_bytes = part.total_bytes
        if total_bytes > MAX_BLOB_BYTES or len(received) + len(data) > total_bytes or (total_bytes and not len(data)):
            raise MalformedMessage("BlobPart", reason="its sizes contradict each other")
        received += data.tobytes()
    blob = bytes(received)
    if digest_of(blob) != digest:
        raise BlobCorrupt(digest)
    return blob


async def fetch_from_any(
    transport: Transport, peer_ids: Iterable[PeerId], digest: Digest, *, timeout_s: float
) -> bytes:
    """Pull a blob from the first of `peer_ids` that delivers it.

    Raises:
        UnknownBlob: None of them did; the last failure is its cause.
    """
    failure: ModuleMeshError | None = None
    for peer_id in peer_ids:
        try:
            return await fetch_blob(transport, peer_id, digest, timeout_s=timeout_s)
        except ModuleMeshError as exc:
            failure = exc
    raise UnknownBlob(digest) from failure
