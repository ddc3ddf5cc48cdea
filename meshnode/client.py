"""A client that is no node: it joins the network, learns the mesh from its peers, and asks their experts.

    async with await MeshClient.join(["/ip4/203.0.113.7/tcp/31337/p2p/Qm..."]) as client:
        for expert in client.experts():
            print(expert.uid, expert.classes, len(expert.replicas))
        prediction = await client.predict(images)

It stores nothing for others, serves nothing, and forgets everything when it closes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import numpy as np

from meshnode.blobs import BlobPuller
from meshnode.compute import Compute
from meshnode.contributions import Contributions
from meshnode.directory import Directory
from meshnode.errors import Timeout
from meshnode.inference import Prediction, RoutedInference
from meshnode.joining import connect_any, open_client
from meshnode.listings import ExpertListing
from meshnode.logs import get_logger
from meshnode.mesh import Mesh, pull_mesh
from meshnode.runtime import contributions_of
from meshnode.state.state import State
from meshnode.transport.hivemind import HivemindTransport
from meshnode.transport.interface import Traffic
from meshnode.transport.moe.client import ForeignExpert
from protocol.errors import ModuleMeshError
from protocol.identifiers import MeshId

__all__ = ["MeshClient"]

log = get_logger(__name__)

CALL_TIMEOUT_S = 5.0

REFRESH_S = 2.0
"""How often a client looks again who hosts what: well within the life of any lease."""


class MeshClient:
    """A connected client; made by `join`, closed by leaving its ``async with`` block."""

    def __init__(
        self,
        mesh: Mesh,
        directory: Directory,
        contributions: Contributions,
        inference: RoutedInference,
        transport: HivemindTransport,
        puller: BlobPuller,
    ) -> None:
        self.mesh = mesh
        self._directory = directory
        self._contributions = contributions
        self._inference = inference
        self._transport = transport
        self._puller = puller
        self._resources = AsyncExitStack()

    @classmethod
    async def join(
        cls, addresses: Sequence[str], *, mesh_id: MeshId | None = None, timeout_s: float = 10.0, queue: int = 256
    ) -> Self:
        """Connect through any of `addresses` and pull the mesh's spec, trunk and router.

        Args:
            addresses: Multiaddresses of peers, each ending in /p2p/<peer id>.
            mesh_id: The only mesh to join; None takes the first that a peer belongs to.
            timeout_s: Deadline for all of it, in seconds.
            queue: Predictions that may wait for this process's own processor; those beyond raise `Busy`.

        Raises:
            MalformedAddress: An address cannot be read.
            PeerUnreachable: No address answers.
            Timeout: They answer, but no mesh could be pulled in time.
        """
        async with AsyncExitStack() as stack:
            home, transport = await open_client(stack)
            state = stack.enter_context(State(home))
            compute = Compute(max_waiting=queue)
            stack.callback(compute.close)
            try:
                async with asyncio.timeout(timeout_s):
                    await connect_any(transport, addresses)
                    mesh, _ = await pull_mesh(state, transport, wanted=mesh_id, timeout_s=CALL_TIMEOUT_S)
            except TimeoutError as exc:
                raise Timeout("joining a mesh", timeout_s) from exc
            directory = Directory(transport, mesh.mesh_id, refresh_s=REFRESH_S, objection=mesh.objection_to)
            contributions = contributions_of(mesh, state, compute)
            inference = RoutedInference(mesh, lambda: contributions.view, directory, transport, compute)
            puller = BlobPuller(transport, state.blobs, timeout_s=CALL_TIMEOUT_S)
            client = cls(mesh, directory, contributions, inference, transport, puller)
            await client.refresh()
            # The client may be closed by another task than the one that joined, which a task group does not allow.
            stack.push_async_callback(_cancel, asyncio.create_task(client._keep_fresh(), name="mesh client"))
            client._resources = stack.pop_all()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave; a second time does nothing."""
        await self._resources.aclose()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except ModuleMeshError as failure:
                log.warning("the mesh could not be looked up, trying again", reason=str(failure))

    async def refresh(self) -> None:
        """Look up who hosts what now, and take in what was contributed to the router since the last time.

        The client does this every two seconds by itself; call it to know what is true at this moment.
        """
        await self._directory.refresh()
        await self._contributions.pull(self._puller, self._directory)
        await self._contributions.solve()

    @property
    def traffic(self) -> Traffic:
        """Bytes this client has sent and received."""
        return self._transport.traffic

    def experts(self) -> tuple[ExpertListing, ...]:
        """The mesh's experts as of the last `refresh`."""
        return tuple(self._directory.experts().values())

    def router_argmax(self, images: np.ndarray) -> tuple[str, ...]:
        """The router as a classifier of its own, no expert asked: the class with the highest score, a row.

        Args:
            images: uint8 ``(B, H, W)`` or ``(B, H, W, channels)``.

        Raises:
            NotReady: The mesh has no router yet.
        """
        return self._inference.router_argmax(images)

    async def predict(
        self,
        images: np.ndarray,
        *,
        top_k: int | None = None,
        task: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Prediction:
        """Ask the mesh; see `meshnode.inference.RoutedInference.predict`.

        Returns:
            Outputs by class name, and in ``calls`` which peer's expert answered which rows with what gate weight.
        """
        return await self._inference.predict(images, top_k=top_k, task=task, timeout_s=timeout_s)

    async def foreign_experts(
        self, cells: Sequence[str], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Mapping[str, ForeignExpert]:
        """Experts of unmodified hivemind servers in the same DHT, and those that nodes of a mesh declare to them.

        Args:
            cells: hivemind's uids, such as ``ffn.3.5``.
            timeout_s: How long a server may take to describe an expert, in seconds.

        Returns:
            By uid, those that a peer has declared and describes; their declarations are unsigned.

        Raises:
            MalformedIdentifier: One is no such uid.
        """
        return await self._transport.moe.experts(cells, timeout_s=timeout_s)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
