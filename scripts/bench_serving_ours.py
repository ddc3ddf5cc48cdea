"""In a child: a peer of the mesh put together as the daemon does, but for a delay before its answers; and our callers.

Legend: B batch, D feature, C class.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_serving_load import Call
from bench_serving_modules import features_of, local_answer

from experts.data.named import load_named
from meshnode import MeshClient
from meshnode.compute import Compute
from meshnode.device import choose_device
from meshnode.handlers import Handlers
from meshnode.home import Home
from meshnode.identity import load_or_create_identity
from meshnode.joining import open_client
from meshnode.mesh import load_mesh
from meshnode.pacing import Pacer
from meshnode.runtime import MeshRuntime
from meshnode.settings.config import load_config
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport
from protocol.framing import Frame
from protocol.identifiers import Digest, ExpertUid, PeerId
from protocol.messages import Forward

__all__ = ["Asking", "DelayedPeer", "call_ours"]

CALL_S = 5.0
"""Deadline of one call, the daemon's own default."""

SIGHT_S = 30.0


class DelayedPeer:
    """A peer whose handler waits before it answers for its experts; made by `open`."""

    def __init__(self, transport: HivemindTransport, handlers: Handlers, runtime: MeshRuntime) -> None:
        self.delay_s = 0.0
        self._transport = transport
        self._handlers = handlers
        self._runtime = runtime

    @classmethod
    async def open(cls, home: Home, join: Sequence[str], resources: AsyncExitStack) -> "DelayedPeer":
        """Serve what this home hosts, until `resources` are closed.

        Args:
            home: Belongs to a mesh.
            join: Addresses of other peers.
        """
        config, key, telemetry = load_config(home), load_or_create_identity(home), Telemetry()
        state = resources.enter_context(State(home))
        mesh = load_mesh(state)
        assert mesh is not None
        compute = Compute()
        resources.callback(compute.close)
        transport = await HivemindTransport.open(HivemindConfig(identity_path=home.identity_key))
        resources.push_async_callback(transport.aclose)
        handlers = Handlers(state.blobs, transport.peer_id, config.node.name, transport.now_s)
        device = choose_device("cpu", require_gpu=False)
        runtime = MeshRuntime(home, config, state, transport, key, mesh, compute, device, telemetry, Pacer(None))
        handlers.attach(mesh, runtime.serving, None)
        peer = cls(transport, handlers, runtime)
        transport.serve(peer._answer, handlers.admit)
        for address in join:
            await transport.connect(address)
        await runtime.start()
        services = asyncio.create_task(runtime.run(), name="mesh")
        resources.push_async_callback(_cancel, services)
        return peer

    @property
    def address(self) -> str:
        return self._transport.addresses[0]

    async def announce(self) -> None:
        """Publish its record again, now that it knows more of the network."""
        await self._runtime.advertiser.publish()

    async def _answer(self, sender: PeerId, request: Frame) -> Frame:
        if self.delay_s and isinstance(request.message, Forward):
            await asyncio.sleep(self.delay_s)
        return await self._handlers(sender, request)


class Asking:
    """A client of a mesh that routes questions; made by `join`. The questions are the digits' test images."""

    def __init__(self, client: MeshClient) -> None:
        self._client = client
        self._images = load_named("digits")[1].images
        self._asked = 0

    @classmethod
    async def join(
        cls, addresses: Sequence[str], *, experts: int, replicas: int, resources: AsyncExitStack
    ) -> "Asking":
        """Join, and wait until so many experts, with so many replicas in all, and a router are known."""
        client = await resources.enter_async_context(await MeshClient.join(addresses, timeout_s=SIGHT_S))
        asking = cls(client)
        async with asyncio.timeout(SIGHT_S):
            while not asking._sees(experts, replicas):
                await asyncio.sleep(0.2)
                await client.refresh()
        await client.predict(asking._images[:1])
        return asking

    def _sees(self, experts: int, replicas: int) -> bool:
        seen = self._client.experts()
        has_router = self._client._contributions.view is not None
        return has_router and len(seen) == experts and sum(len(one.replicas) for one in seen) == replicas

    def where(self) -> dict[str, list[str]]:
        """Peer ids by expert."""
        return {str(one.uid): [replica.peer_id for replica in one.replicas] for one in self._client.experts()}

    async def one_question(self, top_k: int) -> dict[str, Any]:
        """Ask about one image, `top_k` experts of it; who was asked, and how long it took."""
        prediction = await self._client.predict(self._images[:1], top_k=top_k)
        asked = sorted({call.peer_id for call in prediction.calls if call.error is None})
        return {"ms": prediction.elapsed_ms, "peers": asked, "missing": float(prediction.missing_mass_B.max())}

    async def next_image(self) -> dict[str, Any] | None:
        """Ask about the next image; None if all went well, else what did not."""
        number, self._asked = self._asked, self._asked + 1
        prediction = await self._client.predict(self._images[[number % len(self._images)]], timeout_s=CALL_S)
        errors = [call.error for call in prediction.calls if call.error is not None]
        return {"errors": errors} if errors or prediction.missing_mass_B.any() else None

    async def all_images(self, top_k: int) -> dict[str, Any]:
        """The mesh's answer to every test image."""
        prediction = await self._client.predict(self._images, top_k=top_k)
        peers = sorted({call.peer_id for call in prediction.calls})
        return {
            "predictions": prediction.predictions,
            "outputs": prediction.outputs_BC.tolist(),
            "missing": float(prediction.missing_mass_B.max()),
            "peers": peers,
        }


async def call_ours(
    address: str,
    *,
    uid: str,
    sizes: Sequence[int],
    resources: AsyncExitStack,
    timeout_s: float = CALL_S,
    is_checked: bool = True,
) -> dict[int, Call]:
    """Ways to ask an expert once, by the number of rows; warm, and known to give the module's own answer.

    Args:
        address: Of its peer.
        uid: The expert.
        sizes: B, of each way.
        resources: Close the transport, which all of them share.
        timeout_s: Deadline that the peer is told.
        is_checked: Whether it is the module of `bench_serving_modules` with its initial weights.
    """
    _, transport = await open_client(resources)
    peer_id, experts = await transport.connect(address), (ExpertUid(Digest(uid)),)

    def make(features_BD: np.ndarray) -> Call:
        async def call() -> np.ndarray:
            request = Frame(Forward(experts=experts), {"features": features_BD})
            reply = await transport.call(peer_id, request, timeout_s=timeout_s)
            return reply.tensors["probabilities.0"]

        return call

    calls = {}
    for rows in sizes:
        features_BD = features_of(rows)
        calls[rows] = make(features_BD)
        answer_BC = await calls[rows]()
        if is_checked:
            np.testing.assert_allclose(answer_BC, local_answer(uid, features_BD), atol=1e-5)
    return calls


async def open_peer(home: str, join: Sequence[str], resources: AsyncExitStack) -> DelayedPeer:
    """`DelayedPeer.open` by the home's path."""
    return await DelayedPeer.open(Home(Path(home)), join, resources)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
