"""Routed inference over several nodes is the same computation as at one place, and goes round what is silent."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import equations
import numpy as np
import pytest
from mesh_in_memory import (
    MESH,
    MemoryNode,
    announce_all,
    digits,
    memory_network,
    memory_node,
    memory_nodes,
    statistics_of,
    tiny_trunk,
)

from experts.architectures.base import probabilities
from experts.trunk.base import features_of
from meshnode.hosted import HostedExpert
from meshnode.inference import RoutedInference
from meshnode.transport.interface import FrameHandler
from protocol.errors import Busy, CallTimeout, MalformedTensor, NoRoute, NotReady, RowsUnanswered
from protocol.framing import Announced, Frame
from protocol.identifiers import Digest, PeerId
from protocol.messages import Ack, ExpertAnswer, Forward, ForwardReply, error_reply

IMAGES = digits("0", "1", "2", "3", test=True).images[:24]


def locally(client: MemoryNode, experts: Sequence[HostedExpert], *, top_k: int) -> list[tuple[list[float], float]]:
    """The mixture in plain loops, from the experts' modules themselves."""
    assert client.contributions.view is not None
    router = client.contributions.view.router
    features = features_of(tiny_trunk(), IMAGES)
    scores = router.scores(features).tolist()
    outputs = {expert.uid: probabilities(expert.module, features).tolist() for expert in experts}
    classes = sorted({name for expert in experts for name in expert.classes})
    rows = []
    for row, row_scores in enumerate(scores):
        gates = equations.gate_weights(
            dict(zip(router.classes, row_scores, strict=True)),
            {expert.uid: expert.classes for expert in experts},
            tau=MESH.spec.router.tau,
            top_k=top_k,
        )
        answers = {
            expert.uid: dict(zip(expert.classes, outputs[expert.uid][row], strict=True))
            for expert in experts
            if gates[expert.uid] > 0
        }
        rows.append(equations.mixture(gates, answers, classes, renormalise=False))
    return rows


@asynccontextmanager
async def mesh_of(
    folder: Path, hosted: Mapping[str, Sequence[Sequence[str]]]
) -> AsyncIterator[tuple[MemoryNode, dict[str, MemoryNode]]]:
    """A client that hosts nothing, and nodes that host these experts; everybody knows everybody."""
    async with memory_nodes(memory_network(), ["client", *hosted], folder) as (client, *others):
        nodes = dict(zip(hosted, others, strict=True))
        for name, experts in hosted.items():
            for classes in experts:
                await nodes[name].spawn(*classes)
        await client.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        await announce_all([client, *others])
        yield client, nodes


FIRST, SECOND = ("0", "1"), ("2", "3")


@pytest.mark.parametrize("top_k", [1, 2])
async def test_experts_on_two_machines_answer_like_the_same_computation_at_one_place(
    tmp_path: Path, top_k: int
) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [SECOND]}) as (client, nodes):
        experts = [expert for node in nodes.values() for expert in node.host.experts.values()]
        prediction = await client.inference.predict(IMAGES, timeout_s=20, top_k=top_k)
        expected = locally(client, experts, top_k=top_k)
        assert prediction.classes == ("0", "1", "2", "3")
        assert np.allclose(prediction.outputs_BC, [outputs for outputs, _ in expected], atol=1e-5)
        assert np.allclose(prediction.missing_mass_B, 0.0)
        assert prediction.predictions == tuple(prediction.classes[int(np.argmax(outputs))] for outputs, _ in expected)
        # One call an expert, each row asked of as many experts as wanted.
        assert {call.expert for call in prediction.calls} == {expert.uid for expert in experts}
        assert len(prediction.calls) == 2
        asked = sorted(row for call in prediction.calls for row in call.rows)
        assert asked == sorted(list(range(len(IMAGES))) * top_k)


async def test_the_meshs_own_setting_says_how_many_experts_are_asked(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [SECOND]}) as (client, _):
        prediction = await client.inference.predict(IMAGES, timeout_s=20)
        assert sum(len(call.rows) for call in prediction.calls) == len(IMAGES) * MESH.spec.router.top_k


