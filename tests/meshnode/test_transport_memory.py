"""The network in one process keeps the promises of the seam, so that what passes over it would pass over libp2p."""

import asyncio
import random

import numpy as np
import pytest
from mesh_in_memory import key_of, memory_network

from meshnode.transport.memory import MemoryNetwork, MemoryTransport
from protocol.errors import Busy, CallTimeout, MalformedAddress, NotReady, PeerUnreachable, UnknownExpert
from protocol.framing import Announced, Frame, encode_frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.messages import Ack, Forward, Hello

A, B, C = (key_of(name).peer_id for name in "abc")
HELLO = Frame(Hello(mesh_id=None))


async def echo(sender: PeerId, request: Frame) -> Frame:
    return Frame(Ack(), {**request.tensors, "sender": np.frombuffer(sender.encode(), np.uint8)})


def joined(network: MemoryNetwork, *peers: PeerId) -> list[MemoryTransport]:
    transports = [network.join(peer) for peer in peers]
    for transport in transports:
        transport.serve(echo)
    return transports


async def test_a_call_brings_tensors_there_and_back_and_tells_who_called() -> None:
    a, _ = joined(memory_network(), A, B)
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    request = Frame(Forward(experts=(ExpertUid(digest_of(b"e")),)), {"features": features})
    reply = await a.call(B, request, timeout_s=5)
    assert isinstance(reply.message, Ack)
    assert np.array_equal(reply.tensors["features"], features)
    assert reply.tensors["sender"].tobytes().decode() == A
    reply.tensors["features"][:] = 0  # the receiver's own
    assert features[1, 2] == 5


async def test_what_one_node_has_sent_the_other_has_received_as_the_kind_that_was_asked_for() -> None:
    a, b = joined(memory_network(), A, B)
    request = Frame(Forward(experts=(ExpertUid(digest_of(b"e")),)), {"features": np.ones((2, 3), np.float32)})
    await a.call(B, request, timeout_s=5)
    await a.call(B, HELLO, timeout_s=5)
    assert dict(a.traffic.sent) == dict(b.traffic.received)
    assert dict(a.traffic.received) == dict(b.traffic.sent)
    assert a.traffic.sent == {
        "inference": encode_frame(request).num_bytes,
        "control": encode_frame(HELLO).num_bytes,
    }
    assert a.traffic.received.keys() == a.traffic.sent.keys()


async def test_what_is_not_let_in_is_refused_by_its_header_and_never_handled() -> None:
    a, b = joined(memory_network(), A, B)
    told = []

    def admit(sender: PeerId, announced: Announced, wait_s: float) -> None:
        told.append((sender, announced.message, announced.body_bytes, wait_s))
        if announced.tensors:
            raise Busy(0.25)

    async def handler(sender: PeerId, request: Frame) -> Frame:
        assert not request.tensors
        return await echo(sender, request)

    b.serve(handler, admit)
    await a.call(B, HELLO, timeout_s=5)
    with pytest.raises(Busy) as caught:
        await a.call(B, Frame(HELLO.message, {"x": np.ones(3, np.uint8)}), timeout_s=1.5)
    assert caught.value.retry_after_s == 0.25
    assert told == [(A, HELLO.message, 0, 5), (A, HELLO.message, 3, 1.5)]


async def test_a_handler_is_cancelled_at_its_callers_deadline() -> None:
    a, b = joined(memory_network(), A, B)
    cancelled = asyncio.Event()

    async def never(sender: PeerId, request: Frame) -> Frame:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError("unreachable")

    b.serve(never)
    with pytest.raises(CallTimeout):
        await a.call(B, HELLO, timeout_s=0.02)
    assert cancelled.is_set()


async def test_a_named_error_of_the_peer_is_raised_at_the_caller_with_its_data() -> None:
    a, b = joined(memory_network(), A, B)
    uid = ExpertUid(digest_of(b"gone"))

    async def refuse(sender: PeerId, request: Frame) -> Frame:
        raise UnknownExpert(uid)

    b.serve(refuse)
    with pytest.raises(UnknownExpert) as caught:
        await a.call(B, HELLO, timeout_s=5)
    assert caught.value.uid == uid


async def test_a_peer_that_does_not_serve_yet_says_so() -> None:
    network = memory_network()
    a = network.join(A)
    network.join(B)
    with pytest.raises(NotReady):
        await a.call(B, HELLO, timeout_s=5)


async def test_a_lost_message_costs_the_caller_its_deadline_and_no_more() -> None:
    a, _ = joined(MemoryNetwork(random.Random(0), loss_ratio=1.0), A, B)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(CallTimeout) as caught:
        await a.call(B, HELLO, timeout_s=0.05)
    assert 0.04 <= asyncio.get_running_loop().time() - began_s < 1.0
    assert (caught.value.peer_id, caught.value.method) == (B, "Hello")


async def test_a_call_takes_the_delay_of_both_ways() -> None:
    a, _ = joined(memory_network(delay_s=0.02), A, B)
    began_s = asyncio.get_running_loop().time()
    await a.call(B, HELLO, timeout_s=5)
    assert asyncio.get_running_loop().time() - began_s >= 0.039


async def test_only_peers_of_one_island_reach_each_other_until_the_network_heals() -> None:
    network = memory_network()
    a, b, _ = joined(network, A, B, C)
    network.partition(frozenset({A, B}))
    await a.call(B, HELLO, timeout_s=5)
    for far, near in ((C, a), (C, b)):
        with pytest.raises(PeerUnreachable):
            await near.call(far, HELLO, timeout_s=5)
        assert not await near.ping(far)
    assert await a.connected_peers() == (B,)
    network.partition()
    await a.call(C, HELLO, timeout_s=5)
    assert set(await a.connected_peers()) == {B, C}


async def test_who_leaves_is_unreachable_even_to_a_call_under_way() -> None:
    network = memory_network(delay_s=0.01)
    a, b = joined(network, A, B)
    call = asyncio.create_task(a.call(B, HELLO, timeout_s=5))
    await asyncio.sleep(0)
    await b.aclose()
    await b.aclose()
    with pytest.raises(PeerUnreachable):
        await call
    with pytest.raises(PeerUnreachable):
        await a.call(B, HELLO, timeout_s=5)


async def test_connecting_needs_a_peer_and_an_address_that_can_be_read() -> None:
    network = memory_network()
    a, b = joined(network, A, B)
    assert await a.connect(b.addresses[0]) == B
    with pytest.raises(PeerUnreachable):
        await a.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{C}")
    with pytest.raises(MalformedAddress):
        await a.connect("localhost:1")


async def test_records_live_until_they_expire_and_only_a_later_expiry_replaces_one() -> None:
    network = memory_network()
    a, b = joined(network, A, B)
    now_s = network.now_s
    assert await a.publish("key", A, b"first", expires_at=now_s + 10)
    assert not await a.publish("key", A, b"older", expires_at=now_s + 10)
    assert not await a.publish("key", B, b"expired", expires_at=now_s)
    assert await b.publish("key", B, b"other", expires_at=now_s + 20)
    assert await b.lookup("key") == {A: b"first", B: b"other"}
    assert await b.lookup("elsewhere") == {}
    network.now_s += 10
    assert await a.lookup("key") == {B: b"other"}
