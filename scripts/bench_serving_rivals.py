"""In a child: what our transport is held against, all on one loop: bare TCP, a raw libp2p stream, a unary call.

Each runs in the very process in which the others do, with nothing else under way; none computes on another thread,
which is the fastest that one caller can have it.

Legend: B batch, D feature, C class.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import torch
from bench_serving_load import Call
from bench_serving_modules import CLASSES, FEATURES, P2P_SETTINGS, features_of, local_answer, module_of
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.p2p import P2P, P2PContext, PeerID, ServicerBase
from hivemind.proto import runtime_pb2
from hivemind.utils.multiaddr import Multiaddr

from experts.architectures.base import probabilities

__all__ = ["RIVALS", "Listeners", "call_rival"]

RIVALS = ("tcp", "raw", "unary")

_RAW = "/modulemesh-bench/raw"
_HEAD = struct.Struct("!I")

READER_BYTES = 4 * 2**20
"""With asyncio's 64 KiB a large message is paused and resumed all the time: 15 to 20% slower."""


class Unary(ServicerBase):  # type: ignore[misc]  # hivemind carries no types
    """The module as hivemind's users would serve it in one loop, without its server's processes and queues."""

    async def rpc_forward(self, request: runtime_pb2.ExpertRequest, context: P2PContext) -> runtime_pb2.ExpertResponse:
        features_BD = deserialize_torch_tensor(request.tensors[0])
        output_BC = probabilities(module_of(request.uid), features_BD)
        return runtime_pb2.ExpertResponse(tensors=[serialize_torch_tensor(output_BC)])


class Listeners:
    """The servers of all rivals; made by `open`."""

    def __init__(self, p2p: P2P, tcp: asyncio.Server, uid: str) -> None:
        self._p2p = p2p
        self._tcp = tcp
        self._uid = uid

    @classmethod
    async def open(cls, uid: str) -> "Listeners":
        """Listen on loopback.

        Args:
            uid: Which module is served.
        """
        p2p = await P2P.create(**P2P_SETTINGS)
        listeners = cls(p2p, await asyncio.start_server(_echo, "127.0.0.1", 0), uid)
        await p2p.add_binary_stream_handler(_RAW, listeners._serve_raw)
        await Unary().add_p2p_handlers(p2p)
        return listeners

    async def addresses(self) -> dict[str, str]:
        """By rival."""
        host, port = self._tcp.sockets[0].getsockname()
        libp2p = str((await self._p2p.get_visible_maddrs())[0])
        return {"tcp": f"{host}:{port}", "raw": libp2p, "unary": libp2p}

    async def aclose(self) -> None:
        self._tcp.close()
        await self._p2p.shutdown()

    async def _serve_raw(self, _: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _widen(reader)
        module = module_of(self._uid)
        try:
            while True:
                (num_bytes,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                features = torch.frombuffer(await reader.readexactly(num_bytes), dtype=torch.float32)
                writer.write(probabilities(module, features.reshape(-1, FEATURES)).numpy().tobytes())
        except asyncio.IncompleteReadError:
            writer.close()


async def call_rival(
    rival: str, address: str, *, uid: str, sizes: Sequence[int], resources: AsyncExitStack
) -> dict[int, Call]:
    """Ways to ask this rival once, by the number of rows; warm, and known to give the module's own answer.

    Args:
        rival: One of `RIVALS`.
        address: Where it listens.
        uid: Which module it serves.
        sizes: B, of each way.
        resources: Close the connection, which all of them share.
    """
    if rival == "tcp":
        return await _tcp_calls(address, sizes, resources)
    p2p, peer_id = await _connected(address, resources)
    make = await _raw_caller(p2p, peer_id) if rival == "raw" else _unary_caller(p2p, peer_id, uid)
    calls = {}
    for rows in sizes:
        features_BD = features_of(rows)
        calls[rows] = make(features_BD)
        answer_BC = np.asarray(await calls[rows]())
        np.testing.assert_allclose(answer_BC, local_answer(uid, features_BD), atol=1e-5)
    return calls


async def _connected(address: str, resources: AsyncExitStack) -> tuple[P2P, PeerID]:
    where, _, peer = address.rpartition("/p2p/")
    p2p = await P2P.create(**P2P_SETTINGS)
    resources.push_async_callback(p2p.shutdown)
    peer_id = PeerID.from_base58(peer)
    await p2p._client.connect(peer_id, [Multiaddr(where)])
    return p2p, peer_id


async def _tcp_calls(address: str, sizes: Sequence[int], resources: AsyncExitStack) -> dict[int, Call]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=READER_BYTES)
    resources.callback(writer.close)

    def make(data: bytes) -> Call:
        async def call() -> bytes:
            writer.write(_HEAD.pack(len(data)) + data)
            (num_bytes,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            return await reader.readexactly(num_bytes)

        return call

    return {rows: make(features_of(rows).tobytes()) for rows in sizes}


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    _widen(reader)
    try:
        while True:
            head = await reader.readexactly(_HEAD.size)
            writer.write(head + await reader.readexactly(*_HEAD.unpack(head)))
    except asyncio.IncompleteReadError:
        writer.close()


async def _raw_caller(p2p: P2P, peer_id: PeerID) -> Callable[[np.ndarray], Call]:
    _, reader, writer = await p2p.call_binary_stream_handler(peer_id, _RAW)
    _widen(reader)

    def make(features_BD: np.ndarray) -> Call:
        rows = len(features_BD)

        async def call() -> np.ndarray:
            writer.writelines([_HEAD.pack(features_BD.nbytes), features_BD.reshape(-1).view(np.uint8).data])
            answer = await reader.readexactly(rows * CLASSES * 4)
            return np.frombuffer(answer, np.float32).reshape(rows, CLASSES)

        return call

    return make


def _unary_caller(p2p: P2P, peer_id: PeerID, uid: str) -> Callable[[np.ndarray], Call]:
    stub = Unary.get_stub(p2p, peer_id)

    def make(features_BD: np.ndarray) -> Call:
        asked_BD = torch.from_numpy(features_BD)

        async def call() -> torch.Tensor:
            request = runtime_pb2.ExpertRequest(uid=uid, tensors=[serialize_torch_tensor(asked_BD)])
            response = await stub.rpc_forward(request)
            answer_BC: torch.Tensor = deserialize_torch_tensor(response.tensors[0])
            return answer_BC

        return call

    return make


def _widen(reader: asyncio.StreamReader) -> None:
    reader._limit = READER_BYTES
