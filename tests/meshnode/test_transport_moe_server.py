"""hivemind's calls, answered: with what the experts say, and within bounds whoever asks."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import torch
from hivemind.compression import serialize_torch_tensor
from hivemind.moe.client.expert import expert_backward, expert_forward
from hivemind.moe.server.connection_handler import ConnectionHandler as TheirHandler
from hivemind.p2p import PeerID
from hivemind.proto import runtime_pb2
from moe_network import (
    BACKWARD,
    CELL,
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
from meshnode.transport.moe import server as server_module
from meshnode.transport.moe.client import ForeignServers
from meshnode.transport.moe.server import ConnectionHandler
from meshnode.transport.moe.streams import MAX_STREAM_MESSAGE_BYTES, RemoteError, read_message, write_message
from meshnode.transport.moe.tensors import pack_tensor
from protocol.errors import PeerUnreachable, RemoteFailure


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def p2p(answers: Answers) -> AsyncIterator[FakeP2P]:
    async with answered_by(answers) as network:
        yield network


async def test_hiveminds_own_client_gets_the_same_and_by_hiveminds_own_names(p2p: FakeP2P) -> None:
    inputs, grads = batch(5), batch(5, W, seed=1)
    sent = [serialize_torch_tensor(torch.from_numpy(array)) for array in (inputs, grads)]
    stub = TheirHandler.get_stub(p2p, PeerID.from_base58(REMOTE))
    (outputs,) = await expert_forward(CELL, [torch.from_numpy(inputs)], sent[:1], stub)
    (back,) = await expert_backward(CELL, [torch.from_numpy(array) for array in (inputs, grads)], sent, stub)
    np.testing.assert_allclose(outputs.numpy(), inputs @ WEIGHT, rtol=1e-6, strict=True)
    np.testing.assert_allclose(back.numpy(), grads @ WEIGHT.T, rtol=1e-6, strict=True)
    assert p2p.called == [FORWARD, BACKWARD]
    assert {*p2p.unary} | {*p2p.streams} == {
        TheirHandler._get_handle_name(None, f"rpc_{call}")
        for call in ("info", "forward", "backward", "forward_stream", "backward_stream")
    }


# --- refusals, as hivemind's client reads them ---


async def refusal(p2p: FakeP2P, name: str, request: Any) -> str:
    """What the handler tells of its failure, as hivemind would send it."""
    handler, _ = p2p.unary[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - hivemind sends the repr of whatever it is
        await handler(request, None)
    return repr(caught.value)


async def test_a_refusal_is_a_line_that_begins_with_the_code_of_our_error(p2p: FakeP2P, answers: Answers) -> None:
    name = INFO
    told = await refusal(p2p, name, runtime_pb2.ExpertUID(uid="mm_0.1.2.3"))
    assert told == "unknown_expert: expert mm_0.1.2.3 is not hosted here"
    assert len(await refusal(p2p, name, runtime_pb2.ExpertUID(uid="x" * 10**6))) <= 512
    request = runtime_pb2.ExpertRequest(uid=CELL, tensors=[pack_tensor(batch(2, W))])
    assert (await refusal(p2p, FORWARD, request)).startswith("malformed_tensor: tensor 'inputs': expected shape")
    answers.busy = True
    request = runtime_pb2.ExpertRequest(uid=CELL, tensors=[pack_tensor(batch(2))])
    assert await refusal(p2p, FORWARD, request) == "busy: busy, ask again in 0.25 s"


async def test_an_answer_that_p2pd_would_lose_is_refused_and_comes_in_parts(
    p2p: FakeP2P, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hivemind's server then never answers at all."""
    monkeypatch.setattr(server_module, "MAX_UNARY_BYTES", 4 * W * 100)
    request = runtime_pb2.ExpertRequest(uid=CELL, tensors=[pack_tensor(batch(100))])
    assert (await refusal(p2p, FORWARD, request)).startswith("frame_too_large")
    monkeypatch.setattr(client_module, "MAX_UNARY_INPUT_BYTES", 4 * W * 100 - 1)
    assert (await (await described(p2p)).forward(batch(100), timeout_s=5.0)).shape == (100, W)
    assert p2p.called[-1] == f"{FORWARD}_stream"


