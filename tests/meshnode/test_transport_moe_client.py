"""Experts on hivemind's servers, called: their answers are what was described, or the failure is a named one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from hivemind.proto import runtime_pb2
from moe_network import (
    BACKWARD,
    FORWARD,
    INFO,
    LARGE,
    REMOTE,
    WEIGHT,
    Answers,
    D,
    FakeP2P,
    W,
    answered_by,
    batch,
    described,
)

from meshnode.transport.interface import Traffic
from meshnode.transport.moe import client as client_module
from meshnode.transport.moe.client import ForeignServers
from meshnode.transport.moe.interface import ExpertInfo
from meshnode.transport.moe.streams import read_message, write_message
from meshnode.transport.moe.tensors import pack_tensor
from protocol.errors import (
    CallTimeout,
    FrameTooLarge,
    MalformedMessage,
    MalformedTensor,
    PeerUnreachable,
    RemoteFailure,
)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def p2p(answers: Answers) -> AsyncIterator[FakeP2P]:
    async with answered_by(answers) as network:
        yield network


@pytest.mark.parametrize(
    ("rows", "suffix"), [(0, ""), (1, ""), (LARGE - 1, ""), (LARGE, "_stream"), (400_000, "_stream")]
)
async def test_our_own_client_gets_what_the_expert_says(p2p: FakeP2P, rows: int, suffix: str) -> None:
    expert = await described(p2p)
    assert expert.info == ExpertInfo(inputs=(D,), outputs=(W,), classes=("cat", "dog"))
    inputs = batch(rows)
    outputs = await expert.forward(inputs, timeout_s=10.0)
    np.testing.assert_allclose(outputs, inputs @ WEIGHT, rtol=1e-6, strict=True)
    assert p2p.called[-1] == FORWARD + suffix
    grads = batch(rows, W, seed=1)
    back = await expert.backward(inputs, grads, timeout_s=10.0)
    np.testing.assert_allclose(back, grads @ WEIGHT.T, rtol=1e-6, strict=True)


async def test_the_tensors_bytes_are_counted_as_inference_at_both_ends(answers: Answers) -> None:
    here, there = Traffic(), Traffic()
    async with answered_by(answers, there) as p2p:
        expert = await described(p2p, here)
        await expert.forward(batch(7), timeout_s=5.0)
        await expert.forward(batch(LARGE), timeout_s=5.0)
    asked, answered = 4 * D * (7 + LARGE), 4 * W * (7 + LARGE)
    assert (here.sent, here.received) == ({"inference": asked}, {"inference": answered})
    assert (there.received, there.sent) == (here.sent, here.received)


@pytest.mark.parametrize("rows", [3, LARGE])
async def test_our_client_is_told_why_it_is_refused(p2p: FakeP2P, answers: Answers, rows: int) -> None:
    expert = await described(p2p)
    answers.busy = True
    with pytest.raises(RemoteFailure, match="busy: busy, ask again") as caught:
        await expert.forward(batch(rows), timeout_s=5.0)
    assert (caught.value.peer_id, caught.value.remote_code) == (REMOTE, "hivemind")
    with pytest.raises(RemoteFailure, match="unknown_expert"):
        await ForeignServers(p2p, Traffic()).describe(REMOTE, "mm_0.1.2.3", timeout_s=5.0)


class Strange:
    """A server that answers every call with the same."""

    def __init__(self, *answers: runtime_pb2.ExpertResponse) -> None:
        self.answers = answers

    async def at_once(self, request: Any, context: Any) -> runtime_pb2.ExpertResponse:
        return self.answers[0]

    async def in_parts(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_message(reader, runtime_pb2.ExpertRequest) is not None:
            pass
        for answer in self.answers:
            await write_message(writer, answer)
        writer.close()


def response(*tensors: runtime_pb2.Tensor) -> runtime_pb2.ExpertResponse:
    return runtime_pb2.ExpertResponse(tensors=tensors)


@pytest.mark.parametrize("rows", [4, LARGE])
@pytest.mark.parametrize(
    "answer",
    [
        lambda rows: response(pack_tensor(batch(rows + 1, W))),
        lambda rows: response(pack_tensor(batch(rows, W + 1))),
        lambda rows: response(pack_tensor(batch(rows, W)), pack_tensor(batch(rows, W))),
        lambda rows: response(pack_tensor(np.full((rows, W), np.nan, np.float32))),
        lambda rows: response(runtime_pb2.Tensor(dtype="int64", size=[rows, W], buffer=bytes(8 * rows * W))),
        lambda rows: response(runtime_pb2.Tensor(dtype="float32", size=[2**32 - 1, W])),
    ],
    ids=["a row more", "a column more", "two", "nan", "int64", "endless"],
)
async def test_an_answer_that_is_not_as_described_is_refused(p2p: FakeP2P, rows: int, answer: Any) -> None:
    expert = await described(p2p)
    strange = Strange(answer(rows))
    p2p.unary[FORWARD] = (strange.at_once, runtime_pb2.ExpertRequest)
    p2p.streams[f"{FORWARD}_stream"] = strange.in_parts
    with pytest.raises(MalformedTensor):
        await expert.forward(batch(rows), timeout_s=5.0)


@pytest.mark.parametrize(("rows", "failure"), [(4, MalformedTensor), (LARGE, PeerUnreachable)])
@pytest.mark.parametrize("tensors", [(), ({"buffer": b"\0"},)], ids=["nothing", "cut"])
async def test_an_answer_that_is_too_short_is_refused(
    p2p: FakeP2P, rows: int, failure: type[Exception], tensors: tuple[dict[str, Any], ...]
) -> None:
    """In parts, whether the rest was never sent or got lost cannot be told."""
    expert = await described(p2p)
    strange = Strange(response(*(runtime_pb2.Tensor(dtype="float32", size=[rows, W], **said) for said in tensors)))
    p2p.unary[FORWARD] = (strange.at_once, runtime_pb2.ExpertRequest)
    p2p.streams[f"{FORWARD}_stream"] = strange.in_parts
    with pytest.raises(failure):
        await expert.forward(batch(rows), timeout_s=5.0)


async def test_a_description_that_is_none_is_refused(p2p: FakeP2P) -> None:
    async def garbage(request: Any, context: Any) -> runtime_pb2.ExpertInfo:
        return runtime_pb2.ExpertInfo(serialized_info=b"\x91" * 60_000)

    async def another(request: Any, context: Any) -> runtime_pb2.ExpertUID:
        return runtime_pb2.ExpertUID(uid="\x01")

    for handler in (garbage, another):
        p2p.unary[INFO] = (handler, runtime_pb2.ExpertUID)
        with pytest.raises(MalformedMessage):
            await described(p2p)


@pytest.mark.parametrize("rows", [4, LARGE])
async def test_a_server_that_is_silent_or_gone_is_a_named_failure_within_the_deadline(
    p2p: FakeP2P, answers: Answers, rows: int
) -> None:
    expert = await described(p2p)
    answers.go.clear()
    async with asyncio.timeout(5):
        with pytest.raises(CallTimeout) as caught:
            await expert.forward(batch(rows), timeout_s=0.1)
        assert (caught.value.peer_id, caught.value.method) == (REMOTE, "rpc_forward")
    answers.go.set()
    p2p.unary.pop(FORWARD), p2p.streams.pop(f"{FORWARD}_stream")
    with pytest.raises(PeerUnreachable, match="protocol not supported"):
        await expert.forward(batch(rows), timeout_s=5.0)


class BreaksOff:
    """A server whose answers get lost in the middle, so many times; then it is as it was."""

    def __init__(self, p2p: FakeP2P, name: str, times: int) -> None:
        self.times, self.whole = times, p2p.streams[name]
        p2p.streams[name] = self.serve

    async def serve(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.times:
            return await self.whole(info, reader, writer)
        self.times -= 1
        while await read_message(reader, runtime_pb2.ExpertRequest) is not None:
            pass
        writer.write(b"\x00" + (1000).to_bytes(8, "big") + b"half")
        await writer.drain()
        writer.close()
        return None


async def test_an_answer_whose_end_is_lost_is_asked_for_once_more_if_nothing_depends_on_it(p2p: FakeP2P) -> None:
    expert = await described(p2p)
    BreaksOff(p2p, f"{FORWARD}_stream", times=1)
    assert len(await expert.forward(batch(LARGE), timeout_s=5.0)) == LARGE
    BreaksOff(p2p, f"{FORWARD}_stream", times=2)
    with pytest.raises(PeerUnreachable, match="the stream ended before the answer did"):
        await expert.forward(batch(LARGE), timeout_s=5.0)
    lost = BreaksOff(p2p, f"{BACKWARD}_stream", times=2)
    with pytest.raises(PeerUnreachable, match="the stream ended before the answer did"):
        await expert.backward(batch(LARGE), batch(LARGE, W), timeout_s=5.0)
    assert lost.times == 1, "the server may have taken a step, and must not take another"


async def test_what_is_no_input_of_the_expert_is_not_sent(p2p: FakeP2P, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = await described(p2p)
    for inputs in (batch(3, D + 1), batch(3).astype(np.float64), np.full((3, D), np.inf, np.float32)):
        with pytest.raises(MalformedTensor):
            await expert.forward(inputs, timeout_s=5.0)
        with pytest.raises(MalformedTensor):
            await expert.backward(inputs, batch(3, W), timeout_s=5.0)
    with pytest.raises(MalformedTensor):
        await expert.backward(batch(3), batch(3), timeout_s=5.0)
    with pytest.raises(MalformedMessage, match="2 rows for 3"):
        await expert.backward(batch(3), batch(2, W), timeout_s=5.0)
    monkeypatch.setattr(client_module, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameTooLarge):
        await expert.forward(batch(10), timeout_s=5.0)
    assert p2p.called == [INFO]
