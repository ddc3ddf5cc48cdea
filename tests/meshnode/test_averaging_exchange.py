"""The exchange of parts: nobody gets a mean that is not of all, and messages of many rounds share calls."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from mesh_in_memory import key_of, memory_network

from experts.averaging import codec_named
from meshnode.averaging.exchange import MAX_ROUNDS_AWAITED, Exchanged, Exchanges, Member
from meshnode.averaging.gathering import Gatherer
from meshnode.transport.memory import MemoryTransport
from protocol.errors import MalformedMessage, MalformedTensor, NotReady, PeerUnreachable
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.limits import MAX_ROUNDS_PER_CALL
from protocol.messages import RoundId, RoundParts

NAMES = ("a", "b", "c")
STRANGER = key_of("stranger").peer_id


def round_of(number: int) -> RoundId:
    return RoundId(ExpertUid(digest_of(b"expert")), number, 0)


class Peer:
    """One that exchanges and does nothing else; it counts the calls that it answers."""

    def __init__(self, transport: MemoryTransport, codec: str) -> None:
        self.transport = transport
        self.exchanges = Exchanges(transport, codec_named(codec), timeout_s=5.0)
        self.calls: list[RoundParts] = []
        transport.serve(self._answer)

    async def _answer(self, sender: PeerId, request: Frame) -> Frame:
        assert isinstance(request.message, RoundParts)
        self.calls.append(request.message)
        return await self.exchanges.answer(sender, request.message, request.tensors)


def peers_of(codec: str = "none", *, delay_s: float = 0.0) -> list[Peer]:
    network = memory_network(delay_s=delay_s)
    return [Peer(network.join(key_of(name).peer_id), codec) for name in NAMES]


def vectors_of(length: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=length).astype(np.float32) for _ in NAMES]


async def exchange(
    peers: Sequence[Peer], vectors: Sequence[np.ndarray], number: int, *, timeout_s: float = 5.0
) -> list[Exchanged]:
    members = [Member(key_of(name).peer_id, 1.0) for name in NAMES]
    reference = np.zeros_like(vectors[0])
    return await asyncio.gather(
        *(
            peer.exchanges.run(round_of(number), members, vector, reference, timeout_s=timeout_s)
            for peer, vector in zip(peers, vectors, strict=False)
        )
    )


@pytest.mark.parametrize("length", [1, 2, 1000, 200_000])
async def test_every_member_comes_to_the_mean_of_all(length: int) -> None:
    peers, vectors = peers_of(), vectors_of(length, 1)
    results = await exchange(peers, vectors, 1)
    for vector, result in zip(vectors, results, strict=True):
        assert result.averaged is not None
        assert np.allclose(result.averaged.mean, np.mean(vectors, axis=0), atol=1e-6)
        assert np.allclose(vector + result.averaged.delta, result.averaged.mean, atol=1e-6)
    assert [len(peer.calls) for peer in peers] == [2, 2, 2]


async def test_rounds_that_begin_together_share_their_calls() -> None:
    peers = peers_of()
    rounds = MAX_ROUNDS_PER_CALL + 3
    vectors = [vectors_of(50, seed) for seed in range(rounds)]
    results = await asyncio.gather(*(exchange(peers, vectors[number], number) for number in range(rounds)))
    for given, found in zip(vectors, results, strict=True):
        for result in found:
            assert result.averaged is not None
            assert np.allclose(result.averaged.mean, np.mean(given, axis=0), atol=1e-6)
    assert [len(peer.calls) for peer in peers] == [4, 4, 4]


async def test_a_member_that_begins_late_keeps_the_others_waiting_and_no_more() -> None:
    peers, vectors = peers_of(), vectors_of(20, 2)
    early = asyncio.create_task(exchange(peers[:2], vectors, 1))
    await asyncio.sleep(0.05)
    assert not early.done()
    members = [Member(key_of(name).peer_id, 1.0) for name in NAMES]
    last = await peers[2].exchanges.run(round_of(1), members, vectors[2], None, timeout_s=5.0)
    for result in [*await early, last]:
        assert result.averaged is not None
        assert np.allclose(result.averaged.mean, np.mean(vectors, axis=0), atol=1e-6)


async def test_a_member_that_never_begins_is_to_blame_at_all_others() -> None:
    peers, vectors = peers_of(), vectors_of(20, 3)
    results = await exchange(peers[:2], vectors, 1, timeout_s=1.0)
    assert results == [Exchanged(averaged=None, missing=frozenset({key_of("c").peer_id}))] * 2


async def test_a_member_that_is_gone_is_to_blame_at_once() -> None:
    peers, vectors = peers_of(), vectors_of(20, 4)
    await peers[2].transport.aclose()
    async with asyncio.timeout(2.0):
        results = await exchange(peers[:2], vectors, 1, timeout_s=30.0)
    assert results == [Exchanged(averaged=None, missing=frozenset({key_of("c").peer_id}))] * 2


async def test_a_reducer_that_gives_up_says_so_and_its_mean_is_nobodys() -> None:
    peers, vectors = peers_of(), vectors_of(20, 5)
    members = [Member(key_of(name).peer_id, 1.0) for name in NAMES]
    short = peers[0].exchanges.run(round_of(1), members, vectors[0], None, timeout_s=0.7)
    long = peers[1].exchanges.run(round_of(1), members, vectors[1], None, timeout_s=10.0)
    given_up, failed = await asyncio.gather(short, long)
    assert given_up == Exchanged(averaged=None, missing=frozenset({key_of("c").peer_id}))
    # It was told of the round's end there; that is nobody's silence.
    assert failed == Exchanged(averaged=None)


def parts(*tensors: np.ndarray) -> dict[str, np.ndarray]:
    return {f"part.{number}": tensor for number, tensor in enumerate(tensors)}


async def test_what_is_no_part_of_a_round_is_refused_and_ends_it_for_nobody() -> None:
    peers, vectors = peers_of(), vectors_of(30, 6)
    a = peers[0]
    running = asyncio.create_task(exchange(peers[:2], vectors, 1))
    await asyncio.sleep(0.01)
    message = RoundParts((round_of(1),))
    with pytest.raises(NotReady):
        await a.exchanges.answer(STRANGER, message, parts(np.zeros(10, np.float32)))
    for wrong in (np.zeros(9, np.float32), np.zeros(10, np.float64), np.zeros((2, 5), np.float32)):
        with pytest.raises(MalformedTensor):
            await a.exchanges.answer(key_of("c").peer_id, message, parts(wrong))
    with pytest.raises(MalformedMessage):
        await a.exchanges.answer(key_of("c").peer_id, message, {})
    members = [Member(key_of(name).peer_id, 1.0) for name in NAMES]
    last = await peers[2].exchanges.run(round_of(1), members, vectors[2], None, timeout_s=5.0)
    assert all(result.averaged is not None for result in [*await running, last])


async def test_a_part_is_taken_in_either_byte_order() -> None:
    peers, vectors = peers_of(), vectors_of(30, 8)
    message, swapped = RoundParts((round_of(1),)), vectors[2][:10].astype(np.dtype(np.float32).newbyteorder())
    early = asyncio.create_task(peers[0].exchanges.answer(key_of("c").peer_id, message, parts(swapped)))
    results = await exchange(peers, vectors, 1)
    assert np.allclose((await early).tensors["mean.0"], np.mean(vectors, axis=0)[:10], atol=1e-6)
    assert all(result.averaged is not None for result in results)


async def test_a_part_that_is_not_finite_spoils_the_round_and_not_the_replicas() -> None:
    peers, vectors = peers_of(), vectors_of(30, 7)
    vectors[2][5] = np.nan
    results = await exchange(peers, vectors, 1, timeout_s=1.0)
    assert [result.averaged for result in results] == [None, None, None]


async def test_parts_of_rounds_that_never_begin_are_remembered_up_to_a_bound() -> None:
    a = peers_of()[0]
    waiting = []
    for number in range(MAX_ROUNDS_AWAITED + 5):
        answer = a.exchanges.answer(STRANGER, RoundParts((round_of(number),)), parts(np.zeros(1, np.float32)))
        waiting.append(asyncio.create_task(answer))
    refused, kept = waiting[:5], waiting[5:]
    async with asyncio.timeout(5.0):
        failures = await asyncio.gather(*refused, return_exceptions=True)
    assert [type(failure) for failure in failures] == [NotReady] * 5
    assert not any(task.done() for task in kept)
    for task in kept:
        task.cancel()


class Post:
    """Takes what a gatherer sends."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    async def __call__(self, key: str, items: Sequence[int]) -> Sequence[int]:
        self.calls.append((key, list(items)))
        await asyncio.sleep(0)
        if key == "broken":
            raise PeerUnreachable(STRANGER)
        return [10 * item for item in items]