# --- streams, byte by byte ---


class Caller:
    """The bytes of a caller, whatever they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, p2p: FakeP2P, name: str = f"{FORWARD}_stream") -> "Caller":
        _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(REMOTE), name)
        return cls(reader, writer)

    async def send(self, cell: str, *tensors: runtime_pb2.Tensor) -> None:
        await write_message(self.writer, runtime_pb2.ExpertRequest(uid=cell, tensors=tensors))

    async def refused(self) -> str:
        """The words of the refusal that comes now, and that the stream is closed after it."""
        with pytest.raises(RemoteError) as caught:
            async with asyncio.timeout(5):
                await read_message(self.reader, runtime_pb2.ExpertResponse)
        assert await self.reader.read() == b""
        return str(caught.value)


async def test_a_stream_is_refused_at_the_first_part_that_is_wrong(p2p: FakeP2P, answers: Answers) -> None:
    caller = await Caller.of(p2p)
    await caller.send("mm_0.1.2.3", pack_tensor(batch(1)))
    assert (await caller.refused()).startswith("unknown_expert")
    caller = await Caller.of(p2p)
    await caller.send(CELL, pack_tensor(batch(1, D + 1)))
    assert (await caller.refused()).startswith("malformed_tensor")
    caller = await Caller.of(p2p)
    await caller.send(CELL, runtime_pb2.Tensor(dtype="float32", size=[2**32 - 1, D]))
    assert (await caller.refused()).startswith("frame_too_large")
    caller = await Caller.of(p2p)
    await caller.send(CELL, runtime_pb2.Tensor(dtype="float32", size=[2, D], buffer=bytes(4)))
    await caller.send("mm_0.1.2.3", runtime_pb2.Tensor(buffer=bytes(4)))
    assert (await caller.refused()).startswith("malformed_message: malformed message (uid): it differs")
    caller = await Caller.of(p2p)
    caller.writer.write(b"\x01" + bytes(8))
    assert await caller.refused() == "malformed_message: malformed message: a request without parts"
    caller = await Caller.of(p2p)
    await caller.send(CELL, runtime_pb2.Tensor(dtype="float32", size=[2, D], buffer=bytes(4)))
    caller.writer.write(b"\x01" + bytes(8))
    assert (await caller.refused()).startswith("malformed_tensor: tensor 'inputs': 4 bytes")
    assert answers.rows == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00" + (MAX_STREAM_MESSAGE_BYTES + 1).to_bytes(8, "big"), "frame_too_large"),
        (b"\x00" + b"\xff" * 8, "frame_too_large"),
        (b"\x01" + b"\xff" * 8, "frame_too_large"),
        (b"\x02" + bytes(8), "malformed_message"),
        (b"\x00" + (3).to_bytes(8, "big") + b"\xff\xff\xff", "malformed_message"),
        (b"\x01" + (3).to_bytes(8, "big") + b"\xff\xff\xff", "malformed_message"),
    ],
)
async def test_bytes_that_are_no_message_are_refused_without_waiting_for_more(
    p2p: FakeP2P, data: bytes, code: str
) -> None:
    caller = await Caller.of(p2p)
    caller.writer.write(data)
    assert (await caller.refused()).startswith(code)


async def test_a_caller_that_says_nothing_more_is_not_waited_for(p2p: FakeP2P, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_S", 0.05)
    for sent in (b"", b"\x00", b"\x00" + (100).to_bytes(8, "big") + b"half"):
        caller = await Caller.of(p2p)
        caller.writer.write(sent)
        async with asyncio.timeout(5):
            assert await caller.reader.read() == b""
    monkeypatch.setattr(server_module, "RECEIVE_S", 0.2)
    caller = await Caller.of(p2p)
    await caller.send(CELL, runtime_pb2.Tensor(dtype="float32", size=[1000, D], buffer=b"\0"))

    async def a_byte_in_time_again_and_again() -> None:
        while True:
            await asyncio.sleep(0.02)
            await caller.send(CELL, runtime_pb2.Tensor(buffer=b"\0"))

    async with asyncio.timeout(5):
        with pytest.raises(ConnectionError):
            await a_byte_in_time_again_and_again()


async def test_streams_hold_no_more_than_the_bound_together_and_give_it_back(
    p2p: FakeP2P, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_HELD_BYTES", 4 * D * 100)
    first = await Caller.of(p2p)
    await first.send(CELL, runtime_pb2.Tensor(dtype="float32", size=[1000, D], buffer=bytes(4 * D * 60)))
    await asyncio.sleep(0.05)  # it is taken in
    second = await Caller.of(p2p)
    await second.send(CELL, pack_tensor(batch(60)))
    assert await second.refused() == "busy: busy, ask again in 1 s"
    first.writer.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*p2p.serving)
    monkeypatch.setattr(client_module, "MAX_UNARY_INPUT_BYTES", 0)
    assert len(await (await described(p2p)).forward(batch(100), timeout_s=5.0)) == 100


async def test_a_stream_with_a_long_answer_stays_open_until_its_caller_has_it(
    p2p: FakeP2P, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p2pd loses what is not handed on yet when the stream is closed."""
    monkeypatch.setattr(server_module, "LINGER_S", 0.3)
    clock = asyncio.get_running_loop().time
    for rows, lingers in ((100, False), (LARGE, True)):
        caller = await Caller.of(p2p)
        await caller.send(CELL, pack_tensor(batch(rows)))
        caller.writer.write(b"\x01" + bytes(8))
        answered_s = 0.0
        async with asyncio.timeout(5):
            while await read_message(caller.reader, runtime_pb2.ExpertResponse) is not None:
                answered_s = clock()
        assert (clock() - answered_s > 0.25) is lingers
    began_s = clock()
    await (await described(p2p)).forward(batch(LARGE), timeout_s=5.0)
    async with asyncio.timeout(5):
        await asyncio.gather(*p2p.serving)
    assert clock() - began_s < 0.25, "our own client knows what it has, and closes"