async def test_calls_say_who_answered_which_rows_with_what_gate_weight(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [SECOND]}) as (client, nodes):
        prediction = await client.inference.predict(IMAGES, timeout_s=20, top_k=2)
        by_peer = {call.peer_id: call for call in prediction.calls}
        for name, node in nodes.items():
            call = by_peer[node.peer_id]
            assert (call.peer_name, call.error) == (name, None)
            assert call.expert in node.host.experts
        mass = np.zeros(len(IMAGES))
        for call in prediction.calls:
            mass[list(call.rows)] += call.gates
        assert np.allclose(mass, prediction.outputs_BC.sum(axis=1), atol=1e-5)


async def test_an_expert_of_this_process_is_asked_without_the_network(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (_, nodes):
        node = nodes["a"]
        await node.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        node.network.partition(frozenset())
        sent_bytes = node.transport.traffic.sent_bytes
        prediction = await node.inference.predict(IMAGES, timeout_s=20, top_k=2)
        assert node.transport.traffic.sent_bytes == sent_bytes
        assert {call.peer_id for call in prediction.calls} == {node.peer_id}
        expected = [outputs for outputs, _ in locally(node, list(node.host.experts.values()), top_k=2)]
        assert np.allclose(prediction.outputs_BC, expected, atol=1e-5)


async def refuse(sender: PeerId, request: Frame) -> Frame:
    raise NotReady("not today")


async def reject(sender: PeerId, request: Frame) -> Frame:
    raise MalformedTensor("features", "not to my taste")


async def answer_oddly(sender: PeerId, request: Frame) -> Frame:
    raise NoRoute()


async def mistake(sender: PeerId, request: Frame) -> Frame:
    return Frame(Ack())


def answering(probabilities_BC: np.ndarray, classes: tuple[str, ...] = FIRST) -> FrameHandler:
    async def answer(sender: PeerId, request: Frame) -> Frame:
        assert isinstance(request.message, Forward)
        answer = ExpertAnswer(generation=1, weights=Digest("0" * 64), classes=classes)
        return Frame(ForwardReply(answers=(answer,)), {"probabilities.0": probabilities_BC})

    return answer


async def without_a_tensor(sender: PeerId, request: Frame) -> Frame:
    reply = await answering(np.zeros((1, 2), np.float32))(sender, request)
    return Frame(reply.message)


async def answer_with_an_error(sender: PeerId, request: Frame) -> Frame:
    return Frame(ForwardReply(answers=(error_reply(NotReady("not today")),)))


async def answer_twice(sender: PeerId, request: Frame) -> Frame:
    reply = await answering(np.full((NUM_ROWS, 2), 0.5, np.float32))(sender, request)
    assert isinstance(reply.message, ForwardReply)
    return Frame(ForwardReply(answers=reply.message.answers * 2), reply.tensors)


NUM_ROWS = len(IMAGES)
FAILURES: dict[str, FrameHandler] = {
    "refuses": refuse,
    "rejects the request": reject,
    "answers with an error that is not its to give": answer_oddly,
    "answers with another message": mistake,
    "answers for other classes": answering(np.full((NUM_ROWS, 2), 0.5, np.float32), ("0", "9")),
    "answers other rows": answering(np.full((NUM_ROWS + 1, 2), 0.5, np.float32)),
    "answers without a tensor": without_a_tensor,
    "answers with an error in the expert's place": answer_with_an_error,
    "answers for more experts than were asked": answer_twice,
    "answers in another type": answering(np.full((NUM_ROWS, 2), 0.5, np.float64)),
    "answers NaN": answering(np.full((NUM_ROWS, 2), np.nan, np.float32)),
    "answers more than there is": answering(np.full((NUM_ROWS, 2), 1e6, np.float32)),
    "answers less than nothing": answering(np.tile(np.array([2.0, -1.0], np.float32), (NUM_ROWS, 1))),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_a_replica_that_fails_is_replaced_by_the_next(tmp_path: Path, failure: FrameHandler) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST]}) as (client, nodes):
        bad, good = nodes["a"], nodes["b"]
        bad.transport.serve(failure)
        client.inference.standings.failed(good.peer_id)  # so that the bad one comes first
        prediction = await client.inference.predict(IMAGES, timeout_s=20)
        assert [(call.peer_id, call.error is None) for call in prediction.calls] == [
            (bad.peer_id, False),
            (good.peer_id, True),
        ]
        expected = [outputs for outputs, _ in locally(client, list(good.host.experts.values()), top_k=1)]
        assert np.allclose(prediction.outputs_BC, expected, atol=1e-5)
        # It is tried last from now on.
        again = await client.inference.predict(IMAGES, timeout_s=20)
        assert [call.peer_id for call in again.calls] == [good.peer_id]


