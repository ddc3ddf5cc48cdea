"""Large blobs: resumed, from several peers at once, without those that lie or are slow."""

import asyncio
import time
from pathlib import Path

import pytest
from blob_peers import LONG, LONG_DIGEST, BlobPeers
from mesh_in_memory import key_of

from meshnode.blobs import asking, puller
from meshnode.blobs.plan import AHEAD_BYTES
from protocol.errors import Busy, MalformedMessage, UnknownBlob
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.limits import BLOB_CHUNK_BYTES, MIN_BLOB_PART_BYTES


@pytest.fixture
def peers(tmp_path: Path) -> BlobPeers:
    return BlobPeers(tmp_path / "me")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LATE_S", 0.1)


def asked_bytes(peers: BlobPeers, *peer_ids: PeerId) -> int:
    return sum(min(length, len(LONG) - offset) for peer_id in peer_ids for offset, length in peers.asked[peer_id])


async def interrupted(peers: BlobPeers, source: PeerId, *, at_bytes: int) -> int:
    """Break a pull off once so much has come; how much is on the disk then."""
    reached = asyncio.Event()

    def look(done: int, total: int) -> None:
        if done >= at_bytes:
            reached.set()

    pull = asyncio.create_task(peers.puller().pull(LONG_DIGEST, [source], progress=look))
    await reached.wait()
    pull.cancel()
    await asyncio.wait([pull])
    return peers.partial.stat().st_size


async def test_an_interrupted_pull_goes_on_from_what_is_on_the_disk(peers: BlobPeers) -> None:
    a = peers.honest("a", delay_s=0.01)
    there = await interrupted(peers, a, at_bytes=3 * BLOB_CHUNK_BYTES)
    assert 3 * BLOB_CHUNK_BYTES <= there < len(LONG)
    peers.asked[a].clear()
    assert await peers.puller().pull(LONG_DIGEST, [a]) == LONG
    assert min(offset for offset, _ in peers.asked[a]) == there
    assert asked_bytes(peers, a) == len(LONG) - there
    assert not peers.partial.exists()
    assert peers.store().is_whole(LONG_DIGEST)


async def test_a_pull_that_was_whole_but_for_its_name_asks_for_nothing_again(peers: BlobPeers) -> None:
    a = peers.honest("a")
    peers.partial.parent.mkdir(parents=True)
    peers.partial.write_bytes(LONG)
    assert await peers.puller().pull(LONG_DIGEST, [a]) == LONG
    assert asked_bytes(peers, a) == 0