async def test_what_is_said_to_one_peer_at_a_time_goes_in_one_call() -> None:
    post = Post()
    gatherer = Gatherer(post, wait_s=0.0)
    answers = await asyncio.gather(gatherer.send("x", 1), gatherer.send("y", 2), gatherer.send("x", 3))
    assert answers == [10, 20, 30]
    assert post.calls == [("x", [1, 3]), ("y", [2])]
    assert await gatherer.send("x", 4) == 40
    assert post.calls[2:] == [("x", [4])]


async def test_more_than_fit_a_call_go_in_several() -> None:
    post = Post()
    gatherer = Gatherer(post, wait_s=0.0)
    many = range(2 * MAX_ROUNDS_PER_CALL + 1)
    assert await asyncio.gather(*(gatherer.send("x", item) for item in many)) == [10 * item for item in many]
    assert [len(items) for _, items in post.calls] == [MAX_ROUNDS_PER_CALL, MAX_ROUNDS_PER_CALL, 1]


async def test_a_call_that_fails_fails_for_all_that_was_in_it_and_for_nothing_else() -> None:
    gatherer = Gatherer(Post(), wait_s=0.0)
    sent = [gatherer.send("broken", 1), gatherer.send("broken", 2), gatherer.send("x", 3)]
    first, second, third = await asyncio.gather(*sent, return_exceptions=True)
    assert isinstance(first, PeerUnreachable)
    assert isinstance(second, PeerUnreachable)
    assert third == 30


async def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    post = Post()
    gatherer = Gatherer(post, wait_s=0.01)
    given_up = asyncio.create_task(gatherer.send("x", 1))
    kept = asyncio.create_task(gatherer.send("x", 2))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await kept == 20
    assert post.calls == [("x", [2])]
