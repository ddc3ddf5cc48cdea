"""What arrives over the network is what the digest names, or nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import key_of, memory_network

from meshnode.blobs import fetch_blob, fetch_from_any
from meshnode.handlers import Handlers
from meshnode.state.blobs import BlobStore
from meshnode.transport.interface import FrameHandler
from meshnode.transport.memory import MemoryTransport
from protocol.errors import BlobCorrupt, MalformedMessage, MalformedTensor, NoRoute, PeerUnreachable, UnknownBlob
from protocol.framing import Frame
from protocol.identifiers import Digest, PeerId, digest_of
from protocol.limits import BLOB_CHUNK_BYTES, MAX_BLOB_BYTES
from protocol.messages import Ack, BlobGet, BlobPart

ME, A, B, C = (key_of(name).peer_id for name in ("me", "a", "b", "c"))
LONG = np.random.default_rng(2).bytes(2 * BLOB_CHUNK_BYTES + 17)


def serving(handler: FrameHandler) -> MemoryTransport:
    network = memory_network()
    network.join(A).serve(handler)
    return network.join(ME)


@pytest.mark.parametrize("data", [b"", b"x", LONG[:BLOB_CHUNK_BYTES], LONG], ids=["empty", "byte", "chunk", "chunks"])
async def test_a_blob_of_any_size_arrives_whole(tmp_path: Path, data: bytes) -> None:
    store = BlobStore(tmp_path)
    digest = store.put(data)
    transport = serving(Handlers(store, A, "a", lambda: 0.0))
    assert await fetch_blob(transport, A, digest, timeout_s=5) == data


async def test_a_peer_without_the_blob_says_so(tmp_path: Path) -> None:
    transport = serving(Handlers(BlobStore(tmp_path), A, "a", lambda: 0.0))
    with pytest.raises(UnknownBlob):
        await fetch_blob(transport, A, digest_of(b"x"), timeout_s=5)


async def test_other_bytes_than_the_digest_names_are_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.put(b"right")
    (tmp_path / digest).write_bytes(b"wrong")
    transport = serving(Handlers(store, A, "a", lambda: 0.0))
    with pytest.raises(BlobCorrupt) as caught:
        await fetch_blob(transport, A, digest, timeout_s=5)
    assert caught.value.digest == digest


Lie = Callable[[BlobGet], Frame]
DATA = {"data": np.zeros(4, np.uint8)}

LIES: dict[str, Lie] = {
    "another message": lambda ask: Frame(Ack()),
    "another digest": lambda ask: Frame(BlobPart(digest=digest_of(b"y"), offset=ask.offset, total_bytes=4), DATA),
    "another offset": lambda ask: Frame(BlobPart(digest=ask.digest, offset=ask.offset + 1, total_bytes=8), DATA),
    "more than in all": lambda ask: Frame(BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=3), DATA),
    "nothing for ever": lambda ask: Frame(
        BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=MAX_BLOB_BYTES), {"data": np.zeros(0, np.uint8)}
    ),
    "no bytes": lambda ask: Frame(BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=4)),
    "floats": lambda ask: Frame(
        BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=4), {"data": np.zeros(1, np.float32)}
    ),
}


def liar(lie: Lie) -> FrameHandler:
    async def answer(sender: PeerId, request: Frame) -> Frame:
        assert isinstance(request.message, BlobGet)
        return lie(request.message)

    return answer


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_an_answer_that_contradicts_the_question_or_itself_is_refused(lie: Lie) -> None:
    with pytest.raises((MalformedMessage, MalformedTensor)):
        await fetch_blob(serving(liar(lie)), A, digest_of(b"x"), timeout_s=5)


async def refuse_oddly(sender: PeerId, request: Frame) -> Frame:
    raise NoRoute()


async def test_the_next_peer_is_asked_when_one_is_gone_lies_or_lacks_it(tmp_path: Path) -> None:
    for name in "bc":
        (tmp_path / name).mkdir()
    empty, full = BlobStore(tmp_path / "b"), BlobStore(tmp_path / "c")
    digest = full.put(b"data")
    network = memory_network()
    transport = network.join(ME)
    network.join(A).serve(liar(LIES["floats"]))
    network.join(B).serve(Handlers(empty, B, "b", lambda: 0.0))
    network.join(C).serve(Handlers(full, C, "c", lambda: 0.0))
    odd = network.join(key_of("d").peer_id)
    odd.serve(refuse_oddly)
    peers = [key_of("gone").peer_id, A, odd.peer_id, B, C]
    assert await fetch_from_any(transport, peers, digest, timeout_s=5) == b"data"


async def test_when_no_peer_delivers_the_last_failure_is_the_cause() -> None:
    transport = memory_network().join(ME)
    with pytest.raises(UnknownBlob) as caught:
        await fetch_from_any(transport, [A], Digest(digest_of(b"x")), timeout_s=5)
    assert isinstance(caught.value.__cause__, PeerUnreachable)
    with pytest.raises(UnknownBlob):
        await fetch_from_any(transport, [], Digest(digest_of(b"x")), timeout_s=5)