@pytest.mark.parametrize("left", [bytes(BLOB_CHUNK_BYTES), LONG + b"more"], ids=["torn", "too long"])
async def test_what_an_earlier_pull_left_is_thrown_away_if_the_whole_is_wrong_and_nobody_is_blamed(
    peers: BlobPeers, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    a = peers.honest("a")
    peers.partial.parent.mkdir(parents=True)
    peers.partial.write_bytes(left)
    assert await peers.puller().pull(LONG_DIGEST, [a]) == LONG
    assert caplog.records == []


async def test_several_peers_share_a_pull(peers: BlobPeers) -> None:
    sources = [peers.honest(name, delay_s=0.02) for name in "abc"]
    assert await peers.puller().pull(LONG_DIGEST, sources) == LONG
    assert all(asked_bytes(peers, source) >= BLOB_CHUNK_BYTES for source in sources)
    assert asked_bytes(peers, *sources) == len(LONG)  # nothing twice


@pytest.mark.parametrize("liar_first", [True, False])
async def test_one_liar_of_several_is_found_named_and_left_out(
    peers: BlobPeers, caplog: pytest.LogCaptureFixture, liar_first: bool
) -> None:
    def falsify(offset: int, right: bytes) -> bytes:
        return bytes([right[0] ^ 1]) + right[1:]

    liar = peers.liar("liar", falsify)
    honest = [peers.honest(name, delay_s=0.001) for name in "ab"]
    order = [liar, *honest] if liar_first else [*honest, liar]
    assert await peers.puller().pull(LONG_DIGEST, order) == LONG
    assert peers.asked[liar]
    assert [record.args["peer"] if record.args else None for record in caplog.records] in ([liar], [None])
    assert liar in caplog.text
    assert not any(peer_id in caplog.text for peer_id in honest)


async def test_a_peer_that_says_another_length_is_passed_over(peers: BlobPeers) -> None:
    liar = peers.liar("liar", lambda offset, right: right, blob=LONG + b"more")
    honest = peers.honest("a", delay_s=0.001)
    assert await peers.puller().pull(LONG_DIGEST, [honest, liar]) == LONG
    peers.store().delete(LONG_DIGEST)
    assert await peers.puller().pull(LONG_DIGEST, [liar, honest]) == LONG


async def test_a_liar_that_brings_next_to_nothing_for_ever_holds_up_nobody(
    peers: BlobPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller, "PATIENCE_S", 0.5)
    longer = peers.liar("longer", lambda offset, right: right[:MIN_BLOB_PART_BYTES], blob=4 * LONG)
    quick = peers.network._nodes[longer]._handler

    async def trickle(sender: PeerId, request: Frame) -> Frame:
        await asyncio.sleep(0.05)
        return await quick(sender, request)

    peers.network._nodes[longer].serve(trickle)
    honest = peers.honest("honest", delay_s=0.01)
    began_s = time.monotonic()
    assert await peers.puller().pull(LONG_DIGEST, [longer, honest]) == LONG
    assert time.monotonic() - began_s < 10


async def test_only_liars_give_nothing(peers: BlobPeers) -> None:
    liars = [peers.liar(name, lambda offset, right: bytes(len(right))) for name in "ab"]
    with pytest.raises(UnknownBlob):
        await peers.puller().pull(LONG_DIGEST, liars)
    assert not peers.store().has(LONG_DIGEST)


async def test_a_slow_peer_loses_its_share_to_the_others(peers: BlobPeers) -> None:
    slow, quick = peers.honest("slow", delay_s=3.0), peers.honest("quick", delay_s=0.001)
    began_s = time.monotonic()
    assert await peers.puller().pull(LONG_DIGEST, [slow, quick]) == LONG
    assert time.monotonic() - began_s < 2.0
    assert len(peers.asked[slow]) == 2  # the first part, and one of those behind it


async def test_a_peer_that_dies_half_way_costs_only_what_it_was_asked_for(peers: BlobPeers) -> None:
    dying, alive = peers.honest("dying", delay_s=0.01), peers.honest("alive", delay_s=0.01)

    def kill(done: int, total: int) -> None:
        if done > len(LONG) // 3:
            peers.network.partition(frozenset({key_of("me").peer_id, alive}))

    assert await peers.puller().pull(LONG_DIGEST, [dying, alive], progress=kill) == LONG


async def test_a_pull_whose_peers_all_die_keeps_what_has_come(peers: BlobPeers) -> None:
    dying = peers.honest("dying", delay_s=0.01)

    def kill(done: int, total: int) -> None:
        if done > len(LONG) // 3:
            peers.network.partition(frozenset({dying}))

    with pytest.raises(UnknownBlob):
        await peers.puller().pull(LONG_DIGEST, [dying], progress=kill)
    there = peers.partial.stat().st_size
    assert there > len(LONG) // 3
    peers.network.partition()
    peers.asked[dying].clear()
    assert await peers.puller().pull(LONG_DIGEST, [dying]) == LONG
    assert asked_bytes(peers, dying) == len(LONG) - there


async def test_peers_beyond_those_asked_at_once_come_in_for_those_that_fail(peers: BlobPeers) -> None:
    async def broken(sender: PeerId, request: Frame) -> Frame:
        raise UnknownBlob(LONG_DIGEST)

    order = [*(peers.join(f"broken {number}", broken) for number in range(6)), peers.honest("whole")]
    assert await peers.puller().pull(LONG_DIGEST, order) == LONG


async def test_a_busy_peer_is_asked_again_when_it_says(peers: BlobPeers) -> None:
    a, refusals = peers.honest("a"), iter([0.2, 0.0, 0.1])
    whole = peers.network._nodes[a]._handler

    async def busy_at_first(sender: PeerId, request: Frame) -> Frame:
        if (retry_after_s := next(refusals, None)) is not None:
            raise Busy(retry_after_s)
        return await whole(sender, request)

    peers.network._nodes[a].serve(busy_at_first)
    began_s = time.monotonic()
    assert await peers.puller().pull(LONG_DIGEST, [a]) == LONG
    assert time.monotonic() - began_s >= 0.3


async def test_a_peer_that_gives_little_at_a_time_is_asked_for_that(peers: BlobPeers) -> None:
    little = 300_000
    a = peers.liar("a", lambda offset, right: right[:little])
    assert await peers.puller().pull(LONG_DIGEST, [a]) == LONG
    assert sorted({length for _, length in peers.asked[a][8:]})[-1] <= little
    stingy = peers.liar("stingy", lambda offset, right: right[: MIN_BLOB_PART_BYTES - 1])
    peers.store().delete(LONG_DIGEST)
    with pytest.raises(UnknownBlob) as caught:
        await peers.puller().pull(LONG_DIGEST, [stingy])
    assert isinstance(caught.value.__cause__, MalformedMessage)


async def test_two_pulls_of_one_blob_at_once_fetch_it_once(peers: BlobPeers) -> None:
    a, shared = peers.honest("a"), peers.puller()
    assert await asyncio.gather(*(shared.pull(LONG_DIGEST, [a]) for _ in range(2))) == [LONG, LONG]
    assert asked_bytes(peers, a) == len(LONG)


async def test_a_full_disk_fails_the_pull_and_keeps_what_is_there(
    peers: BlobPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meshnode.state.partials import PartialBlob  # noqa: PLC0415

    write = PartialBlob._write

    def fill(self: PartialBlob, piece: memoryview) -> None:
        if self.num_bytes > len(LONG) // 2:
            raise OSError(28, "No space left on device")
        write(self, piece)

    a = peers.honest("a")
    with monkeypatch.context() as patched:
        patched.setattr(PartialBlob, "_write", fill)
        with pytest.raises(OSError, match="No space"):
            await peers.puller().pull(LONG_DIGEST, [a])
    assert await peers.puller().pull(LONG_DIGEST, [a]) == LONG


def test_what_is_held_in_memory_is_bounded_below_the_largest_blob() -> None:
    assert 2 * AHEAD_BYTES <= 64 * 1024 * 1024
