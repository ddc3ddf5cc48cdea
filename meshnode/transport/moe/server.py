"""Answers hivemind's own clients: five calls, about the experts in this node's cells.

`rpc_info`, `rpc_forward` and `rpc_backward` are one message each way; `rpc_forward_stream` and `rpc_backward_stream`
are the same in parts, for what is larger than two mebibytes. A refusal goes back as a line that begins with the code
of our error.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import numpy as np
from hivemind.p2p import P2P, P2PContext, P2PDaemonError, ServicerBase
from hivemind.proto import runtime_pb2

from meshnode.transport.interface import Traffic
from meshnode.transport.moe.interface import CellAnswers, ExpertInfo
from meshnode.transport.moe.schema import pack_info
from meshnode.transport.moe.streams import RemoteError, read_message, write_message, write_refusal
from meshnode.transport.moe.tensors import Gathering, TensorSpec, pack_tensor, split_tensor
from protocol.errors import Busy, FrameTooLarge, MalformedMessage, ModuleMeshError
from protocol.limits import MAX_ERROR_TEXT_CHARS, MAX_FRAME_BYTES

__all__ = ["ConnectionHandler", "MAX_UNARY_BYTES", "backward_specs", "forward_specs"]

MAX_UNARY_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024
"""A longer answer in one message never arrives: p2pd takes 4 MiB, and hivemind then forgets to say that it did not."""

MAX_HELD_BYTES: Final = 2 * MAX_FRAME_BYTES
"""Parts of all streams together that are held at a time; a caller that brings more is told to come back."""

RECEIVE_S: Final = 60.0
"""How long a caller may take to send all parts of a request: 64 MiB at 1 MiB/s."""

SEND_S: Final = 60.0
"""How long it may take to read the answer."""

IDLE_S: Final = 10.0
"""How long it may take for the next of them."""

DRAIN_S: Final = 2.0
"""How long a stop waits for answers under way."""

P2PD_S: Final = 2.0
"""How long p2pd may take to forget a handler; if it has ended it would take for ever."""

LINGER_S: Final = 0.5
"""How long a stream stays open after a long answer, unless its caller closes it. p2pd may reset a stream that is
closed, and what the caller's p2pd has not handed on by then is lost."""

LONG_ANSWER_BYTES: Final = 128 * 1024
"""A shorter answer is in the caller's socket before the stream is closed, however slowly the caller reads."""

_Compute = Callable[[str, Sequence[np.ndarray]], Awaitable[np.ndarray]]


def forward_specs(info: ExpertInfo) -> list[TensorSpec]:
    """What a forward call brings."""
    return [TensorSpec("inputs", info.inputs)]


def backward_specs(info: ExpertInfo) -> list[TensorSpec]:
    """What a backward call brings."""
    return [TensorSpec("inputs", info.inputs), TensorSpec("grad_outputs", info.outputs)]