async def test_a_silent_replica_costs_a_part_of_the_deadline_and_no_answer(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST], "c": [FIRST]}) as (client, nodes):
        for name in "ab":
            nodes[name].go_silent()
        client.inference.standings.failed(nodes["c"].peer_id)
        began_s = time.monotonic()
        prediction = await client.inference.predict(IMAGES, timeout_s=1.0)
        assert time.monotonic() - began_s < 1.0
        *silent, answered = prediction.calls
        assert {call.peer_id for call in silent} == {nodes["a"].peer_id, nodes["b"].peer_id}
        assert all(call.error for call in silent)
        assert (answered.peer_id, answered.error) == (nodes["c"].peer_id, None)


async def test_a_replica_that_has_left_the_network_is_replaced_at_once(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST]}) as (client, nodes):
        await nodes["a"].transport.aclose()
        for _ in range(4):  # whichever comes first
            prediction = await client.inference.predict(IMAGES, timeout_s=20)
            assert prediction.calls[-1].peer_id == nodes["b"].peer_id


async def test_when_all_replicas_are_silent_the_error_names_rows_and_experts(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST], "c": [SECOND]}) as (client, nodes):
        for name in "ab":
            nodes[name].go_silent()
        began_s = time.monotonic()
        with pytest.raises(RowsUnanswered) as caught:
            await client.inference.predict(IMAGES, timeout_s=0.3)
        assert time.monotonic() - began_s < 2.0
        (uid,) = nodes["a"].host.experts
        answered = await client.inference.predict(IMAGES[[caught.value.rows[0]]], timeout_s=0.5, top_k=2)
        assert caught.value.experts == (uid,)
        features = features_of(tiny_trunk(), IMAGES)
        assert client.contributions.view is not None
        best = client.contributions.view.router.class_argmax(features)
        assert {best[row] for row in caught.value.rows} <= set(FIRST)
        assert 0 < len(caught.value.rows) < len(IMAGES)
        # With a second expert asked, the row has an answer, and what is missing is said.
        assert answered.missing_mass_B[0] > 0


async def test_the_gate_weight_of_a_silent_expert_is_missing_mass(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [SECOND]}) as (client, nodes):
        nodes["a"].transport.serve(refuse)
        prediction = await client.inference.predict(IMAGES, timeout_s=20, top_k=2)
        (failed,) = [call for call in prediction.calls if call.error]
        assert failed.peer_id == nodes["a"].peer_id
        assert np.allclose(prediction.missing_mass_B[list(failed.rows)], failed.gates, atol=1e-6)
        assert np.allclose(prediction.outputs_BC.sum(axis=1) + prediction.missing_mass_B, 1.0, atol=1e-5)
        assert not prediction.outputs_BC[:, :2].any()


async def test_peers_that_failed_lately_are_tried_last(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST]}) as (client, nodes):
        client.inference.standings.failed(nodes["a"].peer_id)
        for _ in range(4):
            prediction = await client.inference.predict(IMAGES, timeout_s=20)
            assert [call.peer_id for call in prediction.calls] == [nodes["b"].peer_id]


