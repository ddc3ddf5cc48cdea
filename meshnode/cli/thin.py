"""``meshnode infer --via``: ask a node of a mesh without one of one's own."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from meshnode.documents import infer_document
from meshnode.inference import Prediction
from meshnode.thin import CALL_TIMEOUT_S, ThinClient

__all__ = ["infer_via"]


def infer_via(
    addresses: Sequence[str], images: np.ndarray, *, top_k: int | None, task: str | None, timeout_s: float | None
) -> dict[str, Any]:
    """What the mesh answers through one of these nodes, as the node's own API would say it.

    Raises:
        ModuleMeshError, NodeError: There was no answer.
    """

    async def ask() -> Prediction:
        async with await ThinClient.join(addresses) as client:
            return await client.predict(images, top_k=top_k, task=task, timeout_s=timeout_s or CALL_TIMEOUT_S)

    return infer_document(asyncio.run(ask()))