class ConnectionHandler(ServicerBase):  # type: ignore[misc]  # hivemind carries no types
    """hivemind names a call by its servicer's class; this is what its own server's is called.

    Args:
        answers: The node's experts.
        traffic: Counts the tensors' bytes.
    """

    def __init__(self, answers: CellAnswers, traffic: Traffic) -> None:
        self._answers = answers
        self._traffic = traffic
        self._held_bytes = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._streams: set[asyncio.Task[Any]] = set()

    async def start(self, p2p: P2P) -> None:
        """Answer from now on."""
        await self.add_p2p_handlers(p2p)
        for name, specs_of, compute in self._stream_calls():
            await p2p.add_binary_stream_handler(name, partial(self._serve_stream, specs_of, compute))

    async def stop(self, p2p: P2P) -> None:
        """Take no more calls, finish those under way and close the rest; bounded, also without a p2pd."""
        with suppress(TimeoutError, P2PDaemonError, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(P2PD_S):
                await self.remove_p2p_handlers(p2p)
                for name, _, _ in self._stream_calls():
                    await p2p.remove_binary_stream_handler(name)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._idle.wait()
        for task in list(self._streams):
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    # --- one message each way ---

    async def rpc_info(self, request: runtime_pb2.ExpertUID, context: P2PContext) -> runtime_pb2.ExpertInfo:
        with _refusals(), self._answering():
            return runtime_pb2.ExpertInfo(serialized_info=pack_info(self._answers.describe(request.uid)))

    async def rpc_forward(self, request: runtime_pb2.ExpertRequest, context: P2PContext) -> runtime_pb2.ExpertResponse:
        return await self._answer_one(request, forward_specs, self._forward)

    async def rpc_backward(self, request: runtime_pb2.ExpertRequest, context: P2PContext) -> runtime_pb2.ExpertResponse:
        return await self._answer_one(request, backward_specs, self._backward)

    async def _answer_one(
        self, request: Any, specs_of: Callable[[ExpertInfo], list[TensorSpec]], compute: _Compute
    ) -> runtime_pb2.ExpertResponse:
        with _refusals(), self._answering():
            gathering = Gathering(specs_of(self._answers.describe(request.uid)))
            for tensor in request.tensors:
                gathering.add(tensor)
            tensor = await self._compute(compute, request.uid, gathering.finish())
            response = runtime_pb2.ExpertResponse(tensors=[tensor])
            if response.ByteSize() > MAX_UNARY_BYTES:
                raise FrameTooLarge(response.ByteSize(), MAX_UNARY_BYTES)
            return response

    # --- streams ---

    def _stream_calls(self) -> Iterator[tuple[str, Callable[[ExpertInfo], list[TensorSpec]], _Compute]]:
        yield self._get_handle_name(None, "rpc_forward_stream"), forward_specs, self._forward
        yield self._get_handle_name(None, "rpc_backward_stream"), backward_specs, self._backward

    async def _serve_stream(
        self,
        specs_of: Callable[[ExpertInfo], list[TensorSpec]],
        compute: _Compute,
        info: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            with self._holding() as hold:
                async with asyncio.timeout(RECEIVE_S):
                    cell, arrays = await self._receive(reader, specs_of, hold)
                with self._answering():
                    tensor = await self._compute(compute, cell, arrays)
                    async with asyncio.timeout(SEND_S):
                        for part in split_tensor(tensor):
                            await write_message(writer, runtime_pb2.ExpertResponse(tensors=[part]))
            if len(tensor.buffer) > LONG_ANSWER_BYTES:
                async with asyncio.timeout(LINGER_S):
                    await reader.read(1)
        except ModuleMeshError as failure:
            with suppress(OSError):
                async with asyncio.timeout(IDLE_S):
                    await write_refusal(writer, _in_a_line(failure))
        except (OSError, asyncio.IncompleteReadError, RemoteError):
            pass  # the caller has gone, is too slow (TimeoutError is an OSError), or has failed itself
        finally:
            self._streams.discard(task)
            writer.close()

    async def _receive(
        self,
        reader: asyncio.StreamReader,
        specs_of: Callable[[ExpertInfo], list[TensorSpec]],
        hold: Callable[[int], None],
    ) -> tuple[str, list[np.ndarray]]:
        cell, gathering = None, None
        while (request := await self._next(reader)) is not None:
            if gathering is None:
                cell, gathering = request.uid, Gathering(specs_of(self._answers.describe(request.uid)))
            if request.uid != cell:
                raise MalformedMessage("uid", reason="it differs from that of the parts before")
            for part in request.tensors:
                hold(len(part.buffer))
                gathering.add(part)
        if cell is None or gathering is None:
            raise MalformedMessage(reason="a request without parts")
        return cell, gathering.finish()

    @staticmethod
    async def _next(reader: asyncio.StreamReader) -> Any:
        async with asyncio.timeout(IDLE_S):
            return await read_message(reader, runtime_pb2.ExpertRequest)

    # --- both ---

    async def _forward(self, cell: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        (inputs,) = arrays
        return await self._answers.forward(cell, inputs)

    async def _backward(self, cell: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        inputs, grad_outputs = arrays
        return await self._answers.backward(cell, inputs, grad_outputs)

    async def _compute(self, compute: _Compute, cell: str, arrays: Sequence[np.ndarray]) -> runtime_pb2.Tensor:
        self._traffic.received["inference"] += sum(array.nbytes for array in arrays)
        tensor = pack_tensor(await compute(cell, arrays))
        self._traffic.sent["inference"] += len(tensor.buffer)
        return tensor

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Within the block its argument counts the bytes of one request, and refuses those beyond the bound."""
        held_bytes = 0

        def hold(num_bytes: int) -> None:
            nonlocal held_bytes
            if self._held_bytes + num_bytes > MAX_HELD_BYTES:
                raise Busy(retry_after_s=1.0)
            held_bytes += num_bytes
            self._held_bytes += num_bytes

        try:
            yield hold
        finally:
            self._held_bytes -= held_bytes

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()


class _Refusal(Exception):
    """hivemind tells the caller what an exception's repr is."""

    def __repr__(self) -> str:
        return str(self)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ModuleMeshError as failure:
        raise _Refusal(_in_a_line(failure)) from failure


def _in_a_line(failure: ModuleMeshError) -> str:
    return f"{failure.code}: {failure.message}"[:MAX_ERROR_TEXT_CHARS]