async def test_replicas_share_the_questions(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST]}) as (client, nodes):
        asked: set[str] = set()
        for _ in range(8):  # whom the first of a burst finds the faster is chance
            predictions = await asyncio.gather(*(client.inference.predict(IMAGES, timeout_s=20) for _ in range(8)))
            asked |= {call.peer_id for prediction in predictions for call in prediction.calls}
        assert asked == {node.peer_id for node in nodes.values()}


async def test_a_busy_peer_is_left_alone_for_as_long_as_it_asks_and_no_longer(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST], "b": [FIRST]}) as (client, nodes):
        busy, other = nodes["a"], nodes["b"]
        busy.transport.serve(busy.handlers, refuse_as_busy)
        for _ in range(3):
            prediction = await client.inference.predict(IMAGES, timeout_s=20)
            assert prediction.calls[-1].peer_id == other.peer_id
        assert client.inference.standings.banned(busy.peer_id)
        busy.transport.serve(busy.handlers, busy.handlers.admit)
        await asyncio.sleep(0.2)
        assert not client.inference.standings.banned(busy.peer_id)


def refuse_as_busy(sender: PeerId, announced: Announced, wait_s: float) -> None:
    raise Busy(retry_after_s=0.15)


async def test_the_experts_of_one_peer_are_asked_in_one_call_with_each_row_sent_once(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (client, nodes):
        asked: list[Frame] = []
        node = nodes["a"]

        async def listen(sender: PeerId, request: Frame) -> Frame:
            asked.append(request)
            return await node.handlers(sender, request)

        node.transport.serve(listen, node.handlers.admit)
        for top_k in (1, 2):
            prediction = await client.inference.predict(IMAGES, timeout_s=20, top_k=top_k)
            expected = [outputs for outputs, _ in locally(client, list(node.host.experts.values()), top_k=top_k)]
            assert np.allclose(prediction.outputs_BC, expected, atol=1e-5)
        for request in asked:
            assert isinstance(request.message, Forward)
            assert set(request.message.experts) == set(node.host.experts)
            assert request.tensors["features"].shape == (len(IMAGES), MESH.spec.feature_dim)
        assert len(asked) == 2


async def test_an_expert_with_another_replica_does_not_wait_for_one_without(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"both": [FIRST, SECOND], "b": [SECOND]}) as (client, nodes):
        nodes["both"].go_silent()
        client.inference.standings.failed(nodes["b"].peer_id)  # so that the silent one is asked first for both
        began_s = time.monotonic()
        prediction = await client.inference.predict(IMAGES, timeout_s=1.5, top_k=2)
        assert time.monotonic() - began_s < 2.5
        answered = {call.peer_name for call in prediction.calls if call.error is None}
        assert answered == {"b"}
        assert prediction.missing_mass_B.all()  # of the expert that nobody else has


async def test_the_last_replica_is_asked_again_when_it_has_time(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (client, nodes):
        node = nodes["a"]
        refusals = iter([0.05, 0.05])

        def busy_twice(sender: PeerId, announced: Announced, wait_s: float) -> None:
            if retry_after_s := next(refusals, None):
                raise Busy(retry_after_s)

        node.transport.serve(node.handlers, busy_twice)
        prediction = await client.inference.predict(IMAGES, timeout_s=20)
        assert not prediction.missing_mass_B.any()
        assert [call.error is None for call in prediction.calls][-1]
        assert not client.inference.standings.banned(node.peer_id)


async def test_an_expert_that_is_busy_among_others_is_no_failure_of_its_peer(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND], "b": [FIRST, SECOND]}) as (client, nodes):
        node = nodes["a"]

        async def first_is_busy(sender: PeerId, request: Frame) -> Frame:
            reply = await node.handlers(sender, request)
            assert isinstance(reply.message, ForwardReply)
            answers = (error_reply(Busy(0.01)), *reply.message.answers[1:])
            tensors = {name: tensor for name, tensor in reply.tensors.items() if name != "probabilities.0"}
            return Frame(ForwardReply(answers=answers), tensors)

        node.transport.serve(first_is_busy, node.handlers.admit)
        client.inference.standings.failed(nodes["b"].peer_id)
        prediction = await client.inference.predict(IMAGES, timeout_s=20, top_k=2)
        assert not prediction.missing_mass_B.any()
        await asyncio.sleep(0.02)
        assert not client.inference.standings.banned(node.peer_id)


