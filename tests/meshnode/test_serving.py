"""What a node answers for its experts, what it refuses by the header alone, and batches of many questions at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from mesh_in_memory import (
    MESH,
    MemoryNode,
    announce_all,
    digits,
    key_of,
    memory_network,
    memory_node,
    memory_nodes,
    statistics_of,
)

from experts.architectures.base import probabilities
from meshnode.inference.asking import forward_request
from meshnode.inference.thin import ThinInference
from meshnode.serving import Serving
from protocol import limits
from protocol.errors import Busy, Draining, FrameTooLarge, MalformedTensor, NotReady, UnknownExpert
from protocol.framing import Announced, Frame, decode_header, encode_frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.messages import Ack, ErrorReply, ExpertAnswer, Forward, ForwardReply, Infer, InferReply
from protocol.tensors import TensorHeader

PEER = key_of("peer").peer_id
ABSENT = ExpertUid(digest_of(b"expert"))
DIM = MESH.spec.feature_dim


def features_of_rows(number: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, DIM)).astype(np.float32)


def announced(frame: Frame) -> Announced:
    return decode_header(encode_frame(frame).header)


@asynccontextmanager
async def serving_node(folder: Path) -> AsyncIterator[tuple[MemoryNode, ExpertUid, ExpertUid]]:
    async with memory_node(memory_network(), "a", folder) as node:
        yield node, (await node.spawn("0", "1")).uid, (await node.spawn("2", "3", "4")).uid


async def asked(node: MemoryNode, request: Frame) -> ForwardReply:
    node.handlers.admit(PEER, announced(request), 5.0)
    reply = await node.handlers(PEER, request)
    assert isinstance(reply.message, ForwardReply)
    for number, answer in enumerate(reply.message.answers):
        assert (f"probabilities.{number}" in reply.tensors) == isinstance(answer, ExpertAnswer)
    return reply.message


async def test_an_expert_is_asked_about_all_rows_and_answers_with_its_generation(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        features = features_of_rows(5)
        reply = await node.handlers(PEER, Frame(Forward(experts=(uid,)), {"features": features}))
        assert isinstance(reply.message, ForwardReply)
        expert = node.host.get(uid)
        assert reply.message.answers == (ExpertAnswer(1, expert.weights, ("0", "1")),)
        expected = probabilities(expert.module, torch.from_numpy(features)).numpy()
        assert np.array_equal(reply.tensors["probabilities.0"], expected)


async def test_several_experts_are_asked_about_rows_of_their_own(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, first, second):
        features = features_of_rows(6)
        rows = {first: np.array([0, 2, 5]), second: np.array([2, 3])}
        reply = await node.handlers(PEER, forward_request(rows, features))
        for number, (uid, mine) in enumerate(rows.items()):
            expected = probabilities(node.host.get(uid).module, torch.from_numpy(features[mine])).numpy()
            assert np.allclose(reply.tensors[f"probabilities.{number}"], expected, atol=1e-6)


async def test_an_expert_that_is_not_here_has_its_error_in_its_place(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        message = await asked(node, Frame(Forward(experts=(ABSENT, uid)), {"features": features_of_rows(2)}))
        unknown, answered = message.answers
        assert isinstance(unknown, ErrorReply)
        assert unknown.code == "unknown_expert"
        assert isinstance(answered, ExpertAnswer)


BAD_TENSORS = {
    "none": {},
    "other name": {"images": features_of_rows(2)},
    "one more": {"features": features_of_rows(2), "more": features_of_rows(2)},
    "other type": {"features": features_of_rows(2).astype(np.float64)},
    "no batch": {"features": features_of_rows(2)[0]},
    "other width": {"features": features_of_rows(2)[:, 1:]},
    "rows that are not announced": {"features": features_of_rows(2), "rows": np.zeros(2, np.int32)},
}


@pytest.mark.parametrize("tensors", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
async def test_features_that_no_expert_reads_are_refused_by_the_header(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        with pytest.raises(MalformedTensor):
            node.handlers.admit(PEER, announced(Frame(Forward(experts=(uid,)), tensors)), 5.0)


@pytest.mark.parametrize("rows", [np.zeros(3, np.int32), np.zeros(2, np.int64), np.zeros((2, 1), np.int32)])
async def test_rows_that_contradict_their_numbers_are_refused_by_the_header(tmp_path: Path, rows: np.ndarray) -> None:
    async with serving_node(tmp_path) as (node, first, second):
        message = Forward(experts=(first, second), num_rows=(1, 1))
        with pytest.raises(MalformedTensor):
            node.handlers.admit(PEER, announced(Frame(message, {"features": features_of_rows(2), "rows": rows})), 5.0)


@pytest.mark.parametrize("rows", [[0, 2], [-1, 0]])
async def test_rows_that_there_are_not_are_refused(tmp_path: Path, rows: list[int]) -> None:
    async with serving_node(tmp_path) as (node, first, second):
        message = Forward(experts=(first, second), num_rows=(1, 1))
        tensors = {"features": features_of_rows(2), "rows": np.array(rows, np.int32)}
        with pytest.raises(MalformedTensor):
            await node.handlers(PEER, Frame(message, tensors))


async def test_a_row_cannot_be_asked_for_again_and_again(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        message = Forward(experts=(uid,), num_rows=(3,))
        tensors = {"features": features_of_rows(2), "rows": np.array([0, 1, 1], np.int32)}
        with pytest.raises(MalformedTensor):
            await node.handlers(PEER, Frame(message, tensors))


async def test_what_would_become_larger_than_a_frame_is_refused_by_the_header(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, first, second):
        # Few bytes of row numbers, each of which stands for a whole row of features.
        num_rows = limits.MAX_FRAME_BYTES // (4 * DIM) + 1
        message = Forward(experts=(first, second), num_rows=(num_rows - 1, 1))
        headers = (TensorHeader("features", "float32", (1, DIM)), TensorHeader("rows", "int32", (num_rows,)))
        with pytest.raises(FrameTooLarge):
            node.handlers.admit(PEER, Announced(message, headers), 5.0)
        # Each row is asked of both: together they would read more than a frame.
        half = limits.MAX_FRAME_BYTES // (4 * DIM) // 2
        for number, is_refused in ((half, False), (half + 1, True)):
            both = Announced(Forward(experts=(first, second)), (TensorHeader("features", "float32", (number, DIM)),))
            with pytest.raises(FrameTooLarge) if is_refused else nullcontext():
                node.handlers.admit(PEER, both, 5.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_features_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        features = np.full((2, DIM), value, np.float32)
        with pytest.raises(MalformedTensor):
            await node.handlers(PEER, Frame(Forward(experts=(uid,)), {"features": features}))


async def test_where_no_expert_is_here_nothing_is_waited_for(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, *_):
        with pytest.raises(UnknownExpert):
            node.handlers.admit(
                PEER, announced(Frame(Forward(experts=(ABSENT,)), {"features": features_of_rows(2)})), 5.0
            )


async def test_a_question_whose_answer_would_come_too_late_is_refused_with_the_time_to_come_back(
    tmp_path: Path,
) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        gate = Event()
        question = announced(Frame(Forward(experts=(uid,)), {"features": features_of_rows(2)}))
        # The pace is learned from what is computed: here a tenth of a second.
        for _ in range(30):
            await node.compute.run(Event().wait, 0.02)
        waiting = [asyncio.create_task(node.compute.run(gate.wait)) for _ in range(10)]
        await asyncio.sleep(0)
        node.handlers.admit(PEER, question, 5.0)
        with pytest.raises(Busy) as caught:
            node.handlers.admit(PEER, question, 0.05)
        assert 0.01 <= caught.value.retry_after_s <= 1.0
        gate.set()
        await asyncio.gather(*waiting)
        node.handlers.admit(PEER, question, 0.05)


async def test_a_draining_node_lets_nothing_in(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        node.handlers.drain()
        for message, tensors in ((Forward(experts=(uid,)), {"features": features_of_rows(1)}), (Infer(None, 5.0), {})):
            with pytest.raises(Draining):
                node.handlers.admit(PEER, announced(Frame(message, tensors)), 5.0)


# --- batches ---


async def test_questions_of_many_peers_are_computed_together_and_answered_each_as_if_alone(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, first, second):
        sizes: list[int] = []
        for uid in (first, second):
            node.host.get(uid).module.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
        questions = [(uid, features_of_rows(1 + seed % 3, seed)) for seed in range(20) for uid in (first, second)]
        alone = [
            probabilities(node.host.get(uid).module, torch.from_numpy(features)).numpy() for uid, features in questions
        ]
        sizes.clear()
        gate = Event()
        blocked = asyncio.create_task(node.compute.run(gate.wait))
        answers = [asyncio.create_task(node.host.answer(uid, features)) for uid, features in questions]
        await asyncio.sleep(0)
        gate.set()
        for expected, answer in zip(alone, await asyncio.gather(*answers), strict=True):
            assert np.allclose(answer.probabilities, expected, atol=1e-6)
        await blocked
        assert sum(sizes) == sum(len(features) for _, features in questions)
        assert len(sizes) == 2


async def test_a_new_generation_takes_over_without_a_failed_question(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        features = features_of_rows(3)
        outputs: dict[int, np.ndarray] = {}
        answers = []
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                answers.append(await node.host.answer(uid, features))

        askers = [asyncio.create_task(keep_asking()) for _ in range(8)]
        for seed in range(5):
            outputs[node.host.get(uid).generation] = probabilities(
                node.host.get(uid).module, torch.from_numpy(features)
            ).numpy()
            await node.learn(uid, seed=seed)
        stop.set()
        await asyncio.gather(*askers)
        assert len({answer.generation for answer in answers}) >= 3
        for answer in answers:
            if answer.generation in outputs:  # an answer says which weights it is of
                assert np.allclose(answer.probabilities, outputs[answer.generation], atol=1e-6)


async def test_a_question_whose_caller_has_gone_is_not_computed(tmp_path: Path) -> None:
    async with serving_node(tmp_path) as (node, uid, _):
        sizes: list[int] = []
        node.host.get(uid).module.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
        gate = Event()
        blocked = asyncio.create_task(node.compute.run(gate.wait))
        gone = asyncio.create_task(node.host.answer(uid, features_of_rows(7)))
        stays = asyncio.create_task(node.host.answer(uid, features_of_rows(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(blocked, stays)
        assert sizes == [2]


# --- thin clients ---


async def test_more_images_than_a_node_routes_at_once_are_refused_by_the_header(tmp_path: Path) -> None:
    async with routed(tmp_path) as (front, _):
        for number, is_refused in ((limits.MAX_IMAGES_PER_CALL, False), (limits.MAX_IMAGES_PER_CALL + 1, True)):
            request = Announced(Infer(None, 5.0), (TensorHeader("images", "uint8", (number, 1, 1)),))
            with pytest.raises(MalformedTensor) if is_refused else nullcontext():
                front.handlers.admit(PEER, request, 5.0)


async def test_what_a_replica_says_in_its_failure_does_not_spoil_a_thin_clients_answer(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), ["front", "rude", "back"], tmp_path) as (front, rude, back):
        for node in (rude, back):
            await node.spawn("0", "1", "2", "3")
        await front.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        await announce_all([front, rude, back])

        async def be_rude(sender: PeerId, request: Frame) -> Frame:
            raise NotReady("x" * limits.MAX_ERROR_TEXT_CHARS)

        rude.transport.serve(be_rude)
        front.inference.standings.failed(back.peer_id)
        prediction = await ThinInference(front.network.join(PEER), [front.peer_id]).predict(IMAGES, timeout_s=20)
        assert [(call.peer_name, call.error is None) for call in prediction.calls] == [("rude", False), ("back", True)]


BAD_REPLIES = {
    "no prediction": Frame(Ack()),
    "no tensors": Frame(InferReply(classes=("0",), calls=())),
    "less than nothing": Frame(
        InferReply(classes=("0",), calls=()),
        {
            "outputs": np.full((12, 1), -1, np.float32),
            "missing_mass": np.zeros(12, np.float32),
            "rows": np.zeros(0, np.int32),
            "gates": np.zeros(0, np.float32),
        },
    ),
}


@pytest.mark.parametrize("reply", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
async def test_a_node_whose_answer_cannot_be_read_is_followed_by_the_next(tmp_path: Path, reply: Frame) -> None:
    async with routed(tmp_path) as (front, _):
        bad = front.network.join(key_of("bad").peer_id)

        async def answer_badly(sender: PeerId, request: Frame) -> Frame:
            return reply

        bad.serve(answer_badly)
        thin = ThinInference(front.network.join(PEER), [bad.peer_id, front.peer_id])
        for _ in range(2):
            assert len((await thin.predict(IMAGES, timeout_s=20)).predictions) == len(IMAGES)
        with pytest.raises(NotReady):
            await ThinInference(front.network.join(PEER), [bad.peer_id]).predict(IMAGES, timeout_s=20)


IMAGES = digits("0", "1", "2", "3", test=True).images[:12]


@asynccontextmanager
async def routed(folder: Path) -> AsyncIterator[tuple[MemoryNode, MemoryNode]]:
    """A node that has nothing but the router, and one that hosts the experts."""
    async with memory_nodes(memory_network(), ["front", "back"], folder) as (front, back):
        await back.spawn("0", "1")
        await back.spawn("2", "3")
        await front.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        await announce_all([front, back])
        yield front, back


async def test_a_node_routes_whole_images_for_a_client_that_has_neither_trunk_nor_router(tmp_path: Path) -> None:
    async with routed(tmp_path) as (front, _):
        thin = ThinInference(front.network.join(PEER), [front.peer_id])
        prediction = await thin.predict(IMAGES, timeout_s=20, top_k=2)
        expected = await front.inference.predict(IMAGES, timeout_s=20, top_k=2)
        assert prediction.classes == expected.classes
        assert np.allclose(prediction.outputs_BC, expected.outputs_BC, atol=1e-6)
        assert np.array_equal(prediction.missing_mass_B, expected.missing_mass_B)
        assert prediction.predictions == expected.predictions
        told = {(call.expert, call.peer_id, call.peer_name, call.rows, call.error) for call in prediction.calls}
        assert told == {(call.expert, call.peer_id, call.peer_name, call.rows, call.error) for call in expected.calls}
        gates = {call.expert: call.gates for call in expected.calls}
        assert all(np.allclose(call.gates, gates[call.expert], atol=1e-6) for call in prediction.calls)


async def test_experts_of_the_node_that_is_asked_go_by_its_name(tmp_path: Path) -> None:
    async with routed(tmp_path) as (_, back):
        await back.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        thin = ThinInference(back.network.join(PEER), [back.peer_id])
        prediction = await thin.predict(IMAGES, timeout_s=20)
        assert {call.peer_name for call in prediction.calls} == {"back"}


async def test_a_thin_client_goes_on_to_the_next_node(tmp_path: Path) -> None:
    async with routed(tmp_path) as (front, back):  # back has no router
        gone = key_of("gone").peer_id
        thin = ThinInference(front.network.join(PEER), [gone, back.peer_id, front.peer_id])
        prediction = await thin.predict(IMAGES, timeout_s=20)
        assert len(prediction.predictions) == len(IMAGES)
        with pytest.raises(NotReady):
            await ThinInference(front.network.join(PEER), [gone, back.peer_id]).predict(IMAGES, timeout_s=20)


async def test_a_silent_replica_leaves_a_thin_client_time_for_the_next(tmp_path: Path) -> None:
    async with memory_nodes(memory_network(), ["front", "silent", "back"], tmp_path) as (front, silent, back):
        for node in (silent, back):
            await node.spawn("0", "1", "2", "3")
        await front.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        await announce_all([front, silent, back])
        silent.go_silent()
        front.inference.standings.failed(back.peer_id)  # so that the silent one is asked first
        thin = ThinInference(front.network.join(PEER), [front.peer_id])
        prediction = await thin.predict(IMAGES, timeout_s=2.0)
        assert [(call.peer_name, call.error is None) for call in prediction.calls] == [
            ("silent", False),
            ("back", True),
        ]


async def test_a_node_whose_settings_say_so_routes_nothing_for_others(tmp_path: Path) -> None:
    async with routed(tmp_path) as (front, _):
        front.handlers.attach(MESH, Serving(DIM, front.host, None, front.compute), front.averager)
        with pytest.raises(NotReady):
            await ThinInference(front.network.join(PEER), [front.peer_id]).predict(IMAGES, timeout_s=20)


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32), IMAGES[0, 0]], ids=["type", "dimensions"])
async def test_images_that_are_none_are_refused_by_the_header(tmp_path: Path, images: np.ndarray) -> None:
    async with routed(tmp_path) as (front, _):
        thin = ThinInference(front.network.join(PEER), [front.peer_id])
        with pytest.raises(MalformedTensor):
            await thin.predict(images, timeout_s=20)