async def test_refusals_leave_no_line_in_the_log(p2p: FakeP2P, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caller = await Caller.of(p2p)
    caller.writer.write(b"\x07" * 9)
    await caller.refused()
    caller = await Caller.of(p2p)
    caller.writer.close()
    await asyncio.gather(*p2p.serving)
    with pytest.raises(RemoteFailure):
        await ForeignServers(p2p, Traffic()).describe(REMOTE, "mm_0.1.2.3", timeout_s=5.0)
    assert [record.getMessage() for record in caplog.records if record.name != "asyncio"] == []


async def test_a_stop_finishes_what_is_under_way_and_takes_nothing_new(answers: Answers) -> None:
    network, handler = FakeP2P(), ConnectionHandler(answers, Traffic())
    await handler.start(network)
    expert = await described(network)
    answers.go.clear()
    calls = [asyncio.ensure_future(expert.forward(batch(rows), timeout_s=5.0)) for rows in (3, LARGE)]
    idle = await Caller.of(network)
    async with asyncio.timeout(5):
        while len(answers.rows) < 2:
            await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(handler.stop(network))
    await asyncio.sleep(0.05)
    with pytest.raises(PeerUnreachable, match="protocol not supported"):
        await expert.forward(batch(1), timeout_s=5.0)
    assert not stopping.done()
    answers.go.set()
    assert [len(outputs) for outputs in await asyncio.gather(*calls)] == [3, LARGE]
    async with asyncio.timeout(5):
        await stopping
        assert await idle.reader.read() == b""
    for _, writer in network.opened:
        writer.close()


async def test_a_stop_does_not_wait_for_a_p2pd_that_has_ended(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "P2PD_S", 0.05)
    network, handler = FakeP2P(), ConnectionHandler(answers, Traffic())
    await handler.start(network)

    async def never(name: str, **settings: bool) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(network, "remove_protobuf_handler", never)
    async with asyncio.timeout(2):
        await handler.stop(network)
