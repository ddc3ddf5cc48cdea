"""Calls experts on servers of hivemind's kind: each call with a deadline, each answer checked against its description.

Legend: B batch.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto import runtime_pb2

from meshnode.transport.interface import Traffic
from meshnode.transport.moe.interface import ExpertInfo
from meshnode.transport.moe.schema import unpack_info
from meshnode.transport.moe.server import ConnectionHandler, backward_specs, forward_specs
from meshnode.transport.moe.streams import RemoteError, read_message, write_end, write_message
from meshnode.transport.moe.tensors import COMPRESSIONS, Gathering, TensorSpec, pack_tensor, require_rows, split_tensor
from protocol.errors import CallTimeout, FrameTooLarge, MalformedMessage, PeerUnreachable, RemoteFailure
from protocol.identifiers import PeerId
from protocol.limits import MAX_ERROR_TEXT_CHARS, MAX_FRAME_BYTES

__all__ = ["ForeignExpert", "ForeignServers"]

MAX_UNARY_INPUT_BYTES: Final = 2 * 1024 * 1024
"""What is larger goes in parts, as hivemind's own client does it: p2pd takes no message beyond 4 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call of an expert, ready to be sent."""

    peer_id: str
    cell: str
    method: str
    inputs: Sequence[np.ndarray]
    output: TensorSpec
    timeout_s: float
    repeatable: bool
    """Whether it may be sent again: at the server it changes nothing."""


class _BrokenOff(Exception):
    """A stream ended before the answer on it did."""


