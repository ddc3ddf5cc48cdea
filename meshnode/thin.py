"""A thin client: it sends whole images to nodes and needs neither the mesh's trunk nor its router.

    async with await ThinClient.join(["/ip4/203.0.113.7/tcp/31337/p2p/Qm..."]) as client:
        prediction = await client.predict(images)

The nodes that it asks see the images, which those that a `MeshClient` asks do not.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import numpy as np

from meshnode.errors import Timeout
from meshnode.inference import Prediction
from meshnode.inference.thin import ThinInference
from meshnode.joining import connect_any, open_client
from meshnode.transport.interface import Traffic, Transport

__all__ = ["ThinClient"]

CALL_TIMEOUT_S = 5.0


class ThinClient:
    """A connected thin client; made by `join`, closed by leaving its ``async with`` block."""

    def __init__(self, inference: ThinInference, transport: Transport) -> None:
        self._inference = inference
        self._transport = transport
        self._resources = AsyncExitStack()

    @classmethod
    async def join(cls, addresses: Sequence[str], *, timeout_s: float = 10.0) -> Self:
        """Connect to the nodes at `addresses`; those that do not answer are left out.

        Args:
            addresses: Multiaddresses of nodes of one mesh, each ending in /p2p/<peer id>.
            timeout_s: Deadline for all of it, in seconds.

        Raises:
            MalformedAddress: An address cannot be read.
            PeerUnreachable: No address answers.
            Timeout: They did not in time.
        """
        async with AsyncExitStack() as stack:
            _, transport = await open_client(stack)
            try:
                async with asyncio.timeout(timeout_s):
                    nodes = await connect_any(transport, addresses)
            except TimeoutError as exc:
                raise Timeout("connecting", timeout_s) from exc
            client = cls(ThinInference(transport, nodes), transport)
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

    @property
    def traffic(self) -> Traffic:
        """Bytes this client has sent and received."""
        return self._transport.traffic

    async def predict(
        self,
        images: np.ndarray,
        *,
        top_k: int | None = None,
        task: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Prediction:
        """Have images answered by the mesh; see `meshnode.inference.thin.ThinInference.predict`."""
        return await self._inference.predict(images, top_k=top_k, task=task, timeout_s=timeout_s)
