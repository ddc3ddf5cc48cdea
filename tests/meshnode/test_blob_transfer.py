"""What arrives over the network is what the digest names, or nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blob_peers import LONG, BlobPeers, random_bytes
from mesh_in_memory import key_of

from meshnode.blobs.asking import FIRST_BYTES
from meshnode.transport.interface import FrameHandler
from protocol.errors import (
    BlobCorrupt,
    FrameTooLarge,
    MalformedMessage,
    MalformedTensor,
    NoRoute,
    PeerUnreachable,
    UnknownBlob,
)
from protocol.framing import Frame
from protocol.identifiers import PeerId, digest_of
from protocol.limits import BLOB_CHUNK_BYTES, MAX_BLOB_BYTES
from protocol.messages import Ack, BlobGet, BlobPart


@pytest.fixture
def peers(tmp_path: Path) -> BlobPeers:
    return BlobPeers(tmp_path / "me")


@pytest.mark.parametrize("length", [0, 1, FIRST_BYTES, FIRST_BYTES + 1, 3 * BLOB_CHUNK_BYTES + 17])
async def test_a_blob_of_any_size_arrives_whole(peers: BlobPeers, length: int) -> None:
    data = random_bytes(length)
    a = peers.honest("a", data)
    seen: list[tuple[int, int]] = []
    pulled = await peers.puller().pull(digest_of(data), [a], progress=lambda done, total: seen.append((done, total)))
    assert pulled == data
    assert seen[-1:] == ([(length, length)] if length > FIRST_BYTES else [])
    assert seen == sorted(seen)


async def test_a_blob_of_one_part_takes_one_call_and_no_file(peers: BlobPeers) -> None:
    data = random_bytes(1000)
    a, b = peers.honest("a", data), peers.honest("b", data)
    assert await peers.puller().pull(digest_of(data), [a, b]) == data
    assert (len(peers.asked[a]), len(peers.asked[b])) == (1, 0)
    assert list(peers.folder.iterdir()) == []


async def test_what_is_stored_already_is_asked_of_nobody_unless_it_is_damaged(peers: BlobPeers) -> None:
    a = peers.honest("a", LONG)
    digest = peers.store().put(LONG)
    assert await peers.puller().pull(digest, [a]) == LONG
    assert peers.asked[a] == []
    (peers.folder / digest).write_bytes(b"rotten")
    assert await peers.puller().pull(digest, [a]) == LONG
    assert peers.store().is_whole(digest)


async def test_a_large_blob_is_nobodys_until_it_is_referred_to(peers: BlobPeers) -> None:
    a, puller = peers.honest("a"), peers.puller()
    digest = digest_of(LONG)
    await puller.pull(digest, [a])
    store = puller._blobs
    assert store.get(digest) == LONG
    assert store.collect((), superseded=()) == (digest,)


async def test_a_peer_without_the_blob_says_so(peers: BlobPeers) -> None:
    a = peers.honest("a", b"another")
    with pytest.raises(UnknownBlob) as caught:
        await peers.puller().pull(digest_of(b"x"), [a])
    assert isinstance(caught.value.__cause__, UnknownBlob)


@pytest.mark.parametrize("length", [5, 3 * BLOB_CHUNK_BYTES])
async def test_other_bytes_than_the_digest_names_are_refused(peers: BlobPeers, length: int) -> None:
    data = random_bytes(length)
    a = peers.liar("a", lambda offset, right: bytes(len(right)), blob=data)
    with pytest.raises(UnknownBlob) as caught:
        await peers.puller().pull(digest_of(data), [a])
    assert isinstance(caught.value.__cause__, BlobCorrupt)
    assert not peers.store().has(digest_of(data))


async def test_a_blob_longer_than_its_kind_may_be_is_refused_by_its_first_part(peers: BlobPeers) -> None:
    a = peers.honest("a")
    with pytest.raises(UnknownBlob) as caught:
        await peers.puller().pull(digest_of(LONG), [a], limit_bytes=len(LONG) - 1)
    assert isinstance(caught.value.__cause__, FrameTooLarge)
    assert len(peers.asked[a]) == 1
    assert not peers.partial.exists()


Lie = Callable[[BlobGet], Frame]
DATA = {"data": np.zeros(4, np.uint8)}

LIES: dict[str, Lie] = {
    "another message": lambda ask: Frame(Ack()),
    "another digest": lambda ask: Frame(BlobPart(digest=digest_of(b"y"), offset=ask.offset, total_bytes=4), DATA),
    "another offset": lambda ask: Frame(BlobPart(digest=ask.digest, offset=ask.offset + 1, total_bytes=8), DATA),
    "more than in all": lambda ask: Frame(BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=3), DATA),
    "more than asked for": lambda ask: Frame(
        BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=MAX_BLOB_BYTES),
        {"data": np.zeros(ask.length + 1, np.uint8)},
    ),
    "nothing for ever": lambda ask: Frame(
        BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=MAX_BLOB_BYTES), {"data": np.zeros(0, np.uint8)}
    ),
    "no bytes": lambda ask: Frame(BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=4)),
    "floats": lambda ask: Frame(
        BlobPart(digest=ask.digest, offset=ask.offset, total_bytes=4), {"data": np.zeros(1, np.float32)}
    ),
}


def telling(lie: Lie) -> FrameHandler:
    async def answer(sender: PeerId, request: Frame) -> Frame:
        assert isinstance(request.message, BlobGet)
        return lie(request.message)

    return answer


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_an_answer_that_contradicts_the_question_or_itself_is_refused(peers: BlobPeers, lie: Lie) -> None:
    a = peers.join("a", telling(lie))
    with pytest.raises(UnknownBlob) as caught:
        await peers.puller().pull(digest_of(b"x"), [a])
    assert isinstance(caught.value.__cause__, MalformedMessage | MalformedTensor)


async def refuse_oddly(sender: PeerId, request: Frame) -> Frame:
    raise NoRoute()


async def test_the_next_peer_is_asked_when_one_is_gone_lies_or_lacks_it(peers: BlobPeers) -> None:
    order = [
        key_of("gone").peer_id,
        peers.join("a", telling(LIES["floats"])),
        peers.join("b", refuse_oddly),
        peers.honest("c", b"another"),
        peers.liar("d", lambda offset, right: right[::-1], blob=b"data"),
        peers.honest("e", b"data"),
    ]
    assert await peers.puller().pull(digest_of(b"data"), order) == b"data"


async def test_when_no_peer_delivers_the_last_failure_is_the_cause(peers: BlobPeers) -> None:
    puller = peers.puller()
    with pytest.raises(UnknownBlob) as caught:
        await puller.pull(digest_of(b"x"), [key_of("gone").peer_id])
    assert isinstance(caught.value.__cause__, PeerUnreachable)
    with pytest.raises(UnknownBlob) as caught:
        await puller.pull(digest_of(b"x"), [puller.transport.peer_id])
    assert caught.value.__cause__ is None