class ForeignServers:
    """Servers of hivemind's kind, wherever this node's network reaches.

    Args:
        p2p: The way there.
        traffic: Counts the tensors' bytes.
    """

    def __init__(self, p2p: P2P, traffic: Traffic) -> None:
        self._p2p = p2p
        self._traffic = traffic

    async def describe(self, peer_id: str, cell: str, *, timeout_s: float) -> "ForeignExpert":
        """Ask a server what the expert in a cell of its takes and gives.

        Raises:
            PeerUnreachable, CallTimeout: No answer.
            RemoteFailure: It answered with an error: it has no such expert, for instance.
            MalformedMessage, FrameTooLarge: What it answered is no description of an expert that can be called.
        """
        with _translated(peer_id, "rpc_info", timeout_s):
            async with asyncio.timeout(timeout_s):
                answer = await self._p2p.call_protobuf_handler(
                    PeerID.from_base58(peer_id),
                    _handle("rpc_info"),
                    runtime_pb2.ExpertUID(uid=cell),
                    runtime_pb2.ExpertInfo,
                )
        return ForeignExpert(cell=cell, peer_id=peer_id, info=unpack_info(answer.serialized_info), servers=self)

    async def call(self, call: _Call) -> np.ndarray:
        """Send a call, return the one tensor it is answered with."""
        num_bytes = sum(array.nbytes for array in call.inputs)
        if num_bytes > MAX_FRAME_BYTES:
            raise FrameTooLarge(num_bytes, MAX_FRAME_BYTES)
        # What must arrive in one message as well must be small both ways.
        large = max(num_bytes, 4 * len(call.inputs[0]) * int(np.prod(call.output.row))) > MAX_UNARY_INPUT_BYTES
        with _translated(call.peer_id, call.method, call.timeout_s):
            async with asyncio.timeout(call.timeout_s):
                try:
                    gathering = await (self._call_in_parts if large else self._call_at_once)(call)
                except _BrokenOff:
                    if not call.repeatable:
                        raise
                    # The end of a long answer is lost now and then, as hivemind's server closes the stream at once.
                    gathering = await self._call_in_parts(call)
        (output,) = gathering.finish()
        return output

    async def _call_at_once(self, call: _Call) -> Gathering:
        gathering = self._begin(call)
        response = await self._p2p.call_protobuf_handler(
            PeerID.from_base58(call.peer_id),
            _handle(call.method),
            runtime_pb2.ExpertRequest(uid=call.cell, tensors=[pack_tensor(array) for array in call.inputs]),
            runtime_pb2.ExpertResponse,
        )
        self._take(response, gathering)
        return gathering

    async def _call_in_parts(self, call: _Call) -> Gathering:
        gathering = self._begin(call)
        peer_id, name = PeerID.from_base58(call.peer_id), _handle(f"{call.method}_stream")
        _, reader, writer = await self._p2p.call_binary_stream_handler(peer_id, name)
        # Sent beside the reading: whoever refuses the first part reads no further.
        sending = asyncio.create_task(_send(writer, call), name="send")
        try:
            while not gathering.complete:
                response = await read_message(reader, runtime_pb2.ExpertResponse)
                if response is None:
                    raise _BrokenOff
                self._take(response, gathering)
        except (ConnectionError, asyncio.IncompleteReadError) as exc:
            raise _BrokenOff from exc
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()
        return gathering

    def _begin(self, call: _Call) -> Gathering:
        self._traffic.sent["inference"] += sum(array.nbytes for array in call.inputs)
        return Gathering([call.output], compressions=COMPRESSIONS, num_rows=len(call.inputs[0]))

    def _take(self, response: Any, gathering: Gathering) -> None:
        for tensor in response.tensors:
            self._traffic.received["inference"] += len(tensor.buffer)
            gathering.add(tensor)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignExpert:
    """An expert on a server of hivemind's kind, as that server described it.

    Nothing about it is verified: the DHT entry that named its peer is unsigned, and its outputs are what they are.
    """

    cell: str
    """hivemind's uid of it."""
    peer_id: str
    info: ExpertInfo
    servers: ForeignServers

    async def forward(self, inputs: np.ndarray, *, timeout_s: float) -> np.ndarray:
        """Its outputs for a batch.

        Args:
            inputs: float32 ``(B, *info.inputs)``, finite.
            timeout_s: Deadline, in seconds.

        Returns: float32 ``(B, *info.outputs)``, finite.

        Raises:
            MalformedTensor: `inputs` or the answer are not that.
            FrameTooLarge: More than ``MAX_FRAME_BYTES`` one way.
            PeerUnreachable, CallTimeout: No answer.
            RemoteFailure: It answered with an error.
            MalformedMessage: It answered with something else.
        """
        (spec,) = forward_specs(self.info)
        return await self.servers.call(
            _Call(
                peer_id=self.peer_id,
                cell=self.cell,
                method="rpc_forward",
                inputs=[require_rows(inputs, spec)],
                output=TensorSpec("outputs", self.info.outputs),
                timeout_s=timeout_s,
                repeatable=True,
            )
        )

    async def backward(self, inputs: np.ndarray, grad_outputs: np.ndarray, *, timeout_s: float) -> np.ndarray:
        """Gradient of ``sum(outputs * grad_outputs)`` with respect to the inputs.

        A hivemind server that has an optimizer takes a training step in every such call; a node of a mesh never does.

        Args:
            inputs: As for `forward`.
            grad_outputs: float32 ``(B, *info.outputs)``, finite.
            timeout_s: Deadline, in seconds.

        Returns: float32 ``(B, *info.inputs)``, finite.

        Raises: As `forward`; `PeerUnreachable` also if the end of an answer of more than two mebibytes was lost, which
            happens now and then. It is not asked for again, as the server may have taken its step.
        """
        inputs_spec, grads_spec = backward_specs(self.info)
        require_rows(grad_outputs, grads_spec)
        if len(grad_outputs) != len(inputs):
            raise MalformedMessage("grad_outputs", reason=f"{len(grad_outputs)} rows for {len(inputs)} of inputs")
        return await self.servers.call(
            _Call(
                peer_id=self.peer_id,
                cell=self.cell,
                method="rpc_backward",
                inputs=[require_rows(inputs, inputs_spec), grad_outputs],
                output=TensorSpec("grad_inputs", self.info.inputs),
                timeout_s=timeout_s,
                repeatable=False,
            )
        )


async def _send(writer: asyncio.StreamWriter, call: _Call) -> None:
    for array in call.inputs:
        for part in split_tensor(pack_tensor(array)):
            await write_message(writer, runtime_pb2.ExpertRequest(uid=call.cell, tensors=[part]))
    await write_end(writer)


def _handle(method: str) -> str:
    return str(ConnectionHandler._get_handle_name(None, method))


@contextmanager
def _translated(peer_id: str, method: str, timeout_s: float) -> Iterator[None]:
    """hivemind's exceptions as ours; of an error that the peer tells only the words."""
    peer = PeerId(peer_id)
    try:
        yield
    except TimeoutError as exc:  # an OSError, so before those
        raise CallTimeout(peer, method, timeout_s) from exc
    except (P2PHandlerError, RemoteError) as exc:
        raise RemoteFailure(peer, "hivemind", str(exc)[:MAX_ERROR_TEXT_CHARS]) from exc
    except _BrokenOff as exc:
        raise PeerUnreachable(peer, reason="the stream ended before the answer did") from exc
    except (P2PDaemonError, OSError, asyncio.IncompleteReadError) as exc:
        # libp2p tells of each dial in a line of its own.
        raise PeerUnreachable(peer, reason=" ".join(str(exc).split())[:MAX_ERROR_TEXT_CHARS]) from exc
    except DecodeError as exc:
        raise MalformedMessage(reason=f"{method} was answered with something else than hivemind's protobuf") from exc
