"""What a node answers its peers, and what it says when it cannot."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import MESH, key_of, memory_network, memory_node, mesh_blobs

from meshnode.handlers import Handlers
from meshnode.pacing import AHEAD_S, Pacer
from meshnode.state.blobs import BlobStore
from protocol.errors import (
    Busy,
    Draining,
    MalformedTensor,
    MeshMismatch,
    NotReady,
    UnknownBlob,
    UnknownExpert,
    UnknownMethod,
)
from protocol.framing import Announced, Frame, decode_header, encode_frame
from protocol.identifiers import ExpertUid, MeshId, digest_of
from protocol.limits import BLOB_CHUNK_BYTES
from protocol.messages import (
    Ack,
    BlobGet,
    BlobPart,
    Forward,
    ForwardReply,
    Hello,
    HelloReply,
    Message,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundParts,
    RoundTalk,
    RoundTalkReply,
)

PEER = key_of("peer").peer_id
UID = ExpertUid(digest_of(b"expert"))
DIM = MESH.spec.feature_dim
FEATURES = np.zeros((2, DIM), np.float32)
QUESTION = Frame(Forward(experts=(UID,)), {"features": FEATURES})


def announced(frame: Frame) -> Announced:
    return decode_header(encode_frame(frame).header)


def meshless(tmp_path: Path) -> Handlers:
    return Handlers(BlobStore(tmp_path), key_of("alone").peer_id, "alone", lambda: 12.5)


async def test_a_node_without_a_mesh_greets_and_says_what_it_cannot_do_yet(tmp_path: Path) -> None:
    handlers = meshless(tmp_path)
    for wanted in (None, MESH.mesh_id):
        reply = (await handlers(PEER, Frame(Hello(mesh_id=wanted)))).message
        assert isinstance(reply, HelloReply)
        assert (reply.mesh_id, reply.mesh_name, reply.peer_name, reply.now_s) == (None, None, "alone", 12.5)
    with pytest.raises(NotReady):
        await handlers(PEER, QUESTION)
    with pytest.raises(NotReady):
        handlers.admit(PEER, announced(QUESTION), 5.0)
    with pytest.raises(NotReady):
        await handlers(PEER, Frame(RoundTalk((RoundOutcomeQuery(round=RoundId(UID, 1, 0)),))))


async def test_what_the_settings_switch_off_is_not_answered(tmp_path: Path) -> None:
    handlers = meshless(tmp_path)
    handlers.attach(MESH, None, None)
    reply = (await handlers(PEER, Frame(Hello(mesh_id=None)))).message
    assert isinstance(reply, HelloReply)
    assert (reply.mesh_id, reply.mesh_name) == (MESH.mesh_id, "digits")
    with pytest.raises(NotReady):
        handlers.admit(PEER, announced(QUESTION), 5.0)


async def test_a_peer_of_another_mesh_is_told_which_one_this_is(tmp_path: Path) -> None:
    handlers = meshless(tmp_path)
    handlers.attach(MESH, None, None)
    other = MeshId(digest_of(b"another"))
    with pytest.raises(MeshMismatch) as caught:
        await handlers(PEER, Frame(Hello(mesh_id=other)))
    assert (caught.value.expected, caught.value.got) == (MESH.mesh_id, other)


@pytest.mark.parametrize("message", [Ack(), BlobPart(digest=digest_of(b""), offset=0, total_bytes=0)])
async def test_what_is_no_request_is_refused(tmp_path: Path, message: Message) -> None:
    with pytest.raises(UnknownMethod) as caught:
        await meshless(tmp_path)(PEER, Frame(message))
    assert caught.value.method == type(message).__name__


async def test_tensors_that_nobody_asks_for_are_refused_before_they_come(tmp_path: Path) -> None:
    with pytest.raises(MalformedTensor):
        meshless(tmp_path).admit(PEER, announced(Frame(Hello(mesh_id=None), {"features": FEATURES})), 5.0)
    meshless(tmp_path).admit(PEER, announced(Frame(Hello(mesh_id=None))), 5.0)


async def test_a_part_of_a_blob_is_what_was_asked_for_and_no_more(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.put(bytes(range(100)))
    handlers = Handlers(store, key_of("a").peer_id, "a", lambda: 0.0)
    for offset, length, expected in ((0, 10, range(10)), (95, 10, range(95, 100)), (100, 10, range(0))):
        reply = await handlers(PEER, Frame(BlobGet(digest=digest, offset=offset, length=length)))
        assert reply.message == BlobPart(digest=digest, offset=offset, total_bytes=100)
        assert reply.tensors["data"].tolist() == list(expected)
    with pytest.raises(UnknownBlob):
        await handlers(PEER, Frame(BlobGet(digest=digest_of(b"absent"), offset=0, length=1)))


async def test_blobs_keep_to_the_pace_in_parts_that_their_callers_can_wait_for(tmp_path: Path) -> None:
    store, slept = BlobStore(tmp_path), []

    async def sleep(span_s: float) -> None:
        slept.append(span_s)

    digest = store.put(bytes(BLOB_CHUNK_BYTES))
    pacer = Pacer(100_000, now_s=lambda: 7.0, sleep=sleep)  # its clock stands still: all that is taken stays to be sent
    handlers = Handlers(store, key_of("a").peer_id, "a", lambda: 0.0, pacer)
    question = Frame(BlobGet(digest=digest, offset=0, length=BLOB_CHUNK_BYTES))
    part = await handlers(PEER, question)
    assert part.tensors["data"].size == 100_000  # what goes in a second
    assert slept == [pytest.approx(1.0 - AHEAD_S)]
    await handlers(PEER, question)
    with pytest.raises(Busy) as caught:
        await handlers(PEER, question)
    assert caught.value.retry_after_s == pytest.approx(2.0 - AHEAD_S)
    with pytest.raises(UnknownBlob):
        await handlers(PEER, Frame(BlobGet(digest=digest_of(b"absent"), offset=0, length=1)))
    assert isinstance((await handlers(PEER, Frame(Hello(mesh_id=None)))).message, HelloReply)


async def test_a_draining_node_takes_no_new_work_and_still_gives_what_it_has(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        question = Frame(Forward(experts=(uid,)), {"features": FEATURES})
        a.handlers.admit(PEER, announced(question), 5.0)
        a.handlers.drain()
        with pytest.raises(Draining):
            a.handlers.admit(PEER, announced(question), 5.0)
        # What was let in before is answered.
        under_way = asyncio.create_task(a.handlers(PEER, question))
        assert isinstance((await under_way).message, ForwardReply)
        assert isinstance((await a.handlers(PEER, Frame(Hello(mesh_id=None)))).message, HelloReply)
        digest = digest_of(mesh_blobs()[0])
        assert (await a.handlers(PEER, Frame(BlobGet(digest=digest, offset=0, length=9)))).tensors["data"].size == 9


async def test_messages_about_rounds_reach_the_averager(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        round_id = RoundId(UID, 3, 0)
        words = RoundTalk((RoundAttestation(round=round_id, full=True), RoundOutcomeQuery(round=round_id)))
        unknown = RoundOutcome(round=round_id, outcome="unknown")
        assert (await a.handlers(PEER, Frame(words))).message == RoundTalkReply((unknown, unknown))


async def test_a_node_that_hands_over_takes_part_in_no_round_and_answers_all_else(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        uid = (await a.spawn("0", "1")).uid
        a.handlers.leave_rounds()
        with pytest.raises(NotReady):
            await a.handlers(PEER, Frame(RoundTalk((RoundOutcomeQuery(round=RoundId(uid, 3, 0)),))))
        question = Frame(Forward(experts=(uid,)), {"features": FEATURES})
        a.handlers.admit(PEER, announced(question), 5.0)
        assert isinstance((await a.handlers(PEER, question)).message, ForwardReply)


async def test_parts_are_let_in_by_their_header(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        expert = await a.spawn("0", "1")
        message = RoundParts((RoundId(expert.uid, 3, 0),))
        fits = np.zeros(expert.num_parameters, np.float32)
        a.handlers.admit(PEER, announced(Frame(message, {"part.0": fits})), 5.0)
        with pytest.raises(MalformedTensor):
            a.handlers.admit(PEER, announced(Frame(message, {"part.0": np.append(fits, 0)})), 5.0)
        with pytest.raises(UnknownExpert):
            a.handlers.admit(PEER, announced(Frame(RoundParts((RoundId(UID, 3, 0),)), {"part.0": fits})), 5.0)