async def test_a_deadline_that_nobody_can_keep_tells_nothing_of_the_peers(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (client, nodes):
        nodes["a"].go_silent()
        with pytest.raises(RowsUnanswered):
            await client.inference.predict(IMAGES, timeout_s=0.1)
        assert not client.inference.standings.banned(nodes["a"].peer_id)
        with pytest.raises(RowsUnanswered):
            await client.inference.predict(IMAGES, timeout_s=0.7)
        assert client.inference.standings.banned(nodes["a"].peer_id)


async def test_the_deadline_holds_where_this_process_itself_is_busy(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (client, _):
        gate = threading.Event()
        blocked = asyncio.create_task(client.compute.run(gate.wait))
        await asyncio.sleep(0)
        with pytest.raises(CallTimeout):
            await client.inference.predict(IMAGES, timeout_s=0.1)
        gate.set()
        await blocked


async def test_a_large_batch_is_computed_in_parts_between_which_others_have_their_turn(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (client, _):
        many = np.tile(IMAGES, (20, 1, 1))
        large = asyncio.create_task(client.inference.predict(many, timeout_s=20))
        await asyncio.sleep(0)
        small = await client.inference.predict(IMAGES, timeout_s=20)
        assert not large.done()
        assert (await large).predictions == small.predictions * 20


async def test_experts_that_fail_at_one_peer_are_asked_at_their_next_replicas_each(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"both": [FIRST, SECOND], "b": [FIRST], "c": [SECOND]}) as (client, nodes):
        nodes["both"].transport.serve(refuse)
        for name in "bc":
            client.inference.standings.failed(nodes[name].peer_id)  # so that the one that has both comes first
        prediction = await client.inference.predict(IMAGES, timeout_s=20, top_k=2)
        answered = {call.expert: call.peer_name for call in prediction.calls if call.error is None}
        uids = {classes: MESH.uid_of(classes, MESH.spec.expert) for classes in (FIRST, SECOND)}
        assert answered == {uids[FIRST]: "b", uids[SECOND]: "c"}
        assert np.allclose(prediction.missing_mass_B, 0.0)


async def test_without_a_router_or_any_expert_the_reason_is_named(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        with pytest.raises(NotReady):
            await a.inference.predict(IMAGES, timeout_s=1)
        with pytest.raises(NotReady):
            a.inference.router_argmax(IMAGES)
        await a.contribute("t", statistics_of("0", "1"))
        with pytest.raises(NoRoute):
            await a.inference.predict(IMAGES, timeout_s=1)


async def test_the_router_alone_classifies_real_digits(tmp_path: Path) -> None:
    async with memory_node(memory_network(), "a", tmp_path) as a:
        await a.contribute("t", statistics_of("0", "1", "2", "3", num_images=400))
        test = digits("0", "1", "2", "3", test=True)
        right = sum(
            guess == label for guess, label in zip(a.inference.router_argmax(test.images), test.labels, strict=True)
        )
        assert right > 0.8 * len(test)


async def test_a_client_that_hosts_nothing_asks_peers_for_everything(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, {"a": [FIRST, SECOND]}) as (client, nodes):
        inference = RoutedInference(
            MESH, lambda: client.contributions.view, client.directory, client.transport, client.compute
        )
        predictions = await asyncio.gather(*(inference.predict(IMAGES, timeout_s=20) for _ in range(3)))
        for prediction in predictions:
            assert {call.peer_id for call in prediction.calls} == {nodes["a"].peer_id}
            assert np.array_equal(prediction.outputs_BC, predictions[0].outputs_BC)
